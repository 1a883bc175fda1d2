//! Runs Llama, Mixtral, Phi and their relatives straight from Hugging Face safetensors folders.

pub mod error;
pub mod load;

pub use error::{Error, Result};
