//! A session: one sequence of tokens and its KV cache.

use std::path::Path;

use crate::error::Result;
use crate::generate::{CancelToken, GenerateOptions, Generation};
use crate::model::Model;
use crate::model::engine::Logits;

/// One sequence of tokens that a model reads and continues.
pub struct Session {
    model: Model,
    tokens: Vec<u32>,
}

impl Session {
    pub(crate) fn new(model: Model) -> Session {
        Session { model, tokens: Vec::new() }
    }

    /// The model that this session belongs to.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The tokens, prefilled and generated, in order. All are in the cache but perhaps the last: a token that was
    /// just drawn is run through the model when the next one is asked for.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Appends tokens and runs them through the model.
    ///
    /// # Errors
    /// [`crate::Error::ContextFull`] or [`crate::Error::InvalidOption`] before anything is computed;
    /// [`crate::Error::NotFinite`] or [`crate::Error::Memory`] half-way: [`Self::tokens`] says how far it came.
    pub fn prefill(&mut self, tokens: &[u32]) -> Result<()> {
        self.prefill_with(tokens, &CancelToken::default(), |_| {})
    }

    /// [`Self::prefill`] that can be cancelled, and that tells `progress` how many of the tokens are done.
    ///
    /// # Errors
    /// As [`Self::prefill`], and [`crate::Error::Cancelled`]: [`Self::tokens`] says how far it came.
    pub fn prefill_with(&mut self, tokens: &[u32], cancel: &CancelToken, progress: impl FnMut(usize)) -> Result<()> {
        let _ = (tokens, cancel, progress);
        todo!()
    }

    /// Makes `tokens` the tokens of this session, with as little work as possible: keeps the longest common
    /// beginning, forgets the rest, prefills what is new. Returns how many tokens were in the cache already.
    ///
    /// # Errors
    /// As [`Self::prefill`].
    pub fn sync_to(&mut self, tokens: &[u32]) -> Result<usize> {
        self.sync_to_with(tokens, &CancelToken::default(), |_| {})
    }

    /// [`Self::sync_to`] that can be cancelled, and that tells `progress` how many of the new tokens are done.
    ///
    /// # Errors
    /// As [`Self::prefill_with`].
    pub fn sync_to_with(&mut self, tokens: &[u32], cancel: &CancelToken, progress: impl FnMut(usize)) -> Result<usize> {
        let _ = (tokens, cancel, progress);
        todo!()
    }

    /// The logits of the last token, [vocab_size], if they are known.
    pub fn logits(&self) -> Option<&[f32]> {
        todo!()
    }

    /// Appends tokens and returns the logits of each of them, [tokens.len(), vocab_size].
    ///
    /// # Errors
    /// As [`Self::prefill`].
    pub fn forward(&mut self, tokens: &[u32]) -> Result<Logits> {
        let _ = tokens;
        todo!()
    }

    /// Continues the tokens.
    ///
    /// # Errors
    /// [`crate::Error::InvalidOption`] for an option out of range, or if the session has no token yet;
    /// [`crate::Error::Tokenizer`] if the tokenizer cannot be used.
    pub fn generate(&mut self, options: GenerateOptions) -> Result<Generation<'_>> {
        let _ = options;
        todo!()
    }

    /// A second session with the same tokens. Both share the cache until one of them writes.
    pub fn fork(&self) -> Session {
        todo!()
    }

    /// Forgets all but the first `len` tokens. Does nothing if there are not more.
    pub fn truncate(&mut self, len: usize) {
        let _ = len;
        todo!()
    }

    /// Writes tokens and cache to a file.
    ///
    /// # Errors
    /// [`crate::Error::Io`] if the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let _ = path.as_ref();
        todo!()
    }

    /// Replaces tokens and cache by those of a file that [`Self::save`] wrote with the same model. On failure this
    /// session stays as it was.
    ///
    /// # Errors
    /// [`crate::Error::Io`] if the file cannot be read; [`crate::Error::SavedCache`] if it is damaged or of another
    /// model; [`crate::Error::ContextFull`] if it does not fit the context.
    pub fn restore(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let _ = path.as_ref();
        todo!()
    }
}
