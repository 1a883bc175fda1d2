//! From weights as they are stored to packed ones: what becomes what, quantizing, and the files that keep the result.

pub mod cache;
mod folder;
mod glob;
pub(crate) mod keeping;
pub(crate) mod packed_file;
pub(crate) mod plan;
pub(crate) mod source;

pub use cache::{CacheEntry, PackedCache};
pub use plan::{Class, Override, QuantPlan};
