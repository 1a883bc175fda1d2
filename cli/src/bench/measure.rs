//! Times the model, alternating with the limits of the machine: neighbours come and go, so both are measured under the
//! same conditions or not at all.

use std::time::{Duration, Instant};

use anyhow::Result;
use infer_kernels::cpu::probe::Operation;
use infer_runtime::{Cost, Model, Profile, Session};

use super::limits::Limits;

/// What the model does with the tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Many tokens of a sequence at a time.
    Prefill,
    /// One token of each sequence at a time.
    Decode,
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub phase: Phase,
    /// Sequences.
    pub batch: usize,
    /// Tokens that each sequence has before.
    pub depth: usize,
    /// New tokens of each sequence.
    pub tokens: usize,
}

/// Which limit a speed is compared with: the one that would take longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Reading weights and cache.
    Memory,
    /// Multiplying.
    Compute,
}

/// The outcome of a case.
pub struct Measured {
    pub case: Case,
    /// Tokens per second, of all sequences together: median, least, most.
    pub tok_s: [f64; 3],
    /// Bytes of weights and cache read per second, in 10^9.
    pub gb_s: f64,
    /// Operations of matrix products and attention per second, in 10^9.
    pub gops: f64,
    pub limit: Limit,
    /// Of the limit, in the unit of `gb_s` or `gops`.
    pub limit_value: f64,
    pub share: f64,
    /// Time of each operation for one token; empty unless asked for.
    pub profile: Profile,
}

/// A model and how it is measured.
pub struct Bench<'a> {
    pub model: &'a Model,
    pub cost: &'a Cost,
    /// The arithmetic that sets the limit.
    pub compute: Operation,
    pub repetitions: usize,
}

impl Bench<'_> {
    /// Measures one case.
    ///
    /// `done` is called after each repetition, and its time counts nowhere.
    pub fn measure(&self, case: &Case, limits: &mut Limits, profile: bool, done: &dyn Fn()) -> Result<Measured> {
        let mut sessions: Vec<Session> = (0..case.batch).map(|_| self.model.session()).collect();
        // Untimed: takes the memory of buffers and cache.
        self.go_to(&mut sessions, case.depth)?;
        self.work(&mut sessions, &Case { tokens: case.tokens.min(8), ..*case })?;
        let (mut bandwidths, mut peaks, mut speeds) = (Vec::new(), Vec::new(), Vec::new());
        let mut total: Profile = Vec::new();
        let (n_tokens, mut experts) = ((case.batch * case.tokens) as f64, 0);
        for _ in 0..self.repetitions {
            self.go_to(&mut sessions, case.depth)?;
            bandwidths.push(limits.read_bandwidth());
            peaks.push(limits.peak(self.compute));
            if profile {
                self.model.start_profile();
            }
            let experts_before = self.model.experts_read();
            let start = Instant::now();
            self.work(&mut sessions, case)?;
            speeds.push(n_tokens / start.elapsed().as_secs_f64());
            experts += self.model.experts_read().saturating_sub(experts_before);
            if profile {
                add(&mut total, self.model.stop_profile());
            }
            done();
        }
        bandwidths.push(limits.read_bandwidth());
        peaks.push(limits.peak(self.compute));

        let per_token = 1.0 / (n_tokens * self.repetitions as f64);
        let (bandwidth, peak, tok_s) = (median(&mut bandwidths), median(&mut peaks), median(&mut speeds));
        let (bytes, operations) = self.of_token(case, experts as f64 * per_token);
        let (gb_s, gops) = (bytes * tok_s / 1e9, operations * tok_s / 1e9);
        let (memory, compute) = (gb_s * 1e9 / bandwidth, gops * 1e9 / peak);
        let (limit, limit_value, share) = if memory >= compute {
            (Limit::Memory, bandwidth / 1e9, memory)
        } else {
            (Limit::Compute, peak / 1e9, compute)
        };
        let (least, most) = (speeds.first().copied(), speeds.last().copied());
        let profile = total.into_iter().map(|(operation, time)| (operation, time.mul_f64(per_token))).collect();
        let tok_s = [tok_s, least.unwrap_or(tok_s), most.unwrap_or(tok_s)];
        Ok(Measured { case: *case, tok_s, gb_s, gops, limit, limit_value, share, profile })
    }

    /// Brings every session to `depth` tokens, and its cache with it.
    fn go_to(&self, sessions: &mut [Session], depth: usize) -> Result<()> {
        for (index, session) in sessions.iter_mut().enumerate() {
            session.truncate(depth);
            let missing = depth - session.tokens().len();
            session.prefill(&self.tokens(index, missing))?;
        }
        Ok(())
    }

    fn work(&self, sessions: &mut [Session], case: &Case) -> Result<()> {
        let tokens: Vec<Vec<u32>> = (0..sessions.len()).map(|index| self.tokens(index + 1, case.tokens)).collect();
        match (case.phase, &mut *sessions) {
            (Phase::Prefill, [session]) => tokens.iter().try_for_each(|tokens| session.prefill(tokens))?,
            (Phase::Prefill, _) => {
                let mut batch: Vec<_> = sessions.iter_mut().zip(tokens.iter().map(Vec::as_slice)).collect();
                self.model.forward_batch(&mut batch)?;
            }
            (Phase::Decode, _) => {
                for step in 0..case.tokens {
                    let token = tokens.iter().map(|tokens| tokens.get(step..=step).unwrap_or_default());
                    let mut batch: Vec<_> = sessions.iter_mut().zip(token).collect();
                    self.model.forward_batch(&mut batch)?;
                }
            }
        }
        Ok(())
    }

    /// Ids from all over the vocabulary, so that rows of the embedding are not in the cache.
    fn tokens(&self, seed: usize, n: usize) -> Vec<u32> {
        let vocab_size = self.model.spec().vocab_size.max(1) as u64;
        let id = |index: usize| ((seed + 1) * 7919 + index) as u64 * 2_654_435_761 % vocab_size;
        (0..n).map(|index| u32::try_from(id(index)).unwrap_or(0)).collect()
    }

    /// Bytes read and operations done for each token, of which each reads `experts` experts on average.
    fn of_token(&self, case: &Case, experts: f64) -> (f64, f64) {
        let Case { phase, batch, depth, tokens } = *case;
        let (depth, n_tokens) = (depth as f64, tokens as f64);
        match phase {
            Phase::Decode => {
                let middle = depth + (n_tokens - 1.0) / 2.0;
                let bytes = self.cost.weight_bytes(1.0 / batch as f64, experts) + self.cost.cache_bytes(middle);
                (bytes, self.cost.operations(tokens, depth, tokens) / n_tokens)
            }
            Phase::Prefill => {
                let all = batch * tokens;
                let chunk = if batch == 1 { self.model.prefill_chunk() } else { Model::MAX_PASS_ROWS };
                let passes = all.div_ceil(chunk) as f64 / all as f64;
                (self.cost.weight_bytes(passes, experts), self.cost.operations(tokens, depth, 1) / n_tokens)
            }
        }
    }
}

fn add(total: &mut Profile, profile: Profile) {
    for (operation, time) in profile {
        match total.iter_mut().find(|(other, _)| *other == operation) {
            Some((_, sum)) => *sum += time,
            None => total.push((operation, time)),
        }
    }
}

/// Sorts. The mean of the middle two of an even number.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let at = |index: usize| values.get(index).copied().unwrap_or(0.0);
    if values.len() % 2 == 1 { at(middle) } else { (at(middle.saturating_sub(1)) + at(middle)) / 2.0 }
}

/// Time of a profile together.
pub fn sum(profile: &Profile) -> Duration {
    profile.iter().map(|(_, time)| *time).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let cases: [(&[f64], f64); 5] =
            [(&[], 0.0), (&[3.0], 3.0), (&[4.0, 1.0], 2.5), (&[9.0, 1.0, 2.0], 2.0), (&[8.0, 1.0, 2.0, 4.0], 3.0)];
        for (values, expected) in cases {
            assert_eq!(median(&mut values.to_vec()), expected, "{values:?}");
        }
    }
}
