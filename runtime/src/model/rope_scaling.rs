//! The frequencies of rotary embeddings that are stretched beyond the trained context, computed once at load.

use std::f64::consts::PI;

/// theta^(-2i / d) for the d / 2 pairs of a head (Su et al., arXiv:2104.09864, section 3.2.2).
pub(crate) fn unscaled(rotary_dim: usize, theta: f64) -> impl Iterator<Item = f64> {
    (0..rotary_dim / 2).map(move |i| theta.powf(-2.0 * i as f64 / rotary_dim as f64))
}

/// Llama 3.1's rule, with wavelength w = 2 pi / f and original context L (the model card's reference code):
///
/// ```text
/// w < L / high_freq_factor   f
/// w > L / low_freq_factor    f / factor
/// between                    (1 - s) f / factor + s f, with s = (L / w - low) / (high - low)
/// ```
pub(crate) fn llama3(
    rotary_dim: usize,
    theta: f64,
    factor: f64,
    low_freq_factor: f64,
    high_freq_factor: f64,
    original_context: usize,
) -> Vec<f32> {
    let original = original_context as f64;
    let scaled = unscaled(rotary_dim, theta).map(|frequency| {
        let wavelength = 2.0 * PI / frequency;
        if wavelength < original / high_freq_factor {
            frequency
        } else if wavelength > original / low_freq_factor {
            frequency / factor
        } else {
            let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
            (1.0 - smooth) * frequency / factor + smooth * frequency
        }
    });
    scaled.map(|frequency| frequency as f32).collect()
}

/// What YaRN needs besides the embedding's width and base.
pub(crate) struct Yarn {
    pub factor: f64,
    pub original_context: usize,
    /// Rotations over the original context above which a pair keeps its frequency.
    pub beta_fast: f64,
    /// Rotations below which its frequency is divided by `factor`.
    pub beta_slow: f64,
    /// Whether the range between the two is widened to whole pairs.
    pub truncate: bool,
}

/// YaRN (Peng et al., arXiv:2309.00071, section 3.2): frequencies between those of few and of many rotations are
/// blended along a ramp over the index of the pair.
pub(crate) fn yarn(rotary_dim: usize, theta: f64, yarn: &Yarn) -> Vec<f32> {
    let dim = rotary_dim as f64;
    // The pair that makes this many rotations over the original context.
    let pair_of =
        |rotations: f64| dim * (yarn.original_context as f64 / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln());
    let (mut low, mut high) = (pair_of(yarn.beta_fast), pair_of(yarn.beta_slow));
    if yarn.truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(dim - 1.0));
    if low == high {
        high += 0.001;
    }
    let blended = unscaled(rotary_dim, theta).enumerate().map(|(i, frequency)| {
        let interpolated = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        frequency / yarn.factor * interpolated + frequency * (1.0 - interpolated)
    });
    blended.map(|frequency| frequency as f32).collect()
}

/// YaRN's factor on cos and sin: 0.1 m ln(factor) + 1 (section 3.4; `m` is 1 there).
pub(crate) fn yarn_attention_factor(factor: f64, m: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 }
}

/// LongRoPE (Ding et al., arXiv:2402.13753): each frequency is divided by a factor of its own.
pub(crate) fn longrope(rotary_dim: usize, theta: f64, factors: &[f64]) -> Vec<f32> {
    unscaled(rotary_dim, theta).zip(factors).map(|(frequency, factor)| (frequency / factor) as f32).collect()
}

/// LongRoPE's factor on cos and sin: sqrt(1 + ln(factor) / ln(original context)), the factor being that of the
/// contexts (Phi-3's reference code).
pub(crate) fn longrope_attention_factor(factor: f64, original_context: usize) -> f64 {
    if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original_context as f64).ln()).sqrt() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: &[f32], expected: &[f64]) {
        let equal =
            found.iter().zip(expected).all(|(found, expected)| (f64::from(*found) / expected - 1.0).abs() < 1e-6);
        assert!(found.len() == expected.len() && equal, "found {found:?}, expected {expected:?}");
    }

    #[test]
    fn llama3_keeps_short_waves_divides_long_ones_and_blends_between() {
        // theta 10000, d 8: wavelengths 6.28, 62.8, 628, 6283; borders at 50 and 200.
        let s = (200.0 / (20.0 * PI) - 1.0) / 3.0;
        let blended = (1.0 - s) * 0.1 / 8.0 + s * 0.1;
        close(&llama3(8, 10_000.0, 8.0, 1.0, 4.0, 200), &[1.0, blended, 0.01 / 8.0, 0.001 / 8.0]);
    }

    #[test]
    fn yarn_blends_along_a_ramp_of_pairs() {
        let yarn_with = |truncate| {
            yarn(8, 10_000.0, &Yarn { factor: 4.0, original_context: 400, beta_fast: 32.0, beta_slow: 1.0, truncate })
        };
        // Pairs at 0.299 and 1.804, widened to 0 and 2.
        close(&yarn_with(true), &[1.0, 0.1 * (0.5 + 0.125), 0.01 / 4.0, 0.001 / 4.0]);
        let pair = |rotations: f64| 8.0 * (400.0 / (rotations * 2.0 * PI)).ln() / (2.0 * 10_000f64.ln());
        let ramp = (1.0 - pair(32.0)) / (pair(1.0) - pair(32.0));
        close(&yarn_with(false), &[1.0, 0.1 * (1.0 - ramp * 0.75), 0.01 / 4.0, 0.001 / 4.0]);
        assert_eq!(yarn_attention_factor(1.0, 1.0), 1.0);
        assert!((yarn_attention_factor(4.0, 1.0) - 1.138_629_436).abs() < 1e-9);
    }

    #[test]
    fn longrope_divides_each_frequency() {
        close(&longrope(4, 100.0, &[2.0, 5.0]), &[0.5, 0.02]);
        assert_eq!(longrope_attention_factor(1.0, 32), 1.0);
        assert!((longrope_attention_factor(32.0, 32) - 2f64.sqrt()).abs() < 1e-12);
    }
}
