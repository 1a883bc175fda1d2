//! Normalisation of one row. Sums run in lanes of `f32` over blocks and in `f64` from block to block, so that wide
//! rows stay exact; their order is fixed, so every tier gives the same bits.

use super::Isa;
use super::isa::elementwise::Loop;

/// Values that are summed in `f32`, and the sums that they go to in turn.
const BLOCK: usize = 256;
const LANES: usize = 32;

/// The sum of `f(x)` over a row.
#[inline(always)]
fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    let mut total = [0.0f64; LANES / 4];
    for block in x.chunks(BLOCK) {
        let mut lanes = [0.0f32; LANES];
        let (body, rest) = block.as_chunks::<LANES>();
        for values in body {
            for (lane, value) in lanes.iter_mut().zip(values) {
                *lane += f(*value);
            }
        }
        for (lane, value) in lanes.iter_mut().zip(rest) {
            *lane += f(*value);
        }
        for (i, total) in total.iter_mut().enumerate() {
            let [a, b, c, d] = std::array::from_fn(|j| lanes[i + j * (LANES / 4)]);
            *total += ((a + b) + (c + d)) as f64;
        }
    }
    total.iter().sum()
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Loop for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let mean = sum(self.x, |v| v * v) / self.x.len() as f64;
        let scale = (1.0 / (mean + self.eps as f64).sqrt()) as f32;
        for ((out, x), weight) in self.out.iter_mut().zip(self.x).zip(self.weight) {
            *out = x * scale * weight;
        }
    }
}

/// out = x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich, arXiv:1910.07467). All slices have one length.
pub fn rms_norm(isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert_eq!(weight.len(), x.len(), "length of the norm's weight");
    assert_eq!(out.len(), x.len(), "length of the norm's output");
    isa.compute(RmsNorm { x, weight, eps, out });
}

struct LayerNorm<'a> {
    x: &'a [f32],
    weight: Option<&'a [f32]>,
    bias: Option<&'a [f32]>,
    eps: f32,
    out: &'a mut [f32],
}

impl Loop for LayerNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let LayerNorm { x, weight, bias, eps, out } = self;
        let mean = (sum(x, |v| v) / x.len() as f64) as f32;
        let variance = sum(x, |v| (v - mean) * (v - mean)) / x.len() as f64;
        let scale = (1.0 / (variance + eps as f64).sqrt()) as f32;
        for (out, x) in out.iter_mut().zip(x) {
            *out = (x - mean) * scale;
        }
        if let Some(weight) = weight {
            out.iter_mut().zip(weight).for_each(|(out, weight)| *out *= weight);
        }
        if let Some(bias) = bias {
            out.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
        }
    }
}

/// out = (x - mean) / sqrt(variance + eps) * weight + bias (Ba et al., arXiv:1607.06450); an absent weight is 1,
/// an absent bias 0. All slices have one length.
pub fn layer_norm(isa: Isa, x: &[f32], weight: Option<&[f32]>, bias: Option<&[f32]>, eps: f32, out: &mut [f32]) {
    assert_eq!(out.len(), x.len(), "length of the norm's output");
    assert!(weight.is_none_or(|weight| weight.len() == x.len()), "length of the norm's weight");
    assert!(bias.is_none_or(|bias| bias.len() == x.len()), "length of the norm's bias");
    isa.compute(LayerNorm { x, weight, bias, eps, out });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(n: usize, offset: f32) -> Vec<f32> {
        (0..n).map(|i| offset + ((i * 37 + 11) % 101) as f32 / 25.0 - 2.0).collect()
    }

    #[test]
    fn norms_equal_their_formulas_in_double_precision() {
        let isa = Isa::best();
        for n in [1, 2, 7, 8, 31, 33, 255, 256, 257, 5000] {
            for offset in [0.0, 30.0] {
                let (x, w, b) = (row(n, offset), row(n, 1.0), row(n, -1.0));
                let exact: Vec<f64> = x.iter().map(|v| *v as f64).collect();
                let square = exact.iter().map(|v| v * v).sum::<f64>() / n as f64;
                let mean = exact.iter().sum::<f64>() / n as f64;
                let variance = exact.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n as f64;
                let (mut rms, mut layer, mut plain) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
                rms_norm(isa, &x, &w, 1e-5, &mut rms);
                layer_norm(isa, &x, Some(&w), Some(&b), 1e-5, &mut layer);
                layer_norm(isa, &x, None, None, 1e-5, &mut plain);
                for i in 0..n {
                    let (weight, bias) = (w[i] as f64, b[i] as f64);
                    let normal = (exact[i] - mean) / (variance + 1e-5).sqrt();
                    let cases = [
                        ("rms", rms[i], exact[i] / (square + 1e-5).sqrt() * weight),
                        ("layer", layer[i], normal * weight + bias),
                        ("plain layer", plain[i], normal),
                    ];
                    for (name, found, expected) in cases {
                        let error = (found as f64 - expected).abs();
                        assert!(error < 1e-5, "{name} norm of {n} values near {offset}, value {i}: {error:e}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_tier_gives_the_same_bits() {
        for n in [1, 100, 300, 2048] {
            let (x, w, b) = (row(n, 0.3), row(n, 1.0), row(n, -1.0));
            let norms = |isa| {
                let mut out = [vec![0.0; n], vec![0.0; n]];
                rms_norm(isa, &x, &w, 1e-5, &mut out[0]);
                layer_norm(isa, &x, Some(&w), Some(&b), 1e-5, &mut out[1]);
                out
            };
            let expected = norms(Isa::available()[0]);
            for isa in Isa::available() {
                assert_eq!(norms(isa), expected, "{n} values with {}", isa.name());
            }
        }
    }
}
