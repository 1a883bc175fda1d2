//! Arithmetic of language models. Knows no file, no model and no tokenizer: slices in, slices out.

pub mod error;

pub use error::KernelError;
