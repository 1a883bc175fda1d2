//! One answer: the prompt goes in, the text comes out piece by piece, and what it took is counted.

use std::time::{Duration, Instant};

use anyhow::Result;
use infer_runtime::{
    CancelToken, Error, Event, GenerateOptions, Model, SamplingOptions, Session, StopReason, StopTokens,
};

use crate::args::Cli;
use crate::interrupt::Interrupts;
use crate::prompt::Prompter;
use crate::sampling;
use crate::terminal::{self, Unit};
use crate::values;

/// What an answer may be and where it ends.
#[derive(Debug, Clone)]
pub struct TurnOptions {
    /// How tokens are chosen.
    pub sampling: SamplingOptions,
    /// Most tokens.
    pub max_tokens: Option<usize>,
    /// Texts that end it.
    pub stop: Vec<String>,
    /// Tokens that end it.
    pub stop_tokens: StopTokens,
}

impl TurnOptions {
    /// The model's defaults with the flags that were given.
    pub fn new(cli: &Cli, model: &Model, prompter: &Prompter) -> TurnOptions {
        let end_of_turn = prompter.end_of_turn();
        TurnOptions {
            stop_tokens: StopTokens::new(model.stop_tokens().ids().iter().copied().chain(end_of_turn)),
            sampling: sampling::options(&cli.sampling, model.sampling_defaults()),
            max_tokens: cli.answer.max_tokens,
            stop: cli.answer.stop.clone(),
        }
    }

    /// Sets one option by the name of its flag (the chat's `/set`).
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name.trim_start_matches('-').replace('_', "-").as_str() {
            "max-tokens" if value == "none" => self.max_tokens = None,
            "max-tokens" => self.max_tokens = Some(values::count(value)?),
            name => sampling::set(&mut self.sampling, name, value)?,
        }
        Ok(())
    }

    /// Each option by the name of its flag.
    pub fn list(&self) -> Vec<(&'static str, String)> {
        let mut list = sampling::list(&self.sampling);
        list.push(("max-tokens", self.max_tokens.map_or("none".to_owned(), |n| n.to_string())));
        list
    }
}

/// An answer and what it took.
#[derive(Debug)]
pub struct Turn {
    /// Its text.
    pub text: String,
    /// Its tokens.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub reason: StopReason,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that the cache held already.
    pub reused: usize,
    /// What makes the random choices repeatable.
    pub seed: u64,
    /// Time for the rest of them.
    pub prefill: Duration,
    /// Time for the answer.
    pub decode: Duration,
}

impl Turn {
    /// Tokens of the prompt that were computed.
    pub fn prefilled(&self) -> usize {
        self.prompt_tokens.saturating_sub(self.reused)
    }
}

/// Lets the model answer after `prompt`; `show` gets each piece of text. Ctrl-C ends the answer, not the program.
pub fn run(
    session: &mut Session,
    prompt: &[u32],
    options: &TurnOptions,
    interrupts: &Interrupts,
    show: impl FnMut(&str) -> Result<()>,
) -> Result<Turn> {
    interrupts.cancellable(|cancel| answer(session, prompt, options, cancel, show))
}

fn answer(
    session: &mut Session,
    prompt: &[u32],
    options: &TurnOptions,
    cancel: &CancelToken,
    mut show: impl FnMut(&str) -> Result<()>,
) -> Result<Turn> {
    let mut turn = Turn {
        text: String::new(),
        ids: Vec::new(),
        reason: StopReason::Cancelled,
        prompt_tokens: prompt.len(),
        reused: 0,
        seed: 0,
        prefill: Duration::ZERO,
        decode: Duration::ZERO,
    };
    let start = Instant::now();
    let bar = terminal::progress_bar("reading", &Unit::Tokens);
    let synced = session.sync_to_with(prompt, cancel, |progress| terminal::advance(&bar, progress));
    drop(bar);
    match synced {
        Ok(reused) => turn.reused = reused,
        Err(Error::Cancelled) => return Ok(turn),
        Err(error) => return Err(error.into()),
    }
    turn.prefill = start.elapsed();
    let generation = session.generate(GenerateOptions {
        max_tokens: options.max_tokens,
        sampling: Some(options.sampling.clone()),
        stop: options.stop.clone(),
        stop_tokens: Some(options.stop_tokens.clone()),
        cancel: cancel.clone(),
    })?;
    turn.seed = generation.seed();
    for event in generation {
        let event = event?;
        turn.text.push_str(event.text());
        show(event.text())?;
        match event {
            Event::Token { id, .. } => turn.ids.push(id),
            Event::Done { reason, stats, .. } => {
                turn.reason = reason;
                turn.decode = stats.decode_time;
            }
            _ => {}
        }
    }
    Ok(turn)
}

/// Tokens a second; 0 if it took no time.
pub fn rate(tokens: usize, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { tokens as f64 / time.as_secs_f64() }
}
