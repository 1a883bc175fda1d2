//! From files to checked, typed tensors. Nothing here computes.

mod bytes;

pub use bytes::Bytes;
