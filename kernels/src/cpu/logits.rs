//! What drawing a token takes of the logits of a whole vocabulary, in a few passes of vector code.
//!
//! Sums are in f64 and have a fixed order in lanes: every tier gives the same bits.

use super::Isa;
use super::isa::elementwise::Loop;
use super::math::exp;

/// Logits of a block that [`block_maxima`] looks at.
pub const BLOCK: usize = 64;

const LANES: usize = 16;

struct BlockMaxima<'a> {
    logits: &'a [f32],
    maxima: &'a mut [f32],
}

impl Loop for BlockMaxima<'_> {
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        let mut magnitudes = [0; LANES];
        for (block, maximum) in self.logits.chunks(BLOCK).zip(self.maxima) {
            let mut largest = [f32::NEG_INFINITY; LANES];
            let (body, rest) = block.as_chunks::<LANES>();
            let mut look = |lane: usize, logit: f32| {
                // As bits, magnitudes are ordered like integers, and what is not finite comes last.
                let magnitude = (logit.to_bits() & 0x7fff_ffff) as i32;
                magnitudes[lane] = if magnitude > magnitudes[lane] { magnitude } else { magnitudes[lane] };
                largest[lane] = if logit > largest[lane] { logit } else { largest[lane] };
            };
            for logits in body {
                for (lane, logit) in logits.iter().enumerate() {
                    look(lane, *logit);
                }
            }
            for (lane, logit) in rest.iter().enumerate() {
                look(lane, *logit);
            }
            *maximum = largest.into_iter().fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
        }
        let magnitude = magnitudes.into_iter().fold(0, i32::max);
        f32::from_bits(magnitude as u32).is_finite()
    }
}

/// Writes the largest logit of each block of [`BLOCK`] (the last may be shorter) to `maxima`, and says whether all
/// logits are finite; if not, the maxima mean nothing.
pub fn block_maxima(isa: Isa, logits: &[f32], maxima: &mut Vec<f32>) -> bool {
    maxima.clear();
    maxima.resize(logits.len().div_ceil(BLOCK), 0.0);
    isa.compute(BlockMaxima { logits, maxima })
}

struct Weigh<'a> {
    logits: &'a [f32],
    largest: f32,
    factor: f32,
    weights: &'a mut [f32],
}

impl Loop for Weigh<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (weight, logit) in self.weights.iter_mut().zip(self.logits) {
            *weight = exp((logit - self.largest) * self.factor);
        }
    }
}

/// `weights[i] = e^((logits[i] - largest) / temperature)`: probabilities but for their sum. No logit is above
/// `largest`, and the temperature is above 0.
pub fn weigh(isa: Isa, logits: &[f32], largest: f32, temperature: f32, weights: &mut Vec<f32>) {
    weights.clear();
    weights.resize(logits.len(), 0.0);
    // Finite also for the least temperatures, or the largest logit's 0 would become NaN.
    let factor = temperature.recip().min(f32::MAX);
    isa.compute(Weigh { logits, largest, factor, weights });
}

/// Weights together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Mass {
    /// Their sum.
    pub sum: f64,
    /// How many they are.
    pub count: usize,
}

struct MassFrom<'a> {
    weights: &'a [f32],
    least: f32,
}

impl Loop for MassFrom<'_> {
    type Output = Mass;

    #[inline(always)]
    fn run(self) -> Mass {
        let (mut sums, mut counts) = ([0.0; LANES], [0u32; LANES]);
        let mut take = |lane: usize, weight: f32| {
            let is_counted = weight >= self.least;
            sums[lane] += f64::from(if is_counted { weight } else { 0.0 });
            counts[lane] += u32::from(is_counted);
        };
        let (body, rest) = self.weights.as_chunks::<LANES>();
        for weights in body {
            for (lane, weight) in weights.iter().enumerate() {
                take(lane, *weight);
            }
        }
        for (lane, weight) in rest.iter().enumerate() {
            take(lane, *weight);
        }
        Mass { sum: sums.iter().sum(), count: counts.iter().map(|count| *count as usize).sum() }
    }
}

/// The weights that are at least `least`.
pub fn mass_from(isa: Isa, weights: &[f32], least: f32) -> Mass {
    isa.compute(MassFrom { weights, least })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logits(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919) % 1009) as f32 / 31.0 - 20.0).collect()
    }

    #[test]
    fn maxima_weights_and_masses_are_those_of_their_definitions_in_every_tier() {
        for n in [0, 1, 15, 16, 64, 65, 1000] {
            let logits = logits(n);
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let (mut expected_weights, mut expected_mass) = (Vec::new(), Mass::default());
            for isa in Isa::available() {
                let (mut maxima, mut weights) = (Vec::new(), Vec::new());
                assert!(block_maxima(isa, &logits, &mut maxima), "{n} logits with {}", isa.name());
                let expected = logits.chunks(BLOCK).map(|block| block.iter().copied().fold(f32::MIN, f32::max));
                assert_eq!(maxima, expected.collect::<Vec<_>>(), "{n} logits with {}", isa.name());
                weigh(isa, &logits, largest, 0.7, &mut weights);
                for (weight, logit) in weights.iter().zip(&logits) {
                    let exact = ((f64::from(*logit) - f64::from(largest)) / f64::from(0.7f32)).exp();
                    // The exponent is rounded, which weighs more the further it is from 0.
                    let error = (f64::from(*weight) / exact - 1.0).abs() / (1.0 - exact.ln());
                    assert!(error < 3e-7, "{logit}: {weight}, expected {exact}");
                }
                let mass = mass_from(isa, &weights, 1e-5);
                let counted = weights.iter().filter(|weight| **weight >= 1e-5);
                assert_eq!(mass.count, counted.clone().count(), "{n} weights with {}", isa.name());
                assert!(
                    (mass.sum - counted.map(|weight| f64::from(*weight)).sum::<f64>()).abs() <= 1e-13 * mass.sum,
                    "{n} weights: {mass:?}"
                );
                if isa == Isa::available()[0] {
                    (expected_weights, expected_mass) = (weights, mass);
                } else {
                    assert_eq!((&weights, mass), (&expected_weights, expected_mass), "bits with {}", isa.name());
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_found_anywhere() {
        for isa in Isa::available() {
            for n in [1, 64, 200] {
                for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    for at in [0, n / 2, n - 1] {
                        let mut logits = logits(n);
                        logits[at] = bad;
                        let found = block_maxima(isa, &logits, &mut Vec::new());
                        assert!(!found, "{bad} at {at} of {n} with {}", isa.name());
                    }
                }
            }
        }
    }
}
