//! A model: its facts, its weights, the forward pass, and what its files say about text.

pub mod arch;
pub mod clock;
pub mod cost;
pub(crate) mod engine;
pub(crate) mod forward;
pub(crate) mod linear;
pub(crate) mod load;
pub mod outline;
pub(crate) mod rope;
mod rope_scaling;
pub mod spec;
pub(crate) mod walk;
pub(crate) mod weights;

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use infer_kernels::{Isa, KvType, Team};

use crate::chat_template::ChatTemplate;
use crate::error::{Error, Result};
use crate::load::MemoryPlan;
use crate::options::LoadOptions;
use crate::quantize::keeping::Keeping;
use crate::sampling::SamplingOptions;
use crate::session::Session;
use crate::stop::StopTokens;
use crate::text_files::Companion;
use crate::tokenizer::Tokenizer;
use clock::Profile;
use cost::Cost;
use engine::Engine;
use outline::Outline;
use spec::Spec;

/// A loaded model. Cheap to clone; shared by any number of sessions on any threads.
///
/// The files of weights stay mapped while the model lives. Replacing them by a rename is harmless; shrinking or
/// overwriting one in place changes the weights under the model, and reading beyond the new end ends the process
/// by a signal, which no program can prevent.
#[derive(Clone)]
pub struct Model(Arc<Inner>);

struct Inner {
    engine: Engine,
    memory_plan: MemoryPlan,
    /// Tokens of a chunk of prefill.
    prefill_chunk: usize,
    tokenizer: Companion<Tokenizer>,
    /// The path that a tokenizer would have, for messages.
    tokenizer_path: PathBuf,
    chat_template: Companion<ChatTemplate>,
    sampling_defaults: SamplingOptions,
    stop_tokens: StopTokens,
    fingerprint: String,
    unused_tensors: Vec<String>,
}

impl Model {
    /// Loads a model from a folder of Hugging Face files, or from a .safetensors file with the others beside it.
    ///
    /// # Errors
    /// Options first, then what is wrong with the first file, value or tensor that cannot be used:
    /// [`Error::InvalidOption`], [`Error::File`], [`Error::Config`], [`Error::Unsupported`], [`Error::Tensor`],
    /// [`Error::Tokenizer`] (only for a vocabulary larger than the embedding), [`Error::Memory`]. A tokenizer or
    /// template that is missing or broken is an error only for those who ask for it.
    pub fn load(path: impl AsRef<Path>, options: LoadOptions) -> Result<Model> {
        Outline::open(path, options)?.load()
    }

    /// Loads a model from files in memory: their names (as in a folder) and contents.
    ///
    /// # Errors
    /// As [`Self::load`]; messages name the files as they are named here.
    pub fn from_bytes(files: Vec<(String, Cow<'static, [u8]>)>, options: LoadOptions) -> Result<Model> {
        Outline::from_bytes(files, options)?.load()
    }

    /// The facts that tell this model from others.
    pub fn spec(&self) -> &Spec {
        self.0.engine.spec()
    }

    /// Longest sequence, in tokens.
    pub fn context(&self) -> usize {
        self.0.memory_plan.context
    }

    /// Where the memory goes.
    pub fn memory_plan(&self) -> &MemoryPlan {
        &self.0.memory_plan
    }

    /// Names of tensors that the files have and the model does not use.
    pub fn unused_tensors(&self) -> &[String] {
        &self.0.unused_tensors
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the model has none or it cannot be used; only text needs one.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.0.tokenizer.get()?.ok_or_else(|| no_tokenizer(&self.0.tokenizer_path))
    }

    /// The chat template; `None` if the model has none.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] if there is one that cannot be used.
    pub fn chat_template(&self) -> Result<Option<&ChatTemplate>> {
        self.0.chat_template.get()
    }

    /// How the model's makers want tokens to be chosen: what generation_config.json says, if it says `do_sample`; else
    /// [`SamplingOptions::default`].
    pub fn sampling_defaults(&self) -> &SamplingOptions {
        &self.0.sampling_defaults
    }

    /// The tokens that end an answer: the end tokens of generation_config.json, config.json and the tokenizer, and the
    /// token with which the chat template ends a turn.
    pub fn stop_tokens(&self) -> &StopTokens {
        &self.0.stop_tokens
    }

    /// A new, empty session.
    pub fn session(&self) -> Session {
        Session::new(self.clone())
    }

    /// The most tokens of one forward pass; more take several.
    pub const MAX_PASS_ROWS: usize = engine::MAX_ROWS;

    /// Changes the number of threads of later passes, of all clones and sessions. Results do not depend on it.
    ///
    /// # Errors
    /// [`Error::Kernel`] if the system does not give so many.
    pub fn set_threads(&self, threads: usize) -> Result<()> {
        self.0.engine.backend().set_team(Team::new(threads, Isa::from_env()?)?);
        Ok(())
    }

    /// The type of cached keys and values.
    pub fn kv_type(&self) -> KvType {
        self.0.engine.kv_type()
    }

    /// What forward passes read and compute.
    pub fn cost(&self) -> Cost {
        self.0.engine.backend().cost(self.kv_type())
    }

    /// How many experts' weights all forward passes of this model have read so far: each counts once in a pass and a
    /// layer, however many tokens chose it. 0 for models without experts.
    pub fn experts_read(&self) -> u64 {
        self.0.engine.backend().experts_read()
    }

    /// Starts to measure where the time of this model's forward passes goes.
    pub fn start_profile(&self) {
        self.0.engine.clock().start();
    }

    /// Stops measuring and says what has come together since the start.
    pub fn stop_profile(&self) -> Profile {
        self.0.engine.clock().stop()
    }

    /// Whether quantized weights that are to be kept are still on their way to the disk; see
    /// [`Self::wait_until_kept`].
    pub fn is_being_kept(&self) -> bool {
        self.0.engine.keeping().is_some_and(Keeping::is_under_way)
    }

    /// Waits until quantized weights that are to be kept are on the disk. Dropping the last clone of a model waits as
    /// well, and says nothing; a process that ends without that leaves them to be quantized again.
    ///
    /// # Errors
    /// [`Error::Io`] if they are not kept.
    pub fn wait_until_kept(&self) -> Result<()> {
        self.0.engine.keeping().map_or(Ok(()), Keeping::wait)
    }

    /// Whether both are one model in memory.
    pub(crate) fn is_clone_of(&self, other: &Model) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.0.engine
    }

    /// Tokens that [`Session::prefill`] runs through the model at a time.
    pub fn prefill_chunk(&self) -> usize {
        self.0.prefill_chunk
    }

    /// Tells this model, with the format of its weights, from others.
    pub(crate) fn fingerprint(&self) -> &str {
        &self.0.fingerprint
    }

    /// Whether there is a tokenizer, be it good or bad.
    pub(crate) fn has_tokenizer(&self) -> bool {
        !matches!(self.0.tokenizer, Companion::Missing)
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model")
            .field("architecture", &self.spec().architecture)
            .field("context", &self.context())
            .finish_non_exhaustive()
    }
}

/// The error for a model without a tokenizer.
pub(crate) fn no_tokenizer(path: &Path) -> Error {
    Error::Tokenizer { path: path.to_owned(), problem: "no such file, and text needs it".to_owned() }
}
