//! A model: its facts, its weights and the forward pass.

pub mod arch;
pub(crate) mod engine;
pub(crate) mod forward;
pub(crate) mod linear;
pub(crate) mod rope;
mod rope_scaling;
pub mod spec;
pub(crate) mod walk;
pub(crate) mod weights;

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use crate::chat_template::ChatTemplate;
use crate::error::Result;
use crate::options::LoadOptions;
use crate::sampling::SamplingOptions;
use crate::session::Session;
use crate::stop::StopTokens;
use crate::tokenizer::Tokenizer;
use spec::Spec;

/// A loaded model. Cheap to clone; shared by any number of sessions on any threads.
#[derive(Clone)]
pub struct Model {
    inner: Arc<Inner>,
}

struct Inner {}

impl Model {
    /// Loads a model from a folder of Hugging Face files, or from a .safetensors file with the others beside it.
    ///
    /// # Errors
    /// What is wrong with the first file, value or tensor that cannot be used; see [`crate::Error`].
    pub fn load(path: impl AsRef<Path>, options: LoadOptions) -> Result<Model> {
        let _ = (path.as_ref(), options);
        todo!()
    }

    /// Loads a model from files in memory: their names (as in a folder) and contents.
    ///
    /// # Errors
    /// As [`Self::load`]; messages name the files as they are named here.
    pub fn from_bytes(files: Vec<(String, Cow<'static, [u8]>)>, options: LoadOptions) -> Result<Model> {
        let _ = (files, options);
        todo!()
    }

    /// The facts that tell this model from others.
    pub fn spec(&self) -> &Spec {
        let _ = &self.inner;
        todo!()
    }

    /// Longest sequence, in tokens.
    pub fn context(&self) -> usize {
        todo!()
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// [`crate::Error::Tokenizer`] if the model has none or it cannot be used; nothing else needs one.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        todo!()
    }

    /// The chat template; `None` if the model has none.
    ///
    /// # Errors
    /// [`crate::Error::ChatTemplate`] if there is one that cannot be used.
    pub fn chat_template(&self) -> Result<Option<&ChatTemplate>> {
        todo!()
    }

    /// How the model's makers want tokens to be chosen, or [`SamplingOptions::default`].
    pub fn sampling_defaults(&self) -> &SamplingOptions {
        todo!()
    }

    /// The tokens that end an answer.
    pub fn stop_tokens(&self) -> &StopTokens {
        todo!()
    }

    /// A new, empty session.
    pub fn session(&self) -> Session {
        Session::new(self.clone())
    }
}
