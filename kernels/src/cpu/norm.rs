//! Normalisation of one row. Means are taken in several lanes and in `f64`, so that wide rows stay exact.

/// The sum of `f(x)` over a row: eight lanes of `f32` over blocks of 256, blocks added in `f64`.
fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    let block = |values: &[f32]| {
        let (body, rest) = values.as_chunks::<8>();
        let mut lanes = [0.0f32; 8];
        for values in body {
            for (lane, value) in lanes.iter_mut().zip(values) {
                *lane += f(*value);
            }
        }
        lanes.iter().map(|v| *v as f64).sum::<f64>() + rest.iter().map(|v| f(*v) as f64).sum::<f64>()
    };
    x.chunks(256).map(block).sum()
}

/// out = x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich, arXiv:1910.07467). All slices have one length.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert_eq!(weight.len(), x.len(), "length of the norm's weight");
    assert_eq!(out.len(), x.len(), "length of the norm's output");
    let mean = sum(x, |v| v * v) / x.len() as f64;
    let scale = (1.0 / (mean + eps as f64).sqrt()) as f32;
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * weight;
    }
}

/// out = (x - mean) / sqrt(variance + eps) * weight + bias (Ba et al., arXiv:1607.06450); an absent weight is 1,
/// an absent bias 0. All slices have one length.
pub fn layer_norm(x: &[f32], weight: Option<&[f32]>, bias: Option<&[f32]>, eps: f32, out: &mut [f32]) {
    assert_eq!(out.len(), x.len(), "length of the norm's output");
    let mean = (sum(x, |v| v) / x.len() as f64) as f32;
    let variance = sum(x, |v| (v - mean) * (v - mean)) / x.len() as f64;
    let scale = (1.0 / (variance + eps as f64).sqrt()) as f32;
    for (out, x) in out.iter_mut().zip(x) {
        *out = (x - mean) * scale;
    }
    if let Some(weight) = weight {
        assert_eq!(weight.len(), x.len(), "length of the norm's weight");
        out.iter_mut().zip(weight).for_each(|(out, weight)| *out *= weight);
    }
    if let Some(bias) = bias {
        assert_eq!(bias.len(), x.len(), "length of the norm's bias");
        out.iter_mut().zip(bias).for_each(|(out, bias)| *out += bias);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(n: usize, offset: f32) -> Vec<f32> {
        (0..n).map(|i| offset + ((i * 37 + 11) % 101) as f32 / 25.0 - 2.0).collect()
    }

    #[test]
    fn norms_equal_their_formulas_in_double_precision() {
        for n in [1, 2, 7, 8, 255, 256, 257, 5000] {
            for offset in [0.0, 30.0] {
                let (x, w, b) = (row(n, offset), row(n, 1.0), row(n, -1.0));
                let exact: Vec<f64> = x.iter().map(|v| *v as f64).collect();
                let square = exact.iter().map(|v| v * v).sum::<f64>() / n as f64;
                let mean = exact.iter().sum::<f64>() / n as f64;
                let variance = exact.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n as f64;
                let (mut rms, mut layer, mut plain) = (vec![0.0; n], vec![0.0; n], vec![0.0; n]);
                rms_norm(&x, &w, 1e-5, &mut rms);
                layer_norm(&x, Some(&w), Some(&b), 1e-5, &mut layer);
                layer_norm(&x, None, None, 1e-5, &mut plain);
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
}
