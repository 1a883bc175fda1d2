//! How a model is loaded: weight format, context, threads, arithmetic, cache type, memory.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::load::Amount;
use crate::quantize::Override;

pub use infer_kernels::cpu::kv::KvType;

/// What weight matrices become while they are loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightFormat {
    /// As the files have them (f32, f16, bf16), used in place; if the files are packed already, as they are packed.
    #[default]
    AsStored,
    /// 8-bit codes, one f16 scale for each group of 32 inputs: 8.5 bits a weight.
    Int8,
    /// 4-bit codes into a table, one byte for each group of 16 inputs: about 4.5 bits a weight. Some matrices get more
    /// ([`QuantPlan`](crate::QuantPlan)).
    Int4,
}

impl WeightFormat {
    /// The name in overrides and listings: `stored`, `q8`, `q4`.
    pub fn name(self) -> &'static str {
        match self {
            WeightFormat::AsStored => "stored",
            WeightFormat::Int8 => "q8",
            WeightFormat::Int4 => "q4",
        }
    }

    /// The format of a name.
    pub fn named(name: &str) -> Option<WeightFormat> {
        [WeightFormat::AsStored, WeightFormat::Int8, WeightFormat::Int4]
            .into_iter()
            .find(|format| format.name() == name)
    }
}

/// The arithmetic of a forward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compute {
    /// What is fast without being wrong: activations in 8 bits where they meet quantized weights, in bf16 where they
    /// meet bf16 weights or are queries of a prompt and the CPU multiplies bf16, and a cache of 16 bits.
    #[default]
    Auto,
    /// f32 activations and an f32 cache.
    F32,
}

/// Options of [`Model::load`](crate::Model::load). Start from the default:
///
/// ```
/// use infer_runtime::{LoadOptions, WeightFormat};
/// let options = LoadOptions { weights: WeightFormat::Int4, threads: Some(4), ..LoadOptions::default() };
/// ```
#[derive(Clone, Default)]
pub struct LoadOptions {
    /// What weight matrices become.
    pub weights: WeightFormat,
    /// Matrices that become something else, by their names; of several that describe one matrix the last holds.
    pub overrides: Vec<Override>,
    /// Longest sequence, in tokens. Default: the model's own, or what fits the memory, whichever is smaller.
    pub context: Option<usize>,
    /// Whether `context` may exceed what the model was made for. Its answers get worse there; a model with learned
    /// positions has none for it and refuses.
    pub beyond_context: bool,
    /// Threads of a forward pass. Default: [`default_threads`](crate::default_threads), the physical cores that the
    /// process may use. Results do not depend on it.
    pub threads: Option<usize>,
    /// The arithmetic.
    pub compute: Compute,
    /// Type of cached keys and values. Default: f32 with [`Compute::F32`]; else bf16 for a model stored in
    /// bf16, and f16 for any other. Int8 takes half of their memory.
    pub kv: Option<KvType>,
    /// Bytes of memory that the model may use. Default: what is available to the process.
    pub memory: Option<u64>,
    /// A folder that keeps packed weights, so that a model is quantized once
    /// ([`PackedCache::default_folder`](crate::quantize::PackedCache::default_folder) is the user's). Default: none.
    /// Models from memory are never kept; random ones ([`Outline::of_shape`](crate::Outline::of_shape)) are.
    pub cache: Option<PathBuf>,
    /// Called now and then while weights are loaded, from one thread at a time.
    pub progress: Option<Arc<dyn Fn(Progress) + Send + Sync>>,
    /// Called with what a person may want to know of the loading.
    pub notices: Option<Arc<dyn Fn(Notice) + Send + Sync>>,
}

impl LoadOptions {
    /// The type of cached keys and values of a model whose weights are stored in bf16 or not.
    pub(crate) fn kv_type(&self, stored_bf16: bool) -> KvType {
        self.kv.unwrap_or(match (self.compute, stored_bf16) {
            (Compute::F32, _) => KvType::F32,
            (Compute::Auto, true) => KvType::Bf16,
            (Compute::Auto, false) => KvType::F16,
        })
    }
}

impl fmt::Debug for LoadOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadOptions")
            .field("weights", &self.weights)
            .field("overrides", &self.overrides)
            .field("context", &self.context)
            .field("beyond_context", &self.beyond_context)
            .field("threads", &self.threads)
            .field("compute", &self.compute)
            .field("kv", &self.kv)
            .field("memory", &self.memory)
            .field("cache", &self.cache)
            .field("progress", &self.progress.is_some())
            .field("notices", &self.notices.is_some())
            .finish()
    }
}

/// How far work has come: bytes of weights while a model is loaded, tokens while a prompt is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is done.
    pub done: u64,
    /// All that there is to do.
    pub total: u64,
}

/// What a person may want to know of the loading: one line each.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Notice {
    /// Another process is quantizing this model.
    Waiting,
    /// The packed model that was kept cannot be used.
    Rebuilding {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The packed model cannot be kept; the model is loaded all the same.
    NotCached {
        /// The file or folder that cannot be written.
        path: PathBuf,
        /// The system's words.
        problem: String,
    },
    /// The model was quantized.
    Quantized {
        /// The size of the weights as they are stored.
        source_bytes: u64,
        /// Their size now.
        packed_bytes: u64,
        /// How long it took.
        elapsed: Duration,
        /// The file that keeps them.
        path: Option<PathBuf>,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notice::Waiting => write!(f, "waiting for another process that is quantizing this model"),
            Notice::Rebuilding { path, problem } => write!(f, "{} {problem}; it is made anew", path.display()),
            Notice::NotCached { path, problem } => {
                write!(f, "the quantized weights are not kept: {}: {problem}", path.display())
            }
            Notice::Quantized { source_bytes, packed_bytes, elapsed, path } => {
                let [source, packed] = [*source_bytes, *packed_bytes].map(Amount);
                let seconds = elapsed.as_secs_f64();
                let rate = if seconds > 0.0 { *source_bytes as f64 / 1e9 / seconds } else { 0.0 };
                write!(f, "quantized {source} to {packed} in {seconds:.1} s, {rate:.2} GB/s")?;
                match path {
                    Some(path) => write!(f, "; kept in {}", path.display()),
                    None => Ok(()),
                }
            }
        }
    }
}
