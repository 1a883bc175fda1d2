//! Integer products for AVX2 with AVX-VNNI. A register holds half a quad of a panel: eight rows by four inputs. Weights
//! are stored or looked up with a bias of 128, and what the bias adds is known from the inputs alone.

use std::arch::x86_64::*;
use std::hint::black_box;

use super::super::avx2::{AHEAD, half_quad, level_table, load_half, load_head_pairs, prefetch_ahead, store_half};
use super::AvxVnni;
use crate::quant::inputs::InputTile;
use crate::quant::int4::{self, Panel};
use crate::quant::product::{self, BLOCK_STEPS, TILE_PANELS, TileQuad};
use crate::quant::{Lanes, QUAD, STEP, int8};

/// Quads of a step, and groups of int4 weights in it.
const STEP_QUADS: usize = STEP / QUAD;
const STEP_GROUPS: usize = STEP / int4::GROUP;

/// See [`product::int4_product`].
pub(in crate::cpu::isa) fn int4_product(_: AvxVnni, panels: &[Panel<'_>], inputs: &InputTile, sums: &mut [Lanes]) {
    for (p, panel) in panels.iter().enumerate() {
        let out = (&mut sums[p..], panels.len());
        // SAFETY: the token proves the features.
        unsafe {
            match inputs.width {
                1 => int4_columns::<1>(panel, inputs, out),
                2 => int4_columns::<2>(panel, inputs, out),
                3 => int4_columns::<3>(panel, inputs, out),
                4 => int4_columns::<4>(panel, inputs, out),
                5 => int4_columns::<5>(panel, inputs, out),
                6 => int4_columns::<6>(panel, inputs, out),
                7 => int4_columns::<7>(panel, inputs, out),
                8 => int4_columns::<8>(panel, inputs, out),
                _ => return product::int4_product(panels, inputs, sums),
            }
        }
    }
}

/// N columns, whose sums are `stride` apart.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn int4_columns<const N: usize>(panel: &Panel<'_>, inputs: &InputTile, (out, stride): (&mut [Lanes], usize)) {
    // With their sign bits turned, levels are unsigned and 128 more.
    let table = _mm256_xor_si256(level_table(), _mm256_set1_epi8(i8::MIN));
    let (low_half, shift_bits) = (_mm256_set1_epi8(15), _mm256_set1_epi16(12));
    let bias = _mm256_set1_epi16(int8::BIAS as i16);
    let quads = inputs.codes.as_chunks::<N>().0.as_chunks::<STEP_QUADS>().0;
    let group_sums = inputs.group_sums.as_chunks::<N>().0.as_chunks::<{ STEP_GROUPS / 2 }>().0;
    let blocks = quads.chunks(BLOCK_STEPS).zip(group_sums.chunks(BLOCK_STEPS)).zip(inputs.scales.as_chunks::<N>().0);
    let mut sums = [[_mm256_setzero_ps(); N]; 2];
    for (steps, ((quads, group_sums), scales)) in panel.steps.chunks(BLOCK_STEPS).zip(blocks) {
        let mut totals = [[_mm256_setzero_si256(); N]; 2];
        for (step, (quads, group_sums)) in steps.iter().zip(quads.iter().zip(group_sums)) {
            for (i, (quads, group_sums)) in
                quads.as_chunks::<4>().0.as_chunks::<2>().0.iter().zip(group_sums).enumerate()
            {
                let groups = [int4::group(step, 2 * i), int4::group(step, 2 * i + 1)];
                for (pairs, _) in groups {
                    prefetch_ahead(&pairs[0], AHEAD);
                    prefetch_ahead(&pairs[1], AHEAD);
                }
                for (half, totals) in totals.iter_mut().enumerate() {
                    let heads = load_head_pairs([groups[0].1, groups[1].1], half);
                    let group_scales = _mm256_srai_epi16::<2>(heads);
                    let shifts = _mm256_and_si256(_mm256_slli_epi16::<2>(heads), shift_bits);
                    // group_scale * (4 shift - 128) of both groups, which meet the sums of their inputs.
                    let offsets = _mm256_mullo_epi16(group_scales, _mm256_sub_epi16(shifts, bias));
                    for j in 0..N {
                        totals[j] = _mm256_dpwssd_avx_epi32(totals[j], offsets, _mm256_set1_epi32(group_sums[j]));
                    }
                    let first = _mm256_srai_epi32::<16>(_mm256_slli_epi32::<16>(group_scales));
                    let group_scales = [first, _mm256_srai_epi32::<16>(group_scales)];
                    for (g, quads) in quads.iter().enumerate() {
                        let mut levels = [_mm256_setzero_si256(); 4];
                        for (q, levels) in levels.iter_mut().enumerate() {
                            let codes = half_quad(&groups[g].0[q / 2], half);
                            let codes = if q % 2 == 0 { codes } else { _mm256_srli_epi16::<4>(codes) };
                            *levels = _mm256_shuffle_epi8(table, _mm256_and_si256(codes, low_half));
                        }
                        for j in 0..N {
                            let mut sum = _mm256_setzero_si256();
                            for (quad, levels) in quads.iter().zip(levels) {
                                sum = _mm256_dpbusd_avx_epi32(sum, levels, _mm256_set1_epi32(quad[j]));
                            }
                            totals[j] = _mm256_add_epi32(totals[j], _mm256_mullo_epi32(sum, group_scales[g]));
                        }
                    }
                }
            }
            prefetch_ahead(int4::parts(step).1, AHEAD);
        }
        for (sums, totals) in sums.iter_mut().zip(totals) {
            for j in 0..N {
                sums[j] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(totals[j]), _mm256_set1_ps(scales[j]), sums[j]);
            }
        }
    }
    for (half, sums) in sums.into_iter().enumerate() {
        let row_scales = load_half(&panel.row_scales, half);
        for j in 0..N {
            store_half(&mut out[j * stride], half, _mm256_mul_ps(row_scales, sums[j]));
        }
    }
}

/// See [`product::int8_product`].
pub(in crate::cpu::isa) fn int8_product(
    _: AvxVnni,
    panels: &[&[int8::Step]],
    inputs: &InputTile,
    first: usize,
    sums: &mut [Lanes],
) {
    for (p, steps) in panels.iter().enumerate() {
        let out = (&mut sums[p..], panels.len());
        // SAFETY: the token proves the features.
        unsafe {
            match inputs.width {
                1 => int8_columns::<1>(steps, inputs, first, out),
                2 => int8_columns::<2>(steps, inputs, first, out),
                3 => int8_columns::<3>(steps, inputs, first, out),
                4 => int8_columns::<4>(steps, inputs, first, out),
                5 => int8_columns::<5>(steps, inputs, first, out),
                6 => int8_columns::<6>(steps, inputs, first, out),
                7 => int8_columns::<7>(steps, inputs, first, out),
                8 => int8_columns::<8>(steps, inputs, first, out),
                _ => return product::int8_product(panels, inputs, first, sums),
            }
        }
    }
}

/// N columns, whose sums are `stride` apart.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn int8_columns<const N: usize>(
    steps: &[int8::Step],
    inputs: &InputTile,
    first: usize,
    (out, stride): (&mut [Lanes], usize),
) {
    const GROUPS: usize = STEP / int8::GROUP;
    let quads = &inputs.codes.as_chunks::<N>().0.as_chunks::<{ int8::GROUP / QUAD }>().0[first * GROUPS..];
    let scales = &inputs.scales.as_chunks::<N>().0[first * GROUPS..];
    let corrections = &inputs.corrections.as_chunks::<N>().0[first * GROUPS..];
    let inputs = quads.as_chunks::<GROUPS>().0.iter().zip(scales.as_chunks::<GROUPS>().0);
    for ((step, (quads, scales)), corrections) in steps.iter().zip(inputs).zip(corrections.as_chunks::<GROUPS>().0) {
        // One column is multiplied as fast as the processor's own prefetch brings its weights.
        if (2..=4).contains(&N) {
            prefetch_ahead(step, AHEAD);
        }
        for g in 0..GROUPS {
            let (weights, stored) = int8::group(step, g);
            let mut totals = [[_mm256_setzero_si256(); 2]; N];
            for j in 0..N {
                totals[j] = [_mm256_set1_epi32(corrections[g][j]); 2];
            }
            // Were their number known, the loop would become a straight line, and then one column after the other, with
            // all weights in registers that are not there.
            let weights: &[[u8; 64]] = if N <= 2 { weights } else { black_box(weights) };
            for (weights, quad) in weights.iter().zip(&quads[g]) {
                let weights = [half_quad(weights, 0), half_quad(weights, 1)];
                for j in 0..N {
                    let x = _mm256_set1_epi32(quad[j]);
                    for half in 0..2 {
                        totals[j][half] = _mm256_dpbusd_avx_epi32(totals[j][half], weights[half], x);
                    }
                }
            }
            let mut factors = [_mm256_setzero_ps(); 2];
            for (factors, stored) in factors.iter_mut().zip(stored.as_chunks::<16>().0) {
                // SAFETY: sixteen bytes are readable.
                *factors = _mm256_cvtph_ps(unsafe { _mm_loadu_si128(stored.as_ptr().cast()) });
            }
            for j in 0..N {
                let (out, scale) = (&mut out[j * stride], _mm256_set1_ps(scales[g][j]));
                for half in 0..2 {
                    let scale = _mm256_mul_ps(factors[half], scale);
                    let sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(totals[j][half]), scale, load_half(out, half));
                    store_half(out, half, sum);
                }
            }
        }
    }
}

/// See [`product::expanded_product`].
pub(in crate::cpu::isa) fn expanded_product(
    _: AvxVnni,
    tile: &[TileQuad],
    scales: &[Lanes; TILE_PANELS],
    inputs: &InputTile,
    block: usize,
    sums: &mut [Lanes],
) {
    // SAFETY: the token proves the features.
    unsafe {
        match inputs.width {
            1 => expanded_columns::<1>(tile, scales, inputs, block, sums),
            2 => expanded_columns::<2>(tile, scales, inputs, block, sums),
            3 => expanded_columns::<3>(tile, scales, inputs, block, sums),
            4 => expanded_columns::<4>(tile, scales, inputs, block, sums),
            5 => expanded_columns::<5>(tile, scales, inputs, block, sums),
            6 => expanded_columns::<6>(tile, scales, inputs, block, sums),
            _ => product::expanded_product(tile, scales, inputs, block, sums),
        }
    }
}

/// N columns by sixteen rows at a time: with six columns twelve sums, two weights and one input, of sixteen registers.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
fn expanded_columns<const N: usize>(
    tile: &[TileQuad],
    row_scales: &[Lanes; TILE_PANELS],
    inputs: &InputTile,
    block: usize,
    out: &mut [Lanes],
) {
    let quads = &inputs.codes.as_chunks::<N>().0[block * BLOCK_STEPS * STEP_QUADS..];
    let scales = &inputs.scales.as_chunks::<N>().0[block];
    let corrections = &inputs.corrections.as_chunks::<N>().0[block];
    for p in 0..TILE_PANELS {
        let mut totals = [[_mm256_setzero_si256(); 2]; N];
        for j in 0..N {
            totals[j] = [_mm256_set1_epi32(corrections[j]); 2];
        }
        for (weights, quad) in tile.iter().zip(quads) {
            let weights = [half_quad(&weights[p], 0), half_quad(&weights[p], 1)];
            for j in 0..N {
                let x = _mm256_set1_epi32(quad[j]);
                for half in 0..2 {
                    totals[j][half] = _mm256_dpbusd_avx_epi32(totals[j][half], weights[half], x);
                }
            }
        }
        for j in 0..N {
            let out = &mut out[j * TILE_PANELS + p];
            for (half, total) in totals[j].into_iter().enumerate() {
                let scale = _mm256_mul_ps(load_half(&row_scales[p], half), _mm256_set1_ps(scales[j]));
                let sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(total), scale, load_half(out, half));
                store_half(out, half, sum);
            }
        }
    }
}
