//! Products of two panels of int8 weights with up to eight of many tokens.

use std::arch::x86_64::*;

use super::{load, load_lanes, store_lanes};
use crate::quant::inputs::InputTile;
use crate::quant::{Lanes, QUAD, STEP, int8};

/// Panels that share the loads of the inputs.
const PANELS: usize = 2;

/// Groups of a step.
const GROUPS: usize = STEP / int8::GROUP;

/// N columns, whose sums are `stride` apart: with six columns twelve sums and twelve totals, of 32 registers. Two ports
/// multiply: of 120 multiplications for a group, 96 are dot products and the rest is for scales, so that at most 0.8 of
/// the peak is left.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
pub(super) fn columns<const N: usize>(
    panels: [&[int8::Step]; PANELS],
    inputs: &InputTile,
    first: usize,
    out: &mut [Lanes],
    stride: usize,
) {
    let n_steps = panels[0].len();
    let panels = panels.map(|steps| &steps[..n_steps]);
    let quads = inputs.codes.as_chunks::<N>().0.as_chunks::<{ int8::GROUP / QUAD }>().0.as_chunks::<GROUPS>().0;
    let scales = inputs.scales.as_chunks::<N>().0.as_chunks::<GROUPS>().0;
    let corrections = inputs.corrections.as_chunks::<N>().0.as_chunks::<GROUPS>().0;
    let steps = first..first + n_steps;
    let (quads, scales, corrections) = (&quads[steps.clone()], &scales[steps.clone()], &corrections[steps]);
    let mut sums = [[_mm512_setzero_ps(); PANELS]; N];
    for j in 0..N {
        for p in 0..PANELS {
            sums[j][p] = load_lanes(&out[j * stride + p]);
        }
    }
    for s in 0..n_steps {
        for g in 0..GROUPS {
            let mut totals = [[_mm512_setzero_si512(); PANELS]; N];
            for j in 0..N {
                totals[j] = [_mm512_set1_epi32(corrections[s][g][j]); PANELS];
            }
            for (q, quad) in quads[s][g].iter().enumerate() {
                let weights = panels.map(|steps| load(&int8::group(&steps[s], g).0[q]));
                for j in 0..N {
                    let x = _mm512_set1_epi32(quad[j]);
                    for p in 0..PANELS {
                        totals[j][p] = _mm512_dpbusd_epi32(totals[j][p], weights[p], x);
                    }
                }
            }
            for p in 0..PANELS {
                let (_, stored) = int8::group(&panels[p][s], g);
                // SAFETY: 32 bytes are readable.
                let stored = _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(stored.as_ptr().cast()) });
                for j in 0..N {
                    let scale = _mm512_mul_ps(stored, _mm512_set1_ps(scales[s][g][j]));
                    sums[j][p] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(totals[j][p]), scale, sums[j][p]);
                }
            }
        }
    }
    for j in 0..N {
        for p in 0..PANELS {
            store_lanes(&mut out[j * stride + p], sums[j][p]);
        }
    }
}
