//! Generation: an iterator that draws one token after the other and gives out their text.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::sampling::{Sampler, SamplingOptions};
use crate::session::Session;
use crate::stop::{StopStrings, StopTokens};
use crate::text_stream::TextStream;

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
    /// Ends the answer, at once or within a layer of the token that is being computed.
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
    /// Those of them that were run through the model, one by one: all but the last as a rule.
    pub decode_tokens: usize,
    /// Time for them and for drawing; the time between the iterator's steps is left out.
    pub decode_time: Duration,
}

/// An answer in the making: an iterator of [`Event`]s, made by [`Session::generate`].
///
/// It may be dropped at any time; the session then holds the tokens that were given out.
#[derive(Debug)]
pub struct Generation<'a> {
    session: &'a mut Session,
    sampler: Sampler,
    stop_tokens: StopTokens,
    stop_strings: StopStrings,
    /// None without a tokenizer.
    text: Option<TextStream>,
    max_tokens: usize,
    cancel: CancelToken,
    stats: GenerationStats,
    /// The sampler's own copy of the logits, which penalties change.
    logits: Vec<f32>,
    state: State,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Running,
    /// The last token was given out, the last event was not.
    Ending(StopReason),
    Ended,
}

impl<'a> Generation<'a> {
    pub(crate) fn new(session: &'a mut Session, options: GenerateOptions) -> Result<Generation<'a>> {
        let model = &session.model;
        let sampler = Sampler::new(options.sampling.unwrap_or_else(|| model.sampling_defaults().clone()))?;
        let stop_strings = StopStrings::new(options.stop.iter().cloned())?;
        let text = if model.has_tokenizer() || !options.stop.is_empty() {
            Some(model.tokenizer()?.stream(true))
        } else {
            None
        };
        let stop_tokens = options.stop_tokens.unwrap_or_else(|| model.stop_tokens().clone());
        if session.tokens.is_empty() {
            return Err(Error::InvalidOption {
                option: "tokens",
                expected: "at least one token to continue".to_owned(),
                found: "none".to_owned(),
            });
        }
        let stats = GenerationStats { prompt_tokens: session.tokens.len(), ..GenerationStats::default() };
        let mut generation = Generation {
            session,
            sampler,
            stop_tokens,
            stop_strings,
            text,
            max_tokens: options.max_tokens.unwrap_or(usize::MAX),
            cancel: options.cancel,
            stats,
            logits: Vec::new(),
            state: State::Running,
        };
        generation.count_work();
        Ok(generation)
    }

    /// The seed in use: the one of the options, or the one that was taken from the system.
    pub fn seed(&self) -> u64 {
        self.sampler.seed()
    }

    fn step(&mut self) -> Result<Event> {
        if let State::Ending(reason) = &self.state {
            let reason = reason.clone();
            return self.end(reason);
        }
        if self.cancel.is_cancelled() {
            return self.end(StopReason::Cancelled);
        }
        if self.stats.generated_tokens >= self.max_tokens {
            return self.end(StopReason::MaxTokens);
        }
        if self.session.tokens().len() >= self.session.model().context() {
            return self.end(StopReason::ContextFull);
        }
        match self.session.catch_up(&self.cancel) {
            Err(Error::Cancelled) => return self.end(StopReason::Cancelled),
            other => other?,
        }
        self.count_work();
        let began = Instant::now();
        let event = self.draw();
        self.stats.decode_time += began.elapsed();
        event
    }

    /// What was computed before the first token is the prompt's.
    fn count_work(&mut self) {
        let work = self.session.take_work();
        let stats = &mut self.stats;
        let (n_tokens, time) = match stats.generated_tokens {
            0 => (&mut stats.prefill_tokens, &mut stats.prefill_time),
            _ => (&mut stats.decode_tokens, &mut stats.decode_time),
        };
        *n_tokens += work.n_tokens;
        *time += work.time;
    }

    /// The next token and its text, or the end if it is an end token.
    fn draw(&mut self) -> Result<Event> {
        self.logits.clear();
        self.logits.extend_from_slice(self.session.logits().unwrap_or_default());
        let id = self.sampler.sample(&mut self.logits, self.session.tokens(), self.stats.prompt_tokens)?;
        if self.stop_tokens.contains(id) {
            return self.end(StopReason::EndToken(id));
        }
        self.session.push_drawn(id);
        self.stats.generated_tokens += 1;
        let text = match &mut self.text {
            Some(stream) => self.stop_strings.push(&stream.push(id)?),
            None => String::new(),
        };
        if let Some(stop) = self.stop_strings.found() {
            self.state = State::Ending(StopReason::StopString(stop.to_owned()));
        }
        Ok(Event::Token { id, text })
    }

    fn end(&mut self, mut reason: StopReason) -> Result<Event> {
        self.state = State::Ended;
        let mut text = String::new();
        if let Some(stream) = &mut self.text {
            text = self.stop_strings.push(&stream.finish()?);
            match self.stop_strings.found() {
                Some(stop) => reason = StopReason::StopString(stop.to_owned()),
                None => text.push_str(&self.stop_strings.finish()),
            }
        }
        Ok(Event::Done { reason, text, stats: self.stats })
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<Event>;

    fn next(&mut self) -> Option<Result<Event>> {
        if self.state == State::Ended {
            return None;
        }
        let event = self.step();
        if event.is_err() {
            self.state = State::Ended;
        }
        Some(event)
    }
}

impl std::iter::FusedIterator for Generation<'_> {}
