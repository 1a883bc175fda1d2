//! A session: one sequence of tokens, its KV cache, and the logits of its last token.
//!
//! The tokens are the truth and the cache follows them: `sequence.len() <= tokens.len()` always, and what the cache
//! lacks is computed when logits are asked for. So a cancelled prefill, an error half-way, a token that was drawn but
//! not yet run through the model, and a truncation that the cache cannot follow are all the same case.

mod batch;

use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::generate::{CancelToken, GenerateOptions, Generation};
use crate::kv_cache::Sequence;
use crate::model::Model;
use crate::model::engine::{BatchPart, LogitRows, Logits};
use crate::options::Progress;

/// One sequence of tokens that a model reads and continues.
///
/// Sessions of one model may work on several threads at once; their forward passes wait for each other. A session
/// that is dropped gives its part of the cache back.
pub struct Session {
    pub(crate) model: Model,
    pub(crate) tokens: Vec<u32>,
    pub(crate) sequence: Sequence,
    /// Those of the last token; empty if they are not known.
    logits: Vec<f32>,
    work: Work,
}

/// Tokens that were run through the model, and the time it took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Work {
    pub n_tokens: usize,
    pub time: Duration,
}

/// What a run through the model is to leave behind.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// The logits of the last token, in the session.
    Last,
    /// Those too, and those of every new token, returned.
    EveryNew,
}

impl Session {
    pub(crate) fn new(model: Model) -> Session {
        let sequence = model.engine().new_sequence();
        Session { model, tokens: Vec::new(), sequence, logits: Vec::new(), work: Work::default() }
    }

    /// The model that this session belongs to.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The tokens, prefilled and generated, in order; never more than the context. A token that was just drawn is
    /// among them, though it is run through the model only when the next one is asked for.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Appends tokens and runs them through the model.
    ///
    /// # Errors
    /// [`Error::ContextFull`] or [`Error::InvalidOption`] (an id outside the vocabulary) before anything is computed.
    /// [`Error::NotFinite`] or [`Error::Memory`] (the cache is full) half-way: [`Self::tokens`] says how far it came.
    pub fn prefill(&mut self, tokens: &[u32]) -> Result<()> {
        self.prefill_with(tokens, &CancelToken::default(), |_| {})
    }

    /// [`Self::prefill`] that can be cancelled, and that says after each chunk of it how far it has come. What a chunk
    /// had done when it was cancelled is lost.
    ///
    /// # Errors
    /// As [`Self::prefill`], and [`Error::Cancelled`] half-way.
    pub fn prefill_with(
        &mut self,
        tokens: &[u32],
        cancel: &CancelToken,
        mut progress: impl FnMut(Progress),
    ) -> Result<()> {
        self.run(tokens, Wanted::Last, cancel, &mut progress).map(|_| ())
    }

    /// Makes `tokens` the tokens of this session with as little work as possible: keeps the longest common beginning,
    /// forgets the rest, prefills what is new. This is how a chat goes on, is undone, or is edited. Returns how many
    /// of the tokens did not have to be computed.
    ///
    /// # Errors
    /// As [`Self::prefill`].
    pub fn sync_to(&mut self, tokens: &[u32]) -> Result<usize> {
        self.sync_to_with(tokens, &CancelToken::default(), |_| {})
    }

    /// [`Self::sync_to`] that can be cancelled, and that says how far it has come.
    ///
    /// # Errors
    /// As [`Self::prefill_with`].
    pub fn sync_to_with(
        &mut self,
        tokens: &[u32],
        cancel: &CancelToken,
        mut progress: impl FnMut(Progress),
    ) -> Result<usize> {
        self.check(0, tokens)?;
        let common = self.tokens.iter().zip(tokens).take_while(|(old, new)| old == new).count();
        self.truncate(common);
        let before = self.work.n_tokens;
        self.run(&tokens[common..], Wanted::Last, cancel, &mut progress)?;
        Ok(tokens.len().saturating_sub(self.work.n_tokens - before))
    }

    /// The logits of the last token, `[vocab_size]`. `None` in an empty session, after [`Self::truncate`], and for a
    /// token that was just drawn; `prefill(&[])` computes them.
    pub fn logits(&self) -> Option<&[f32]> {
        (!self.logits.is_empty()).then_some(self.logits.as_slice())
    }

    /// Appends tokens and returns the logits after each of them, [tokens.len(), vocab_size].
    ///
    /// # Errors
    /// As [`Self::prefill`]; [`Error::Memory`] also if the logits do not fit the memory.
    pub fn forward(&mut self, tokens: &[u32]) -> Result<Logits> {
        let values = self.run(tokens, Wanted::EveryNew, &CancelToken::default(), &mut |_| {})?;
        Ok(Logits::new(values, self.model.spec().vocab_size))
    }

    /// Continues the tokens: the iterator gives one [`Event`](crate::Event) a token and a last one with the reason.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for an option out of range, or if there is no token to continue; [`Error::Tokenizer`]
    /// if the model's tokenizer cannot be used. Without a tokenizer there are ids and no text.
    pub fn generate(&mut self, options: GenerateOptions) -> Result<Generation<'_>> {
        Generation::new(self, options)
    }

    /// A second session with the same tokens. Both share the cache; each copies the part that it writes to.
    pub fn fork(&self) -> Session {
        Session {
            model: self.model.clone(),
            tokens: self.tokens.clone(),
            sequence: self.sequence.fork(),
            logits: self.logits.clone(),
            work: Work::default(),
        }
    }

    /// Forgets all but the first `len` tokens; does nothing if there are not more.
    pub fn truncate(&mut self, len: usize) {
        if len >= self.tokens.len() {
            return;
        }
        self.tokens.truncate(len);
        self.logits.clear();
        self.truncate_cache(len);
    }

    /// Makes the last token's logits known.
    pub(crate) fn catch_up(&mut self, cancel: &CancelToken) -> Result<()> {
        self.run(&[], Wanted::Last, cancel, &mut |_| {}).map(|_| ())
    }

    /// Appends a token that was drawn from the logits; it is run through the model when logits are asked for again.
    pub(crate) fn push_drawn(&mut self, token: u32) {
        self.tokens.push(token);
        self.logits.clear();
    }

    /// The work since the last call.
    pub(crate) fn take_work(&mut self) -> Work {
        std::mem::take(&mut self.work)
    }

    /// Replaces tokens and cache; what the cache lacks is computed later.
    pub(crate) fn replace(&mut self, tokens: Vec<u32>, sequence: Sequence) {
        self.tokens = tokens;
        self.sequence = sequence;
        self.logits.clear();
    }

    /// Runs `new` and whatever else the cache lacks through the model, in chunks, and counts each chunk's tokens as
    /// the session's when it is done.
    fn run(
        &mut self,
        new: &[u32],
        wanted: Wanted,
        cancel: &CancelToken,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Vec<f32>> {
        self.check(self.tokens.len(), new)?;
        let total = self.tokens.len() + new.len();
        let mut rows = self.room_for_rows(if wanted == Wanted::EveryNew { new.len() } else { 0 })?;
        if total == 0 || (new.is_empty() && !self.logits.is_empty()) {
            return Ok(rows);
        }
        let model = self.model.clone();
        // A cache whose keys were rotated with other longrope factors than this length needs is of no use.
        if model.engine().needs_recompute(&self.sequence, total) {
            self.truncate_cache(0);
        }
        // The cache has every token, but the logits of the last one are gone.
        if self.sequence.len() == total {
            self.truncate_cache(total - 1);
        }
        let n_old = self.tokens.len();
        let n_missing = total - self.sequence.len();
        self.logits.clear();
        while self.sequence.len() < total {
            let began = Instant::now();
            let start = self.sequence.len();
            // Old tokens and new ones are never in one chunk: only the rows of the new ones may be wanted.
            let (source, offset) = if start < n_old { (&self.tokens[..], 0) } else { (new, n_old) };
            let end = (start + model.prefill_chunk()).min(offset + source.len());
            let is_last = end == total;
            let logits = match wanted {
                Wanted::EveryNew if start >= n_old => LogitRows::All,
                _ if is_last => LogitRows::Last,
                _ => LogitRows::None,
            };
            let part = BatchPart {
                sequence: &mut self.sequence,
                tokens: &source[start - offset..end - offset],
                rope_length: total,
                logits,
            };
            let computed = model.engine().forward(&mut [part], cancel)?;
            if start >= n_old {
                self.tokens.extend_from_slice(&new[start - n_old..end - n_old]);
            }
            self.work.n_tokens += end - start;
            self.work.time += began.elapsed();
            if is_last && computed.n_rows() > 0 {
                self.logits.extend_from_slice(computed.row(computed.n_rows() - 1));
            }
            if logits == LogitRows::All {
                rows.extend_from_slice(computed.values());
            }
            progress(Progress { done: (n_missing - (total - end)) as u64, total: n_missing as u64 });
        }
        Ok(rows)
    }

    /// Whether `new` may stand behind `n_before` tokens.
    fn check(&self, n_before: usize, new: &[u32]) -> Result<()> {
        let vocab_size = self.model.spec().vocab_size;
        if let Some(token) = new.iter().find(|&&token| token as usize >= vocab_size) {
            return Err(Error::InvalidOption {
                option: "tokens",
                expected: format!("ids below {vocab_size}, the size of the vocabulary"),
                found: token.to_string(),
            });
        }
        let needed = n_before.saturating_add(new.len());
        let context = self.model.context();
        if needed > context { Err(Error::ContextFull { needed, context }) } else { Ok(()) }
    }

    /// An empty vector with room for the logits of `n_rows` tokens.
    fn room_for_rows(&self, n_rows: usize) -> Result<Vec<f32>> {
        let n_values = n_rows.saturating_mul(self.model.spec().vocab_size);
        let mut rows = Vec::new();
        rows.try_reserve_exact(n_values)
            .map_err(|_| Error::Memory(format!("the logits of {n_rows} tokens take {} bytes", 4 * n_values as u128)))?;
        Ok(rows)
    }

    /// Takes tokens from the end of the cache; all of them if the window has given back those that would be needed.
    fn truncate_cache(&mut self, len: usize) {
        if len < self.sequence.len() {
            let len = if self.sequence.can_truncate(len) { len } else { 0 };
            self.sequence.truncate(len);
        }
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("tokens", &self.tokens.len())
            .field("cached", &self.sequence.len())
            .finish_non_exhaustive()
    }
}
