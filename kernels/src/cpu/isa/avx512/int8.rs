//! Products with int8 weights.

use std::arch::x86_64::*;

use super::super::avx2::{AHEAD, prefetch_ahead};
use super::{Avx512, int8_pairs, load, load_lanes, store_lanes};
use crate::quant::inputs::InputTile;
use crate::quant::product;
use crate::quant::{Lanes, QUAD, STEP, int8};

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
    for (i, panels) in panels.chunks(at_once.max(1)).enumerate() {
        let sums = &mut sums[i * at_once..];
        // SAFETY: the token proves the features.
        unsafe {
            match (inputs.width, panels) {
                (1, &[panel]) => int8_columns::<1, 1>([panel], inputs, first, sums, stride),
                (2, &[panel]) => int8_columns::<2, 1>([panel], inputs, first, sums, stride),
                (3, &[panel]) => int8_columns::<3, 1>([panel], inputs, first, sums, stride),
                (4, &[panel]) => int8_columns::<4, 1>([panel], inputs, first, sums, stride),
                (5, &[panel]) => int8_columns::<5, 1>([panel], inputs, first, sums, stride),
                (6, &[panel]) => int8_columns::<6, 1>([panel], inputs, first, sums, stride),
                (7, &[panel]) => int8_columns::<7, 1>([panel], inputs, first, sums, stride),
                (8, &[panel]) => int8_columns::<8, 1>([panel], inputs, first, sums, stride),
                (1, &[a, b]) => int8_pairs::columns::<1>([a, b], inputs, first, sums, stride),
                (2, &[a, b]) => int8_pairs::columns::<2>([a, b], inputs, first, sums, stride),
                (3, &[a, b]) => int8_pairs::columns::<3>([a, b], inputs, first, sums, stride),
                (4, &[a, b]) => int8_pairs::columns::<4>([a, b], inputs, first, sums, stride),
                (5, &[a, b]) => int8_pairs::columns::<5>([a, b], inputs, first, sums, stride),
                (6, &[a, b]) => int8_pairs::columns::<6>([a, b], inputs, first, sums, stride),
                (7, &[a, b]) => int8_pairs::columns::<7>([a, b], inputs, first, sums, stride),
                (8, &[a, b]) => int8_pairs::columns::<8>([a, b], inputs, first, sums, stride),
                _ => return product::int8_product(panels, inputs, first, sums),
            }
        }
    }
}

/// P panels by N columns, whose sums are `stride` apart.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn int8_columns<const N: usize, const P: usize>(
    panels: [&[int8::Step]; P],
    inputs: &InputTile,
    first: usize,
    out: &mut [Lanes],
    stride: usize,
) {
    const GROUPS: usize = STEP / int8::GROUP;
    let quads = &inputs.codes.as_chunks::<N>().0.as_chunks::<{ int8::GROUP / QUAD }>().0[first * GROUPS..];
    let scales = &inputs.scales.as_chunks::<N>().0[first * GROUPS..];
    let corrections = &inputs.corrections.as_chunks::<N>().0[first * GROUPS..];
    let mut sums = [[_mm512_setzero_ps(); P]; N];
    for j in 0..N {
        for p in 0..P {
            sums[j][p] = load_lanes(&out[j * stride + p]);
        }
    }
    let n_groups = GROUPS * panels[0].len();
    let inputs = quads[..n_groups].iter().zip(&scales[..n_groups]).zip(&corrections[..n_groups]);
    for (g, ((quads, scales), corrections)) in inputs.enumerate() {
        let mut totals = [[_mm512_setzero_si512(); P]; N];
        for j in 0..N {
            totals[j] = [_mm512_set1_epi32(corrections[j]); P];
        }
        for (q, quad) in quads.iter().enumerate() {
            let mut weights = [_mm512_setzero_si512(); P];
            for p in 0..P {
                weights[p] = load(&int8::group(&panels[p][g / GROUPS], g % GROUPS).0[q]);
            }
            for j in 0..N {
                let x = _mm512_set1_epi32(quad[j]);
                for p in 0..P {
                    totals[j][p] = _mm512_dpbusd_epi32(totals[j][p], weights[p], x);
                }
            }
        }
        for p in 0..P {
            let (_, stored) = int8::group(&panels[p][g / GROUPS], g % GROUPS);
            // SAFETY: 32 bytes are readable.
            let stored = _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(stored.as_ptr().cast()) });
            for j in 0..N {
                let scale = _mm512_mul_ps(stored, _mm512_set1_ps(scales[j]));
                sums[j][p] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(totals[j][p]), scale, sums[j][p]);
            }
        }
        // One column is multiplied as fast as the processor's own prefetch brings its weights.
        if P == 1 && N > 1 && g % GROUPS == 0 {
            for panel in panels {
                prefetch_ahead(&panel[g / GROUPS], AHEAD);
            }
        }
    }
    for j in 0..N {
        for p in 0..P {
            store_lanes(&mut out[j * stride + p], sums[j][p]);
        }
    }
}
