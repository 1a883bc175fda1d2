//! Generation: an iterator that draws one token after the other and gives out their text.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::error::Result;
use crate::sampling::SamplingOptions;
use crate::session::Session;
use crate::stop::StopTokens;

/// Asks work to stop, from any thread. Clones share one state.
#[derive(Clone, Debug, Default)]
pub struct CancelToken(Arc<AtomicBool>);

impl CancelToken {
    /// Asks for the end of all work that watches this token.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether the end was asked for.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Makes the token fit for new work.
    pub fn reset(&self) {
        self.0.store(false, Ordering::Release);
    }
}

/// How an answer is made and where it ends.
#[derive(Clone, Debug, Default)]
pub struct GenerateOptions {
    /// Most tokens; `None` goes on until something else ends the answer.
    pub max_tokens: Option<usize>,
    /// How tokens are chosen; `None` takes [`Model::sampling_defaults`](crate::Model::sampling_defaults).
    pub sampling: Option<SamplingOptions>,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Tokens that end the answer; `None` takes [`Model::stop_tokens`](crate::Model::stop_tokens).
    pub stop_tokens: Option<StopTokens>,
    /// Looked at before each token.
    pub cancel: CancelToken,
}

/// A step of a generation.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// A token of the answer.
    Token {
        /// Its id.
        id: u32,
        /// The text that is certain now. Empty while a character or a possible stop string is incomplete.
        text: String,
    },
    /// The last event.
    Done {
        /// Why the answer ended.
        reason: StopReason,
        /// Text that was held back until now.
        text: String,
        /// What it took.
        stats: GenerationStats,
    },
}

impl Event {
    /// The text to show now. All texts together are the answer.
    pub fn text(&self) -> &str {
        match self {
            Event::Token { text, .. } | Event::Done { text, .. } => text,
        }
    }
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// The model wrote this end token.
    EndToken(u32),
    /// The answer reached this stop string.
    StopString(String),
    /// The limit on tokens was reached.
    MaxTokens,
    /// The context is full.
    ContextFull,
    /// The owner cancelled.
    Cancelled,
}

/// What an answer took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GenerationStats {
    /// Tokens in the session when the answer began.
    pub prompt_tokens: usize,
    /// Tokens that were run through the model since the last answer, before this one began; the rest of the prompt
    /// was in the cache.
    pub prefill_tokens: usize,
    /// Time for them.
    pub prefill_time: Duration,
    /// Tokens of the answer; an end token is not counted.
    pub generated_tokens: usize,
    /// Time for them, the time between the iterator's steps left out.
    pub decode_time: Duration,
}

/// An answer in the making: an iterator of [`Event`]s, made by [`Session::generate`].
///
/// It may be dropped at any time; the session then holds the tokens that were given out.
pub struct Generation<'a> {
    _session: &'a mut Session,
}

impl Iterator for Generation<'_> {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Result<Event>> {
        todo!()
    }
}
