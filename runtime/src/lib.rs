//! Runs Llama, Mixtral, Phi and their relatives straight from Hugging Face safetensors folders.

pub(crate) mod backend;
pub mod chat_template;
mod checksum;
pub mod error;
mod fence;
pub mod generate;
mod generation_config;
pub(crate) mod kv_cache;
pub mod load;
pub mod model;
pub mod options;
pub mod sampling;
mod saved_cache;
pub mod session;
pub mod stop;
mod text_files;
pub mod text_stream;
pub mod tokenizer;

pub use chat_template::{ChatInput, ChatTemplate, TemplateFiles};
pub use error::{Error, Result};
pub use generate::{CancelToken, Event, GenerateOptions, Generation, GenerationStats, StopReason};
pub use model::Model;
pub use model::engine::Logits;
pub use model::spec::Spec;
pub use options::{Compute, KvType, LoadOptions, Progress, WeightFormat};
pub use sampling::{Sampler, SamplingOptions};
pub use session::Session;
pub use stop::{StopStrings, StopTokens};
pub use text_files::TextFiles;
pub use text_stream::TextStream;
pub use tokenizer::{AddSpecial, Tokenizer, TokenizerFiles};
