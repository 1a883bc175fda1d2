//! The softmax of attention, step by step: scores become weights relative to the largest score so far.
//!
//! Online softmax: Milakov and Gimelshein, arXiv:1805.02867.

use std::ops::Range;

use crate::cpu::isa::elementwise::Loop;
use crate::cpu::isa::{LANES, QUERIES};
use crate::cpu::math::{exp, tanh};

/// Scores of some queries over the keys of a step, and what the queries have summed up to now.
pub(in crate::cpu) struct Softmax<'a> {
    /// Each query's scores, which become weights: `n_keys` of them, a multiple of [`LANES`], in rows that start `stride`
    /// apart.
    pub scores: &'a mut [f32],
    pub stride: usize,
    pub n_keys: usize,
    /// The scores of each query that count. The weights of others are 0, whatever their scores are.
    pub visible: &'a [Range<usize>],
    /// Factors of the scores, one for each key: the scales of int8 keys.
    pub key_scales: Option<&'a [f32]>,
    /// Factors of the weights, once their sum is taken: the scales of int8 values. 0 where no token is.
    pub value_scales: Option<&'a [f32]>,
    /// Each query's result, see [`result_len`].
    pub results: &'a mut [f32],
    pub result_len: usize,
    /// What each query's sums of values are still to be multiplied with, to be relative to the new largest score.
    pub factors: &'a mut [f32; QUERIES],
}

/// The length of a query's result: sums of weighted values, then the sum of the weights in [`LANES`] parts, both
/// relative to a reference, the largest score so far or one not far below it; then the reference, and nothing else in its
/// [`LANES`].
pub(super) fn result_len(padded_head_dim: usize) -> usize {
    padded_head_dim + 2 * LANES
}

/// Nothing seen yet.
pub(super) fn start(result: &mut [f32]) {
    let largest_at = result.len() - LANES;
    result.fill(0.0);
    result[largest_at] = f32::NEG_INFINITY;
}

impl Loop for Softmax<'_> {
    type Output = ();

    /// Turns scores into weights e^(score - largest), and says what this makes of old sums.
    #[inline(always)]
    fn run(self) {
        let rows = self.scores.chunks_mut(self.stride).zip(self.results.chunks_exact_mut(self.result_len));
        for (((scores, result), visible), factor) in rows.zip(self.visible).zip(self.factors) {
            let scores = &mut scores[..self.n_keys];
            *factor = 1.0;
            if let Some(scales) = self.key_scales {
                scores.iter_mut().zip(scales).for_each(|(score, scale)| *score *= scale);
            }
            hide(scores, visible);
            let lanes = &mut scores.as_chunks_mut::<LANES>().0[vectors(visible)];
            let mut largest = [result[self.result_len - LANES]; LANES];
            for scores in lanes.iter() {
                for (largest, score) in largest.iter_mut().zip(scores) {
                    *largest = if *score > *largest { *score } else { *largest };
                }
            }
            let largest = largest.into_iter().fold(f32::NEG_INFINITY, f32::max);
            let (totals, tail) = result[self.result_len - 2 * LANES..].split_at_mut(LANES);
            if largest != tail[0] {
                *factor = exp(tail[0] - largest);
                tail[0] = largest;
            }
            totals.iter_mut().for_each(|total| *total *= *factor);
            for scores in lanes.iter_mut() {
                for (total, score) in totals.iter_mut().zip(scores) {
                    *score = exp(*score - largest);
                    *total += *score;
                }
            }
            if let Some(scales) = self.value_scales {
                scores.iter_mut().zip(scales).for_each(|(weight, scale)| *weight *= scale);
            }
        }
    }
}

/// The vectors that hold a visible score.
#[inline(always)]
pub(in crate::cpu) fn vectors(visible: &Range<usize>) -> Range<usize> {
    if visible.is_empty() { 0..0 } else { visible.start / LANES..visible.end.div_ceil(LANES) }
}

/// Makes scores that are not visible negative infinity where their vector holds a visible one, and 0 elsewhere.
#[inline(always)]
pub(in crate::cpu) fn hide(scores: &mut [f32], visible: &Range<usize>) {
    if *visible == (0..scores.len()) {
        return;
    }
    if visible.is_empty() {
        scores.fill(0.0);
        return;
    }
    let vectors = vectors(visible);
    scores[..vectors.start * LANES].fill(0.0);
    scores[vectors.start * LANES..visible.start].fill(f32::NEG_INFINITY);
    scores[visible.end..vectors.end * LANES].fill(f32::NEG_INFINITY);
    scores[vectors.end * LANES..].fill(0.0);
}

/// `score = cap * tanh(score / cap)`, after the scales of int8 keys.
pub(in crate::cpu) struct Soften<'a> {
    pub scores: &'a mut [f32],
    pub key_scales: Option<&'a [f32]>,
    pub cap: f32,
}

impl Loop for Soften<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        if let Some(scales) = self.key_scales {
            self.scores.iter_mut().zip(scales).for_each(|(score, scale)| *score *= scale);
        }
        self.scores.iter_mut().for_each(|score| *score = self.cap * tanh(*score / self.cap));
    }
}

/// The output of a query whose keys were not split.
pub(super) fn finish(result: &[f32], out: &mut [f32]) {
    let total: f32 = result[result.len() - 2 * LANES..].iter().take(LANES).sum();
    let inverse = 1.0 / total;
    out.iter_mut().zip(result).for_each(|(out, sum)| *out = sum * inverse);
}

/// Puts the results of one query's parts together, brought to one largest score.
pub(super) fn combine<'a>(results: impl Iterator<Item = &'a [f32]> + Clone, out: &mut [f32]) {
    let largest_of = |result: &[f32]| result[result.len() - LANES];
    let total_of = |result: &[f32]| result[result.len() - 2 * LANES..].iter().take(LANES).sum::<f32>();
    let largest = results.clone().map(largest_of).fold(f32::NEG_INFINITY, f32::max);
    let mut total = 0.0;
    out.fill(0.0);
    for result in results {
        let (part_largest, part_total) = (largest_of(result), total_of(result));
        if part_largest == f32::NEG_INFINITY && part_total == 0.0 {
            continue; // The window hides the whole part.
        }
        let factor = exp(part_largest - largest);
        total += factor * part_total;
        out.iter_mut().zip(result).for_each(|(out, sum)| *out += factor * sum);
    }
    let inverse = 1.0 / total;
    out.iter_mut().for_each(|out| *out *= inverse);
}
