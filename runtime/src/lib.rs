//! Runs Llama, Mixtral, Phi and their relatives straight from Hugging Face safetensors folders.

pub mod chat_template;
pub mod error;
mod fence;
pub mod load;
pub mod sampling;
pub mod stop;
pub mod text_stream;
pub mod tokenizer;

pub use chat_template::{ChatInput, ChatTemplate, TemplateFiles};
pub use error::{Error, Result};
pub use sampling::{Sampler, SamplingOptions};
pub use stop::{StopStrings, StopTokens};
pub use text_stream::TextStream;
pub use tokenizer::{AddSpecial, Tokenizer, TokenizerFiles};
pub(crate) mod backend;
pub(crate) mod kv_cache;
pub mod model;
pub mod options;
