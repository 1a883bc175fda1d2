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
//! Then one token is drawn: ids are passed in their order until the drawn share of the probability is reached.
//! Probabilities are summed in f64, and the draw depends on the logits, the options and the seed alone, never on
//! threads or instructions.
//!
//! Nothing is sorted but a few tokens about the border of top-p: a vocabulary of 128k takes a few passes of vector code.

mod options;
mod random;

use infer_kernels::Isa;
use infer_kernels::cpu::logits::{BLOCK, Mass, block_maxima, mass_from, weigh};

use crate::error::{Error, Result};
pub use options::SamplingOptions;
use random::{Xoshiro256, fresh_seed};

/// Weights of a part that is passed over as a whole where nothing in it is looked for.
const PART: usize = 256;

/// Tokens about the border of top-p that are sorted.
const MOST_SORTED: usize = 512;

/// Draws tokens; owns the random generator and its buffers.
#[derive(Clone, Debug)]
pub struct Sampler {
    options: SamplingOptions,
    isa: Isa,
    seed: u64,
    random: Xoshiro256,
    /// The largest logit of each block.
    maxima: Vec<f32>,
    /// With top-k, the ids that it leaves and their logits; else both are empty.
    kept: (Vec<u32>, Vec<f32>),
    /// The probability of each id, or of each kept one, as a multiple of the largest.
    weights: Vec<f32>,
    /// The sum of each part of the weights.
    sums: Vec<f64>,
    /// How often each id was seen; zeros between two draws.
    counts: Vec<u32>,
    /// Logits as integers of the same order; indices about the border of top-p.
    scratch: Vec<u32>,
}

impl Sampler {
    /// A sampler with checked options.
    ///
    /// # Errors
    /// Those of [`SamplingOptions::validate`], and [`Error::Kernel`] if `INFER_ISA` names no instruction set of this CPU.
    pub fn new(options: SamplingOptions) -> Result<Sampler> {
        options.validate()?;
        let seed = options.seed.unwrap_or_else(fresh_seed);
        Ok(Sampler {
            options,
            isa: Isa::from_env()?,
            seed,
            random: Xoshiro256::new(seed),
            maxima: Vec::new(),
            kept: Default::default(),
            weights: Vec::new(),
            sums: Vec::new(),
            counts: Vec::new(),
            scratch: Vec::new(),
        })
    }

    /// The seed in use: the one given, or the one taken from the system.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The options in use.
    pub fn options(&self) -> &SamplingOptions {
        &self.options
    }

    /// Chooses the token after `tokens`. `logits` has one entry per vocabulary id and is changed by the penalties;
    /// `tokens` is the whole sequence so far, of which the first `prompt_len` are the prompt.
    ///
    /// # Errors
    /// [`Error::NotFinite`] if a logit is NaN or infinite, with the position `tokens.len() - 1` that they belong to;
    /// [`Error::InvalidOption`] if there is no logit.
    pub fn sample(&mut self, logits: &mut [f32], tokens: &[u32], prompt_len: usize) -> Result<u32> {
        if !block_maxima(self.isa, logits, &mut self.maxima) {
            let token = logits.iter().position(|logit| !logit.is_finite()).unwrap_or(0);
            return Err(Error::NotFinite { position: tokens.len().saturating_sub(1), token });
        }
        if self.options.has_penalty() {
            self.penalize(logits, tokens, tokens.get(prompt_len..).unwrap_or(&[]));
            block_maxima(self.isa, logits, &mut self.maxima);
        }
        let Some((best, largest)) = self.best(logits) else {
            return Err(Error::InvalidOption {
                option: "logits",
                expected: "one per vocabulary entry".to_owned(),
                found: "none".to_owned(),
            });
        };
        if self.options.temperature == 0.0 {
            return Ok(best);
        }
        self.weigh(logits, largest);
        // The most probable token has weight 1 and is never dropped.
        let least = self.keep_top_p().max(self.options.min_p);
        let drawn = self.draw(least).and_then(|index| match self.kept.0.as_slice() {
            [] => u32::try_from(index).ok(),
            ids => ids.get(index).copied(),
        });
        Ok(drawn.unwrap_or(best))
    }

    fn penalize(&mut self, logits: &mut [f32], tokens: &[u32], answer: &[u32]) {
        let options = &self.options;
        let clamp = |logit: f32| logit.clamp(f32::MIN, f32::MAX);
        self.counts.resize(logits.len(), 0);
        if options.repetition_penalty != 1.0 {
            for_each_count(&mut self.counts, tokens, |id, _| {
                if let Some(logit) = logits.get_mut(id) {
                    let penalty = options.repetition_penalty;
                    *logit = clamp(if *logit > 0.0 { *logit / penalty } else { *logit * penalty });
                }
            });
        }
        if options.presence_penalty != 0.0 || options.frequency_penalty != 0.0 {
            for_each_count(&mut self.counts, answer, |id, count| {
                if let Some(logit) = logits.get_mut(id) {
                    *logit = clamp(*logit - options.presence_penalty - options.frequency_penalty * count as f32);
                }
            });
        }
    }

    /// The largest logit with the lowest id among equals; None for no logits.
    fn best(&self, logits: &[f32]) -> Option<(u32, f32)> {
        let largest = self.maxima.iter().copied().reduce(f32::max)?;
        let block = self.maxima.iter().position(|maximum| *maximum == largest)?;
        let ids = (0u32..).zip(logits).skip(block * BLOCK);
        ids.take(BLOCK).find(|(_, logit)| **logit == largest).map(|(id, _)| (id, largest))
    }

    /// Weights of all tokens, or of the top k.
    fn weigh(&mut self, logits: &[f32], largest: f32) {
        let k = self.options.top_k;
        self.kept.0.clear();
        let logits = if k == 0 || k >= logits.len() {
            logits
        } else {
            self.keep_top_k(logits, k);
            &self.kept.1
        };
        weigh(self.isa, logits, largest, self.options.temperature, &mut self.weights);
    }

    /// Finds the ids and logits of the k largest logits, and of equals of the last, for 0 < k < logits.len().
    fn keep_top_k(&mut self, logits: &[f32], k: usize) {
        // The k largest maxima are k logits, so the k-th largest logit is not below the least of them.
        self.scratch.clear();
        self.scratch.extend(self.maxima.iter().map(|maximum| order(*maximum)));
        let bound = if k <= self.maxima.len() { kth_largest(&mut self.scratch, k) } else { 0 };
        self.scratch.clear();
        for (block, maximum) in logits.chunks(BLOCK).zip(&self.maxima) {
            if order(*maximum) >= bound {
                self.scratch.extend(block.iter().map(|logit| order(*logit)).filter(|key| *key >= bound));
            }
        }
        let kth = kth_largest(&mut self.scratch, k);
        let (ids, kept) = &mut self.kept;
        kept.clear();
        for ((block, maximum), first) in logits.chunks(BLOCK).zip(&self.maxima).zip((0u32..).step_by(BLOCK)) {
            if order(*maximum) >= kth {
                for (id, &logit) in (first..).zip(block).filter(|(_, logit)| order(**logit) >= kth) {
                    ids.push(id);
                    kept.push(logit);
                }
            }
        }
    }

    /// Finds the most probable tokens, from the first on while the sum of those before is below p: returns their
    /// least weight. Others of that weight become 0.
    fn keep_top_p(&mut self) -> f32 {
        let (isa, p) = (self.isa, f64::from(self.options.top_p));
        if p >= 1.0 || self.weights.len() < 2 {
            return 0.0;
        }
        let from = |least: f32| mass_from(isa, &self.weights, least);
        let total = from(0.0).sum;
        // Above 0, so that one token stays.
        let needed = (p * total).max(f64::MIN_POSITIVE);
        // Tokens below the mean of the rest have less than the rest together, so the border is not among them.
        let mut low = ((1.0 - p) * total / self.weights.len() as f64).min(1.0) as f32;
        let mut high = f32::INFINITY;
        let (mut above, mut all) = (Mass::default(), from(low));
        // The border lies between: the mass from `low` on is enough, that from `high` on is not. As bits, positive
        // floats are ordered like integers.
        while all.count - above.count > MOST_SORTED {
            let (low_bits, high_bits) = (low.to_bits(), high.min(2.0).to_bits());
            if high_bits - low_bits <= 1 {
                break;
            }
            let middle = f32::from_bits(low_bits + (high_bits - low_bits) / 2);
            let mass = from(middle);
            if mass.sum >= needed { (low, all) = (middle, mass) } else { (high, above) = (middle, mass) }
        }
        self.scratch.clear();
        for (weights, first) in self.weights.chunks(PART).zip((0u32..).step_by(PART)) {
            if mass_from(isa, weights, low).count > 0 {
                let between = (first..).zip(weights).filter(|(_, weight)| (low..high).contains(*weight));
                self.scratch.extend(between.map(|(index, _)| index));
            }
        }
        let weights = &mut self.weights;
        let weight = |index: &u32| weights.get(*index as usize).copied().unwrap_or(0.0);
        // Stable: among equals the lowest id is first.
        self.scratch.sort_by(|a, b| weight(b).total_cmp(&weight(a)));
        let (mut before, mut least) = (above.sum, high.min(1.0));
        for index in &self.scratch {
            let Some(weight) = weights.get_mut(*index as usize) else { continue };
            if before < needed {
                before += f64::from(*weight);
                least = *weight;
            } else if *weight == least {
                *weight = 0.0;
            } else {
                break;
            }
        }
        least
    }

    /// Draws an index of the weights that are at least `least`.
    fn draw(&mut self, least: f32) -> Option<usize> {
        let isa = self.isa;
        self.sums.clear();
        self.sums.extend(self.weights.chunks(PART).map(|weights| mass_from(isa, weights, least).sum));
        let mut point = self.random.next_unit() * self.sums.iter().sum::<f64>();
        let likely = |weight: f32| weight >= least && weight > 0.0;
        for ((weights, sum), first) in self.weights.chunks(PART).zip(&self.sums).zip((0..).step_by(PART)) {
            if point >= *sum {
                point -= sum;
                continue;
            }
            for (index, &weight) in (first..).zip(weights).filter(|(_, weight)| likely(**weight)) {
                point -= f64::from(weight);
                if point < 0.0 {
                    return Some(index);
                }
            }
        }
        // Rounding may leave a crumb after the last one.
        self.weights.iter().rposition(|&weight| likely(weight))
    }
}

/// An integer for each finite float, of the same order; equal for both zeros.
fn order(logit: f32) -> u32 {
    let bits = (logit + 0.0).to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

/// The k-th largest of at least k values, for k > 0. Changes their order.
fn kth_largest(values: &mut [u32], k: usize) -> u32 {
    let index = values.len().saturating_sub(k);
    if index < values.len() { *values.select_nth_unstable(index).1 } else { 0 }
}

/// Calls `visit` once for each distinct id of `tokens` that has a count, with how often it comes. The counts are zeros
/// before and after.
fn for_each_count(counts: &mut [u32], tokens: &[u32], mut visit: impl FnMut(usize, u32)) {
    for &token in tokens {
        if let Some(count) = counts.get_mut(token as usize) {
            *count += 1;
        }
    }
    for &token in tokens {
        if let Some(count) = counts.get_mut(token as usize)
            && *count > 0
        {
            visit(token as usize, std::mem::take(count));
        }
    }
}

#[cfg(test)]
mod tests;
