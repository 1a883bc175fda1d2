//! From files to checked, typed tensors. Nothing here computes.
//!
//! The order in which things are validated: each file is a regular file; header and offsets; the index against every
//! shard's header; the values of config.json; names, shapes and dtypes of the tensors against the config; memory.

#[cfg(target_endian = "big")]
compile_error!("safetensors files are little-endian, and their numbers are used where they are mapped");

mod available;
mod bytes;
mod check;
mod checkpoint;
mod config;
pub(crate) mod content;
mod cores;
mod files;
pub(crate) mod header;
mod index;
pub(crate) mod json;
mod memory;
pub(crate) mod packed;
mod random;
mod shards;

pub use available::available_memory;
pub use bytes::Bytes;
pub use check::{Checked, check_tensors};
pub use checkpoint::{Checkpoint, TensorView};
pub use config::Config;
pub(crate) use config::LARGEST_CONFIG;
pub use cores::default_threads;
pub use files::{ModelFile, ModelFiles};
pub use header::Dtype;
pub(crate) use memory::Amount;
pub use memory::{MemoryPlan, PlanOptions, plan_memory};
pub use random::Shape;
