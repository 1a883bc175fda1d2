//! Turns a [`Rope`] into the cosines and sines of one batch.
//!
//! Nothing is tabulated: a pass computes rotary_dim / 2 pairs for each of its rows, once for all layers that share the
//! embedding. So dynamic scaling, where every length has frequencies of its own, needs no second path.

use crate::model::rope_scaling;
use crate::model::spec::{Rope, RopeScaling};

/// Cosines and sines of the rows of a batch, both [n_rows, rotary_dim / 2].
#[derive(Debug, Default, Clone)]
pub(crate) struct RopeRows {
    pub half_dim: usize,
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
}

impl RopeRows {
    /// The pair of slices of one row.
    pub fn row(&self, row: usize) -> (&[f32], &[f32]) {
        let range = row * self.half_dim..(row + 1) * self.half_dim;
        (&self.cos[range.clone()], &self.sin[range])
    }

    /// Begins a batch.
    pub fn clear(&mut self, rope: &Rope) {
        self.half_dim = rope.rotary_dim / 2;
        self.cos.clear();
        self.sin.clear();
    }

    /// Appends rows for `positions`, with the frequencies that hold for a total length of `rope_length`.
    pub fn extend(&mut self, rope: &Rope, rope_length: usize, positions: std::ops::Range<usize>) {
        let (inv_freq, attention_factor) = frequencies(rope, rope_length);
        for position in positions {
            for &frequency in inv_freq.iter() {
                let angle = position as f32 * frequency;
                self.cos.push(angle.cos() * attention_factor);
                self.sin.push(angle.sin() * attention_factor);
            }
        }
    }
}

/// The border of longrope, if the rope has one: longer totals use the long factors.
pub(crate) fn long_factors_beyond(rope: &Rope) -> Option<usize> {
    match &rope.scaling {
        RopeScaling::LongRope { original_context, .. } => Some(*original_context),
        _ => None,
    }
}

fn frequencies(rope: &Rope, rope_length: usize) -> (std::borrow::Cow<'_, [f32]>, f32) {
    match &rope.scaling {
        RopeScaling::Default => (default_frequencies(rope.rotary_dim, rope.theta).into(), 1.0),
        RopeScaling::Linear { factor } => {
            let mut inv_freq = default_frequencies(rope.rotary_dim, rope.theta);
            inv_freq.iter_mut().for_each(|frequency| *frequency /= factor);
            (inv_freq.into(), 1.0)
        }
        RopeScaling::Dynamic { factor, original_context } => {
            let theta = if rope_length > *original_context {
                // theta' = theta * (factor * length / original - (factor - 1)) ^ (d / (d - 2))
                let stretch = f64::from(*factor) * rope_length as f64 / *original_context as f64;
                let dim = rope.rotary_dim as f64;
                let growth = (stretch - (f64::from(*factor) - 1.0)).powf(dim / (dim - 2.0));
                (f64::from(rope.theta) * growth) as f32
            } else {
                rope.theta
            };
            (default_frequencies(rope.rotary_dim, theta).into(), 1.0)
        }
        RopeScaling::Fixed { inv_freq, attention_factor } => (inv_freq.as_slice().into(), *attention_factor),
        RopeScaling::LongRope {
            short_inv_freq,
            long_inv_freq,
            short_attention_factor,
            long_attention_factor,
            original_context,
        } => {
            if rope_length > *original_context {
                (long_inv_freq.as_slice().into(), *long_attention_factor)
            } else {
                (short_inv_freq.as_slice().into(), *short_attention_factor)
            }
        }
    }
}

/// inv_freq_i = theta^(-2i / d) (Su et al., 2021, section 3.2.2).
pub(crate) fn default_frequencies(rotary_dim: usize, theta: f32) -> Vec<f32> {
    rope_scaling::unscaled(rotary_dim, f64::from(theta)).map(|frequency| frequency as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(scaling: RopeScaling) -> Rope {
        Rope { rotary_dim: 8, theta: 10_000.0, scaling }
    }

    #[test]
    fn dynamic_scaling_changes_frequencies_only_beyond_the_original_context() {
        let dynamic = rope(RopeScaling::Dynamic { factor: 2.0, original_context: 16 });
        let plain = default_frequencies(8, 10_000.0);
        assert_eq!(frequencies(&dynamic, 16).0.as_ref(), plain);
        let stretched = frequencies(&dynamic, 32).0;
        // theta' = 10000 * (2 * 32 / 16 - 1)^(8 / 6)
        let expected = default_frequencies(8, (10_000.0 * 3f64.powf(8.0 / 6.0)) as f32);
        assert_eq!(stretched.as_ref(), expected);
        assert!(stretched[3] < plain[3]);
    }

    #[test]
    fn longrope_uses_the_long_list_for_all_positions_once_the_total_is_longer() {
        let long = rope(RopeScaling::LongRope {
            short_inv_freq: vec![1.0; 4],
            long_inv_freq: vec![0.5; 4],
            short_attention_factor: 1.0,
            long_attention_factor: 2.0,
            original_context: 10,
        });
        for (rope_length, expected) in [(10, 1f32.cos()), (11, 0.5f32.cos() * 2.0)] {
            let mut rows = RopeRows::default();
            rows.clear(&long);
            rows.extend(&long, rope_length, 1..2);
            assert_eq!(rows.row(0).0, [expected; 4], "total length {rope_length}");
        }
    }
}
