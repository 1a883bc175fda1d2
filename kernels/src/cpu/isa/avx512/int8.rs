//! Products with int8 weights.

use std::arch::x86_64::*;

use super::super::avx2::{AHEAD, prefetch_ahead};
use super::{Avx512, load, load_lanes, store_lanes};
use crate::quant::inputs::InputTile;
use crate::quant::product;
use crate::quant::{Lanes, QUAD, STEP, int8};

/// Groups of a step.
const GROUPS: usize = STEP / int8::GROUP;

/// See [`product::int8_product`].
pub(in crate::cpu::isa) fn int8_product(
    _: Avx512,
    panels: &[&[int8::Step]],
    inputs: &InputTile,
    first: usize,
    sums: &mut [Lanes],
) {
    // Two panels share the loads of the inputs, and six columns of them have their sums in the registers.
    let (at_once, stride) = (panels.len().min(2), panels.len());
    for (i, chunk) in panels.chunks(at_once.max(1)).enumerate() {
        let all_sums = &mut *sums;
        let sums = &mut all_sums[i * at_once..];
        // SAFETY: the token proves the features.
        unsafe {
            match (inputs.width, chunk) {
                (1, &[panel]) => columns::<1, 1>([panel], inputs, first, sums, stride),
                (2, &[panel]) => columns::<2, 1>([panel], inputs, first, sums, stride),
                (3, &[panel]) => columns::<3, 1>([panel], inputs, first, sums, stride),
                (4, &[panel]) => columns::<4, 1>([panel], inputs, first, sums, stride),
                (5, &[panel]) => columns::<5, 1>([panel], inputs, first, sums, stride),
                (6, &[panel]) => columns::<6, 1>([panel], inputs, first, sums, stride),
                (7, &[panel]) => columns::<7, 1>([panel], inputs, first, sums, stride),
                (8, &[panel]) => columns::<8, 1>([panel], inputs, first, sums, stride),
                (1, &[a, b]) => columns::<1, 2>([a, b], inputs, first, sums, stride),
                (2, &[a, b]) => columns::<2, 2>([a, b], inputs, first, sums, stride),
                (3, &[a, b]) => columns::<3, 2>([a, b], inputs, first, sums, stride),
                (4, &[a, b]) => columns::<4, 2>([a, b], inputs, first, sums, stride),
                (5, &[a, b]) => columns::<5, 2>([a, b], inputs, first, sums, stride),
                (6, &[a, b]) => columns::<6, 2>([a, b], inputs, first, sums, stride),
                (7, &[a, b]) => columns::<7, 2>([a, b], inputs, first, sums, stride),
                (8, &[a, b]) => columns::<8, 2>([a, b], inputs, first, sums, stride),
                _ => return product::int8_product(panels, inputs, first, all_sums),
            }
        }
    }
}

/// P panels by N columns, whose sums are `stride` apart: with two by six, twelve sums and twelve totals, of 32 registers.
///
/// Two ports multiply: of 120 multiplications for a group of two panels by six columns, 96 are dot products and the rest is
/// for scales, so that at most 0.8 of the peak is left.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn columns<const N: usize, const P: usize>(
    panels: [&[int8::Step]; P],
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
    let mut sums = [[_mm512_setzero_ps(); P]; N];
    for j in 0..N {
        for p in 0..P {
            sums[j][p] = load_lanes(&out[j * stride + p]);
        }
    }
    for s in 0..n_steps {
        for g in 0..GROUPS {
            let mut totals = [[_mm512_setzero_si512(); P]; N];
            for j in 0..N {
                totals[j] = [_mm512_set1_epi32(corrections[s][g][j]); P];
            }
            for (q, quad) in quads[s][g].iter().enumerate() {
                let weights = panels.map(|steps| load(&int8::group(&steps[s], g).0[q]));
                for j in 0..N {
                    let x = _mm512_set1_epi32(quad[j]);
                    for p in 0..P {
                        totals[j][p] = _mm512_dpbusd_epi32(totals[j][p], weights[p], x);
                    }
                }
            }
            for p in 0..P {
                let (_, stored) = int8::group(&panels[p][s], g);
                // SAFETY: 32 bytes are readable.
                let stored = _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(stored.as_ptr().cast()) });
                for j in 0..N {
                    let scale = _mm512_mul_ps(stored, _mm512_set1_ps(scales[s][g][j]));
                    sums[j][p] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(totals[j][p]), scale, sums[j][p]);
                }
            }
        }
        // One column is multiplied as fast as the processor's own prefetch brings its weights, and pairs of panels are for
        // weights that are in the caches.
        if P == 1 && N > 1 {
            prefetch_ahead(&panels[0][s], AHEAD);
        }
    }
    for j in 0..N {
        for p in 0..P {
            store_lanes(&mut out[j * stride + p], sums[j][p]);
        }
    }
}
