//! Runs large language models on the CPU, straight from their Hugging Face folders: no conversion, safetensors in, text
//! out. Llama, Mistral, Mixtral, Phi and their relatives; f32, f16 and bf16 weights as they are stored, or quantized to 8
//! or 4 bits while they are loaded.
//!
//! ```
//! use infer_runtime::{AddSpecial, GenerateOptions, LoadOptions, Model};
//!
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../cli/demo");
//! let model = Model::load(folder, LoadOptions::default())?;
//! let mut session = model.session();
//! session.prefill(&model.tokenizer()?.encode("Once upon a time", AddSpecial::Yes)?)?;
//! for event in session.generate(GenerateOptions { max_tokens: Some(40), ..GenerateOptions::default() })? {
//!     print!("{}", event?.text());
//! }
//! # Ok::<(), infer_runtime::Error>(())
//! ```
//!
//! A [`Model`] is what the files say; a [`Session`] is one sequence of tokens with its KV cache; a [`Generation`] is an
//! answer in the making, one [`Event`] a token. In a chat, the whole conversation is rendered by the model's
//! [`ChatTemplate`] each turn, and [`Session::sync_to`] computes only what the cache does not have yet:
//!
//! ```
//! use infer_runtime::{ChatInput, GenerateOptions, LoadOptions, Model, SamplingOptions};
//! use serde_json::json;
//!
//! # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../cli/demo");
//! let model = Model::load(folder, LoadOptions::default())?;
//! let template = model.chat_template()?.expect("a model for chats");
//! let mut session = model.session();
//! let mut messages = vec![];
//! for question in ["Tell me a tale about a fox.", "And then?"] {
//!     messages.push(json!({"role": "user", "content": question}));
//!     let chat = ChatInput::new(messages.clone().into());
//!     session.sync_to(&template.encode(&chat, model.tokenizer()?)?)?;
//!     let mut answer = String::new();
//!     let options = GenerateOptions {
//!         max_tokens: Some(20),
//!         sampling: Some(SamplingOptions::greedy()),
//!         ..GenerateOptions::default()
//!     };
//!     for event in session.generate(options)? {
//!         answer += event?.text();
//!     }
//!     assert!(!answer.is_empty());
//!     messages.push(json!({"role": "assistant", "content": answer}));
//! }
//! # Ok::<(), infer_runtime::Error>(())
//! ```
//!
//! # Threads
//! A model is `Send + Sync` and its clones share everything; a session is `Send`. The forward passes of one model run
//! one at a time on the model's own team of threads ([`LoadOptions::threads`]): sessions on several threads wait for
//! their turns, blocked, in the order of asking. They may be called from inside a rayon pool. No lock is held between
//! passes. Logits, and so texts, are bit for bit the same for any number of threads and whatever other sessions do.
//!
//! # Memory
//! Weights are mapped and used in place where their type allows. Those that are quantized are so in one pass, which lets
//! go of its source as it goes; with [`LoadOptions::cache`] the result is kept in a file and mapped the next time. Blocks
//! of the KV cache are taken as sessions grow, from one pool that all sessions of a model share; when it is used up, the
//! pass that wanted more fails with [`Error::Memory`] and its session stays usable.
//!
//! # Errors
//! Everything that a file, an option or a caller can get wrong is an [`Error`], one line that names the file and the
//! tensor or key, what was expected and what was found. A session is consistent after any error: its
//! [tokens](Session::tokens) say how far it came. Panics of the tokenizer and template libraries are turned into errors;
//! for that the crate wraps the process's panic hook once, which otherwise goes on as before.

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
pub mod quantize;
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
pub use load::{MemoryPlan, Shape, default_threads};
pub use model::Model;
pub use model::clock::{Operation, Profile};
pub use model::cost::Cost;
pub use model::engine::Logits;
pub use model::outline::Outline;
pub use model::spec::Spec;
pub use options::{Compute, KvType, LoadOptions, Notice, Progress, WeightFormat};
pub use quantize::{CacheEntry, Override, PackedCache, QuantPlan};
pub use sampling::{Sampler, SamplingOptions};
pub use session::Session;
pub use stop::{StopStrings, StopTokens};
pub use text_files::TextFiles;
pub use text_stream::TextStream;
pub use tokenizer::{AddSpecial, Tokenizer, TokenizerFiles};
