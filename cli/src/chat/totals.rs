//! What answers took: the faint line after each, and the sums for /stats.

use std::time::Duration;

use crate::turn::{Turn, rate};

/// Sums over a conversation.
#[derive(Debug, Default)]
pub struct Totals {
    turns: usize,
    prefilled: usize,
    reused: usize,
    prefill: Duration,
    decoded: usize,
    decode: Duration,
}

/// The parts of the line after an answer.
pub fn of_turn(turn: &Turn) -> Vec<String> {
    vec![
        format!("prompt {} new, {:.0} tok/s", turn.prefilled(), rate(turn.prefilled(), turn.prefill)),
        format!("answer {}, {:.1} tok/s", turn.ids.len(), rate(turn.ids.len(), turn.decode)),
    ]
}

impl Totals {
    /// Counts an answer.
    pub fn add(&mut self, turn: &Turn) {
        self.turns += 1;
        self.prefilled += turn.prefilled();
        self.reused += turn.reused;
        self.prefill += turn.prefill;
        self.decoded += turn.ids.len();
        self.decode += turn.decode;
    }

    /// The parts of the line that /stats shows.
    pub fn parts(&self) -> Vec<String> {
        vec![
            format!("{} answers", self.turns),
            format!("prompts {} tokens, {:.0} tok/s", self.prefilled, rate(self.prefilled, self.prefill)),
            format!("from the cache {}", self.reused),
            format!("answers {} tokens, {:.1} tok/s", self.decoded, rate(self.decoded, self.decode)),
        ]
    }
}
