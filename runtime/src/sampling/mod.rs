//! Chooses the next token from the logits.
//!
//! The chain, in this order (the order of the reference library's logits processors):
//! 1. repetition penalty: the logit of each token of the prompt or the answer is divided by it if positive,
//!    else multiplied (CTRL, Keskar et al. 2019, section 4.1);
//! 2. presence and frequency penalty, over the answer's tokens only (as OpenAI defines them):
//!    `logit - presence * [count > 0] - frequency * count`;
//! 3. temperature: logits are divided by it; 0 means greedy: the largest logit, the lowest id among equals;
//! 4. top-k: logits below the k-th largest are dropped (equals of the k-th stay);
//! 5. top-p: the most probable tokens whose sum first reaches p stay (Holtzman et al. 2020);
//! 6. min-p: probabilities below `min_p` times the largest are dropped.
//!
//! Then one token is drawn. Probabilities are summed in f64, and the draw depends on the logits, the options
//! and the seed alone, never on threads.

mod random;

use crate::error::{Error, Result};
use random::{Xoshiro256, fresh_seed};

/// How the next token is chosen; see the module for what each does and in which order.
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

    fn has_penalty(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}

/// A token that may still be drawn.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: u32,
    /// Relative to the largest logit, so that it is at most 0; becomes the unnormalised probability.
    weight: f64,
}

/// Draws tokens; owns the random generator and its buffers.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplingOptions,
    seed: u64,
    random: Xoshiro256,
    candidates: Vec<Candidate>,
    seen: Vec<u32>,
}

impl Sampler {
    /// A sampler with checked options.
    ///
    /// # Errors
    /// Those of [`SamplingOptions::validate`].
    pub fn new(options: SamplingOptions) -> Result<Sampler> {
        options.validate()?;
        let seed = options.seed.unwrap_or_else(fresh_seed);
        Ok(Sampler { options, seed, random: Xoshiro256::new(seed), candidates: Vec::new(), seen: Vec::new() })
    }

    /// The seed in use: the one given, or the one taken from the system.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The options in use.
    pub fn options(&self) -> &SamplingOptions {
        &self.options
    }

    /// Chooses the token after `tokens`. `logits` has one entry per vocabulary id and is changed by the penalties; `tokens` is the whole
    /// sequence so far, of which the first `prompt_len` are the prompt.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if a logit is NaN or infinite, with the position `tokens.len() - 1` that they belong to;
    /// [`Error::InvalidOption`] if there is no logit.
    pub fn sample(&mut self, logits: &mut [f32], tokens: &[u32], prompt_len: usize) -> Result<u32> {
        if let Some(token) = logits.iter().position(|logit| !logit.is_finite()) {
            return Err(Error::NotFinite { position: tokens.len().saturating_sub(1), token });
        }
        if self.options.has_penalty() {
            self.penalize(logits, tokens, tokens.get(prompt_len..).unwrap_or(&[]));
        }
        let Some(best) = argmax(logits) else {
            return Err(Error::InvalidOption {
                option: "logits",
                expected: "one per vocabulary entry".to_owned(),
                found: "none".to_owned(),
            });
        };
        if self.options.temperature == 0.0 {
            return Ok(best.0);
        }
        self.gather(logits, best.1);
        self.keep_top_p();
        self.keep_min_p();
        Ok(self.draw().unwrap_or(best.0))
    }

    fn penalize(&mut self, logits: &mut [f32], tokens: &[u32], answer: &[u32]) {
        let options = &self.options;
        let clamp = |logit: f32| logit.clamp(f32::MIN, f32::MAX);
        if options.repetition_penalty != 1.0 {
            for_each_run(&mut self.seen, tokens, |id, _| {
                if let Some(logit) = logits.get_mut(id as usize) {
                    let penalty = options.repetition_penalty;
                    *logit = clamp(if *logit > 0.0 { *logit / penalty } else { *logit * penalty });
                }
            });
        }
        if options.presence_penalty != 0.0 || options.frequency_penalty != 0.0 {
            for_each_run(&mut self.seen, answer, |id, count| {
                if let Some(logit) = logits.get_mut(id as usize) {
                    *logit = clamp(*logit - options.presence_penalty - options.frequency_penalty * count as f32);
                }
            });
        }
    }

    /// Fills `candidates` with the top k, in the order of their ids, with weight exp((logit - max) / temperature).
    fn gather(&mut self, logits: &[f32], max: f32) {
        self.candidates.clear();
        let temperature = f64::from(self.options.temperature);
        let weight = |logit: f32| ((f64::from(logit) - f64::from(max)) / temperature).exp();
        let k = self.options.top_k;
        let threshold = if k == 0 || k >= logits.len() { f32::MIN } else { self.kth_largest(logits, k) };
        let kept = logits.iter().zip(0u32..).filter(|(logit, _)| **logit >= threshold);
        self.candidates.extend(kept.map(|(&logit, id)| Candidate { id, weight: weight(logit) }));
    }

    /// The k-th largest logit, for 0 < k < logits.len().
    fn kth_largest(&mut self, logits: &[f32], k: usize) -> f32 {
        // Finite floats order like these integers, which can be selected without a comparison function.
        let key = |logit: f32| {
            let bits = (logit + 0.0).to_bits();
            if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
        };
        self.seen.clear();
        self.seen.extend(logits.iter().map(|&logit| key(logit)));
        let index = logits.len() - k;
        let (_, &mut kth, _) = self.seen.select_nth_unstable(index);
        f32::from_bits(if kth >> 31 == 1 { kth & !(1 << 31) } else { !kth })
    }

    /// Keeps candidates from the most probable on while the sum of those before is below p.
    fn keep_top_p(&mut self) {
        let p = f64::from(self.options.top_p);
        if p >= 1.0 || self.candidates.len() < 2 {
            return;
        }
        let needed = p * self.candidates.iter().map(|c| c.weight).sum::<f64>();
        let likelier = |a: &Candidate, b: &Candidate| b.weight.total_cmp(&a.weight).then(a.id.cmp(&b.id));
        // The kept set is small as a rule: sort a part that is known to be the largest, and widen it when it is
        // not enough, instead of sorting a vocabulary of 128k for each token.
        let n = self.candidates.len();
        let mut part = 64.min(n);
        loop {
            if part < n {
                self.candidates.select_nth_unstable_by(part - 1, likelier);
            }
            let (largest, _) = self.candidates.split_at_mut(part);
            largest.sort_unstable_by(likelier);
            let mut before = 0.0;
            let kept = largest
                .iter()
                .take_while(|c| {
                    let keep = before < needed;
                    before += c.weight;
                    keep
                })
                .count();
            if kept < part || part == n {
                self.candidates.truncate(kept.max(1));
                return;
            }
            part = (part * 8).min(n);
        }
    }

    fn keep_min_p(&mut self) {
        if self.options.min_p > 0.0 {
            // The most probable candidate has weight 1 and is never dropped.
            let least = f64::from(self.options.min_p);
            self.candidates.retain(|c| c.weight >= least);
        }
    }

    fn draw(&mut self) -> Option<u32> {
        let total: f64 = self.candidates.iter().map(|c| c.weight).sum();
        let mut point = self.random.next_unit() * total;
        for candidate in &self.candidates {
            point -= candidate.weight;
            if point < 0.0 {
                return Some(candidate.id);
            }
        }
        // Rounding may leave a crumb after the last one.
        self.candidates.iter().rev().find(|c| c.weight > 0.0).map(|c| c.id)
    }
}

/// The largest logit with the lowest id among equals; None for no logits.
fn argmax(logits: &[f32]) -> Option<(u32, f32)> {
    logits.iter().zip(0u32..).fold(None, |best, (&logit, id)| match best {
        Some((_, value)) if logit <= value => best,
        _ => Some((id, logit)),
    })
}

/// Calls `visit` once for each distinct id of `tokens`, with its count.
fn for_each_run(scratch: &mut Vec<u32>, tokens: &[u32], mut visit: impl FnMut(u32, usize)) {
    scratch.clear();
    scratch.extend_from_slice(tokens);
    scratch.sort_unstable();
    for run in scratch.chunk_by(|a, b| a == b) {
        if let Some(&id) = run.first() {
            visit(id, run.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(options: SamplingOptions) -> Sampler {
        Sampler::new(SamplingOptions { seed: Some(options.seed.unwrap_or(1)), ..options }).expect("valid options")
    }

    /// The ids that `options` can draw from `logits`, with how often in 4000 draws.
    fn histogram(options: SamplingOptions, logits: &[f32], tokens: &[u32], prompt_len: usize) -> Vec<usize> {
        let mut sampler = sampler(options);
        let mut counts = vec![0; logits.len()];
        for _ in 0..4000 {
            let id = sampler.sample(&mut logits.to_vec(), tokens, prompt_len).expect("finite logits");
            counts[id as usize] += 1;
        }
        counts
    }

    fn drawn(options: SamplingOptions, logits: &[f32]) -> Vec<usize> {
        let counts = histogram(options, logits, &[], 0);
        (0..counts.len()).filter(|&id| counts[id] > 0).collect()
    }

    #[test]
    fn greedy_takes_the_lowest_id_among_equals() {
        let mut greedy = sampler(SamplingOptions::greedy());
        for (logits, expected) in
            [(vec![1.0, 3.0, 3.0], 1), (vec![-2.0, -2.0], 0), (vec![f32::MIN, f32::MAX], 1), (vec![-0.0, 0.0], 0)]
        {
            assert_eq!(greedy.sample(&mut logits.clone(), &[], 0).expect("finite"), expected, "{logits:?}");
        }
    }

    #[test]
    fn every_filter_keeps_what_its_definition_says() {
        let log = |p: &[f32]| -> Vec<f32> { p.iter().map(|p| p.ln()).collect() };
        let plain = SamplingOptions::plain;
        let even = log(&[0.1, 0.4, 0.3, 0.2]);
        for (name, options, logits, expected) in [
            ("no filter", plain(), even.clone(), vec![0, 1, 2, 3]),
            ("top-k", SamplingOptions { top_k: 2, ..plain() }, even.clone(), vec![1, 2]),
            ("top-k keeps equals", SamplingOptions { top_k: 1, ..plain() }, vec![1.0, 2.0, 2.0], vec![1, 2]),
            ("top-k beyond the vocabulary", SamplingOptions { top_k: 9, ..plain() }, even.clone(), vec![0, 1, 2, 3]),
            (
                "top-p stops when the sum is reached",
                SamplingOptions { top_p: 0.65, ..plain() },
                even.clone(),
                vec![1, 2],
            ),
            ("top-p keeps at least one", SamplingOptions { top_p: 0.0, ..plain() }, even.clone(), vec![1]),
            ("min-p", SamplingOptions { min_p: 0.6, ..plain() }, even.clone(), vec![1, 2]),
            ("min-p of 1 keeps the best", SamplingOptions { min_p: 1.0, ..plain() }, even.clone(), vec![1]),
            (
                "top-p counts what top-k left",
                SamplingOptions { top_k: 2, top_p: 0.57, ..plain() },
                even.clone(),
                vec![1],
            ),
            ("a tiny temperature is greedy", SamplingOptions { temperature: 1e-30, ..plain() }, even, vec![1]),
        ] {
            assert_eq!(drawn(options, &logits), expected, "{name}");
        }
    }

    #[test]
    fn top_p_over_a_flat_large_vocabulary_keeps_its_share() {
        let logits = vec![0.0; 5000];
        let mut sampler = sampler(SamplingOptions { top_p: 0.5, ..SamplingOptions::plain() });
        sampler.gather(&logits, 0.0);
        sampler.keep_top_p();
        assert_eq!(sampler.candidates.len(), 2500);
        assert!(sampler.candidates.iter().all(|c| c.id < 2500), "the lowest ids among equals");
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let logits: Vec<f32> = [0.1f32, 0.4, 0.3, 0.2].iter().map(|p| p.ln()).collect();
        let counts = histogram(SamplingOptions::plain(), &logits, &[], 0);
        for (count, expected) in counts.iter().zip([400.0, 1600.0, 1200.0, 800.0]) {
            // Four standard deviations of a binomial with n = 4000.
            assert!((*count as f64 - expected).abs() < 130.0, "{counts:?}");
        }
    }

    #[test]
    fn penalties_see_the_tokens_that_they_are_defined_over() {
        let greedy = |options: SamplingOptions| SamplingOptions { temperature: 0.0, ..options };
        let plain = SamplingOptions::plain;
        for (name, options, logits, tokens, prompt_len, expected) in [
            (
                "repetition divides positive logits, prompt included",
                SamplingOptions { repetition_penalty: 2.0, ..plain() },
                vec![3.0, 2.0],
                vec![0],
                1,
                1,
            ),
            (
                "repetition multiplies negative logits",
                SamplingOptions { repetition_penalty: 2.0, ..plain() },
                vec![-1.0, -1.5],
                vec![0],
                0,
                1,
            ),
            (
                "repetition counts once",
                SamplingOptions { repetition_penalty: 2.0, ..plain() },
                vec![3.0, 1.0],
                vec![0, 0, 0],
                0,
                0,
            ),
            (
                "presence ignores the prompt",
                SamplingOptions { presence_penalty: 2.0, ..plain() },
                vec![3.0, 2.0],
                vec![0],
                1,
                0,
            ),
            (
                "presence counts once",
                SamplingOptions { presence_penalty: 0.6, ..plain() },
                vec![3.0, 2.0],
                vec![0, 0],
                0,
                0,
            ),
            (
                "frequency counts each",
                SamplingOptions { frequency_penalty: 0.6, ..plain() },
                vec![3.0, 2.0],
                vec![0, 0],
                0,
                1,
            ),
            (
                "ids beyond the logits are ignored",
                SamplingOptions { repetition_penalty: 2.0, ..plain() },
                vec![3.0, 2.0],
                vec![9],
                0,
                0,
            ),
        ] {
            let id = sampler(greedy(options)).sample(&mut logits.clone(), &tokens, prompt_len).expect("finite");
            assert_eq!(id, expected, "{name}");
        }
    }

    #[test]
    fn the_same_seed_draws_the_same_tokens_and_a_missing_one_is_told() {
        let logits: Vec<f32> = (0..100).map(|i| (i as f32 * 0.7).sin()).collect();
        let run = |seed| {
            let mut sampler = Sampler::new(SamplingOptions { seed, ..SamplingOptions::default() }).expect("valid");
            let ids: Vec<u32> = (0..50).map(|_| sampler.sample(&mut logits.clone(), &[], 0).expect("finite")).collect();
            (sampler.seed(), ids)
        };
        assert_eq!(run(Some(7)), run(Some(7)));
        assert_ne!(run(Some(7)).1, run(Some(8)).1);
        let (seed, ids) = run(None);
        assert_eq!(run(Some(seed)).1, ids, "the seed taken from the system can be given again");
    }

    #[test]
    fn logits_that_are_not_finite_name_position_and_token() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for options in [SamplingOptions::greedy(), SamplingOptions::default()] {
                match sampler(options).sample(&mut [0.0, bad, 1.0], &[5, 6, 7], 2) {
                    Err(Error::NotFinite { position: 2, token: 1 }) => {}
                    other => panic!("{bad}: {other:?}"),
                }
            }
        }
        assert!(sampler(SamplingOptions::plain()).sample(&mut [], &[], 0).is_err(), "no logits");
    }

    #[test]
    fn values_out_of_range_are_named() {
        let plain = SamplingOptions::plain;
        for (option, options) in [
            ("temperature", SamplingOptions { temperature: -0.1, ..plain() }),
            ("temperature", SamplingOptions { temperature: f32::NAN, ..plain() }),
            ("temperature", SamplingOptions { temperature: f32::INFINITY, ..plain() }),
            ("top_p", SamplingOptions { top_p: 1.1, ..plain() }),
            ("top_p", SamplingOptions { top_p: f32::NAN, ..plain() }),
            ("min_p", SamplingOptions { min_p: -0.5, ..plain() }),
            ("repetition_penalty", SamplingOptions { repetition_penalty: 0.0, ..plain() }),
            ("repetition_penalty", SamplingOptions { repetition_penalty: f32::INFINITY, ..plain() }),
            ("presence_penalty", SamplingOptions { presence_penalty: 2.5, ..plain() }),
            ("frequency_penalty", SamplingOptions { frequency_penalty: f32::NAN, ..plain() }),
        ] {
            match Sampler::new(options) {
                Err(Error::InvalidOption { option: named, .. }) => assert_eq!(named, option),
                other => panic!("{option}: {other:?}"),
            }
        }
    }

    #[test]
    fn extreme_values_do_not_end_in_infinities() {
        let tokens = [0, 1];
        for penalty in [f32::MIN_POSITIVE, f32::MAX] {
            let options = SamplingOptions { repetition_penalty: penalty, ..SamplingOptions::plain() };
            let mut logits = [f32::MAX, f32::MIN, 1.0];
            assert!(sampler(options).sample(&mut logits, &tokens, 0).is_ok(), "penalty {penalty}");
            assert!(logits.iter().all(|l| l.is_finite()), "penalty {penalty}: {logits:?}");
        }
    }
}
