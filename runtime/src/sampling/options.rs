//! How tokens are chosen: the numbers, and which of them are possible.

use crate::error::{Error, Result};

/// How the next token is chosen; [the module](crate::sampling) says what each does and in which order.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingOptions {
    /// 0 is greedy; larger is more random.
    pub temperature: f32,
    /// Keep the k most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the most probable tokens whose probabilities sum to p; 1 keeps all.
    pub top_p: f32,
    /// Drop tokens less probable than this share of the most probable one; 0 keeps all.
    pub min_p: f32,
    /// Above 1 discourages tokens of the prompt and the answer; 1 does nothing.
    pub repetition_penalty: f32,
    /// Subtracted once from the logit of each token of the answer.
    pub presence_penalty: f32,
    /// Subtracted from a token's logit for each time that the answer has it.
    pub frequency_penalty: f32,
    /// The same seed draws the same tokens; without one, each sampler takes its own.
    pub seed: Option<u64>,
}

impl Default for SamplingOptions {
    /// Temperature 0.8 and top-p 0.95; nothing else.
    fn default() -> Self {
        SamplingOptions { temperature: 0.8, top_p: 0.95, ..SamplingOptions::plain() }
    }
}

impl SamplingOptions {
    /// Always the most probable token.
    pub fn greedy() -> Self {
        SamplingOptions { temperature: 0.0, ..SamplingOptions::plain() }
    }

    /// The model's own distribution: temperature 1, no filter, no penalty.
    pub fn plain() -> Self {
        SamplingOptions {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: None,
        }
    }

    /// Checks every value.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] names the option, the value and the range. NaN is in no range.
    pub fn validate(&self) -> Result<()> {
        let check = |option, value: f32, range: std::ops::RangeInclusive<f32>, expected: &str| {
            if range.contains(&value) {
                Ok(())
            } else {
                Err(Error::InvalidOption { option, expected: expected.to_owned(), found: value.to_string() })
            }
        };
        check("temperature", self.temperature, 0.0..=f32::MAX, "a finite number, 0 or more")?;
        check("top_p", self.top_p, 0.0..=1.0, "a number from 0 to 1")?;
        check("min_p", self.min_p, 0.0..=1.0, "a number from 0 to 1")?;
        check("repetition_penalty", self.repetition_penalty, f32::MIN_POSITIVE..=f32::MAX, "a finite number above 0")?;
        check("presence_penalty", self.presence_penalty, -2.0..=2.0, "a number from -2 to 2")?;
        check("frequency_penalty", self.frequency_penalty, -2.0..=2.0, "a number from -2 to 2")
    }

    /// Whether any penalty changes logits.
    pub(super) fn has_penalty(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}
