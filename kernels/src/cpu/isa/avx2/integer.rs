//! The inner kernels of integer products for AVX2.
//!
//! A register holds half a quad of a panel: eight rows by four inputs. `vpmaddubsw` adds pairs of products of unsigned
//! and signed bytes and saturates at 16 bits, so it gets |w| and x with the sign of w: 2 * 128 * 127 fits.

use std::arch::x86_64::*;

use super::{AHEAD, Avx2, half_quad, level_table, load_half, load_head_pairs, load_heads, prefetch_ahead, store_half};
use crate::quant::inputs::{InputTile, Kind};
use crate::quant::int4::{self, Panel};
use crate::quant::product::{self, BLOCK_STEPS, TILE_PANELS, TileQuad};
use crate::quant::{Lanes, QUAD, STEP, int8};

/// Quads of a step, and groups of int4 weights in it.
const STEP_QUADS: usize = STEP / QUAD;
const STEP_GROUPS: usize = STEP / int4::GROUP;

/// Products of four weights and four inputs in each lane, times `factors` (each 16 bits of a lane the same), plus `sum`.
/// `signed` has the signs of both, and magnitudes of those that `unsigned` lacks.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot(sum: __m256i, unsigned: __m256i, signed: __m256i, factors: __m256i) -> __m256i {
    _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(unsigned, signed), factors))
}

/// The lower 16 bits of each lane in both of its halves.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn twice(lanes: __m256i) -> __m256i {
    let order = _mm_setr_epi8(0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13, 12, 13);
    _mm256_shuffle_epi8(lanes, _mm256_broadcastsi128_si256(order))
}

/// See [`product::int4_product`].
pub(in crate::cpu::isa) fn int4_product(_: Avx2, panels: &[Panel<'_>], inputs: &InputTile, sums: &mut [Lanes]) {
    for (p, panel) in panels.iter().enumerate() {
        let out = (&mut sums[p..], panels.len());
        // SAFETY: the token proves the features.
        unsafe {
            match inputs.width {
                1 => int4_columns::<1, 2>(panel, inputs, out),
                2 => int4_columns::<2, 1>(panel, inputs, out),
                3 => int4_columns::<3, 1>(panel, inputs, out),
                4 => int4_columns::<4, 1>(panel, inputs, out),
                5 => int4_columns::<5, 1>(panel, inputs, out),
                6 => int4_columns::<6, 1>(panel, inputs, out),
                7 => int4_columns::<7, 1>(panel, inputs, out),
                8 => int4_columns::<8, 1>(panel, inputs, out),
                _ => return product::int4_product(panels, inputs, sums),
            }
        }
    }
}

/// N columns, whose sums are `stride` apart, by HALVES of the panel's rows at a time.
///
/// With one column both halves share the input, so that it is the unsigned factor, and the levels get its sign (none is
/// -128, which has no opposite). With more columns the levels are, which all columns share.
#[target_feature(enable = "avx2,fma,f16c")]
fn int4_columns<const N: usize, const HALVES: usize>(
    panel: &Panel<'_>,
    inputs: &InputTile,
    (out, stride): (&mut [Lanes], usize),
) {
    let (table, low_half, shift_bits) = (level_table(), _mm256_set1_epi8(15), _mm256_set1_epi16(12));
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
                for first in (0..2).step_by(HALVES) {
                    let mut group_scales = [[_mm256_setzero_si256(); 2]; 2];
                    for half in first..first + HALVES {
                        let heads = load_head_pairs([groups[0].1, groups[1].1], half);
                        let scales = _mm256_srai_epi16::<2>(heads);
                        let shifts = _mm256_and_si256(_mm256_slli_epi16::<2>(heads), shift_bits);
                        // group_scale * 4 shift of both groups, which meet the sums of their inputs.
                        let offsets = _mm256_mullo_epi16(scales, shifts);
                        for j in 0..N {
                            let shifted = _mm256_madd_epi16(offsets, _mm256_set1_epi32(group_sums[j]));
                            totals[half][j] = _mm256_add_epi32(totals[half][j], shifted);
                        }
                        group_scales[half] = [twice(scales), twice(_mm256_srli_epi32::<16>(scales))];
                    }
                    for (g, quads) in quads.iter().enumerate() {
                        for (q, quad) in quads.iter().enumerate() {
                            let line = &groups[g].0[q / 2];
                            if first == 0 && q % 2 == 0 {
                                prefetch_ahead(line, AHEAD);
                            }
                            for half in first..first + HALVES {
                                let codes = half_quad(line, half);
                                let codes = if q % 2 == 0 { codes } else { _mm256_srli_epi16::<4>(codes) };
                                let levels = _mm256_shuffle_epi8(table, _mm256_and_si256(codes, low_half));
                                let magnitudes = _mm256_abs_epi8(levels);
                                for j in 0..N {
                                    let x = _mm256_set1_epi32(quad[j]);
                                    let (unsigned, signed) = match HALVES {
                                        2 => (_mm256_abs_epi8(x), _mm256_sign_epi8(levels, x)),
                                        _ => (magnitudes, _mm256_sign_epi8(x, levels)),
                                    };
                                    totals[half][j] = dot(totals[half][j], unsigned, signed, group_scales[half][g]);
                                }
                            }
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
    _: Avx2,
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
#[target_feature(enable = "avx2,fma,f16c")]
fn int8_columns<const N: usize>(
    steps: &[int8::Step],
    inputs: &InputTile,
    first: usize,
    (out, stride): (&mut [Lanes], usize),
) {
    const GROUPS: usize = STEP / int8::GROUP;
    let (bias, ones) = (_mm256_set1_epi8(int8::BIAS as i8), _mm256_set1_epi16(1));
    let quads = &inputs.codes.as_chunks::<N>().0.as_chunks::<{ int8::GROUP / QUAD }>().0[first * GROUPS..];
    let scales = &inputs.scales.as_chunks::<N>().0[first * GROUPS..];
    let inputs = quads.as_chunks::<GROUPS>().0.iter().zip(scales.as_chunks::<GROUPS>().0);
    for (step, (quads, scales)) in steps.iter().zip(inputs) {
        if N <= 4 {
            prefetch_ahead(step, AHEAD);
        }
        for g in 0..GROUPS {
            let (weights, stored) = int8::group(step, g);
            for half in 0..2 {
                let mut totals = [_mm256_setzero_si256(); N];
                for (weights, quad) in weights.iter().zip(&quads[g]) {
                    let codes = _mm256_xor_si256(half_quad(weights, half), bias);
                    let magnitudes = _mm256_abs_epi8(codes);
                    for j in 0..N {
                        totals[j] =
                            dot(totals[j], magnitudes, _mm256_sign_epi8(_mm256_set1_epi32(quad[j]), codes), ones);
                    }
                }
                // SAFETY: sixteen bytes are readable.
                let stored = unsafe { _mm_loadu_si128(stored.as_chunks::<16>().0[half].as_ptr().cast()) };
                let stored = _mm256_cvtph_ps(stored);
                for j in 0..N {
                    let scale = _mm256_mul_ps(stored, _mm256_set1_ps(scales[g][j]));
                    let sum = load_half(&out[j * stride], half);
                    let sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(totals[j]), scale, sum);
                    store_half(&mut out[j * stride], half, sum);
                }
            }
        }
    }
}

/// See [`product::expand`].
pub(in crate::cpu::isa) fn expand(
    _: Avx2,
    row_scales: &Lanes,
    steps: &[int4::Step],
    index: usize,
    tile: &mut [TileQuad],
) -> Lanes {
    #[target_feature(enable = "avx2,fma,f16c")]
    fn inner(row_scales: &Lanes, steps: &[int4::Step], index: usize, tile: &mut [TileQuad]) -> Lanes {
        let (largest, units) = product::block_scales(steps);
        let (table, low_half) = (level_table(), _mm256_set1_epi8(15));
        let (offset_bits, even) = (_mm256_set1_epi16(12), _mm256_set1_epi16(0xff));
        let bias = _mm256_set1_epi8(i8::MIN);
        let tile = tile.as_chunks_mut::<4>().0.as_chunks_mut::<STEP_GROUPS>().0;
        for (step, tile) in steps.iter().zip(tile) {
            for (g, tile) in tile.iter_mut().enumerate() {
                let (pairs, heads) = int4::group(step, g);
                for half in 0..2 {
                    // SAFETY: eight values of two bytes are readable.
                    let units = unsafe { _mm_loadu_si128(units.as_chunks::<8>().0[half].as_ptr().cast()) };
                    let units = twice(_mm256_cvtepi16_epi32(units));
                    let heads = twice(load_heads(heads, half));
                    let offsets = _mm256_and_si256(_mm256_slli_epi16::<2>(heads), offset_bits);
                    let factors = _mm256_mullo_epi16(_mm256_srai_epi16::<2>(heads), units);
                    for (q, tile) in tile.iter_mut().enumerate() {
                        let codes = half_quad(&pairs[q / 2], half);
                        let codes = if q % 2 == 0 { codes } else { _mm256_srli_epi16::<4>(codes) };
                        let levels = _mm256_shuffle_epi8(table, _mm256_and_si256(codes, low_half));
                        let evens = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(levels));
                        let odds = _mm256_srai_epi16::<8>(levels);
                        let evens = _mm256_mulhrs_epi16(_mm256_add_epi16(evens, offsets), factors);
                        let odds = _mm256_mulhrs_epi16(_mm256_add_epi16(odds, offsets), factors);
                        let bytes = _mm256_or_si256(_mm256_and_si256(evens, even), _mm256_slli_epi16::<8>(odds));
                        let out = &mut tile[index].as_chunks_mut::<32>().0[half];
                        // SAFETY: 32 bytes are writable.
                        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_xor_si256(bytes, bias)) };
                    }
                }
            }
        }
        Lanes(std::array::from_fn(|row| row_scales[row] * largest[row] as f32))
    }
    // SAFETY: the token proves the features.
    unsafe { inner(row_scales, steps, index, tile) }
}

/// See [`product::expanded_product`].
pub(in crate::cpu::isa) fn expanded_product(
    _: Avx2,
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

/// N columns by eight rows at a time, whose sums stay in registers.
#[target_feature(enable = "avx2,fma,f16c")]
fn expanded_columns<const N: usize>(
    tile: &[TileQuad],
    row_scales: &[Lanes; TILE_PANELS],
    inputs: &InputTile,
    block: usize,
    out: &mut [Lanes],
) {
    let (bias, ones) = (_mm256_set1_epi8(int8::BIAS as i8), _mm256_set1_epi16(1));
    let quads = &inputs.codes.as_chunks::<N>().0[block * (Kind::Int4.block() / QUAD)..];
    let scales = &inputs.scales.as_chunks::<N>().0[block];
    for p in 0..TILE_PANELS {
        for half in 0..2 {
            let mut totals = [_mm256_setzero_si256(); N];
            for (weights, quad) in tile.iter().zip(quads) {
                let codes = _mm256_xor_si256(half_quad(&weights[p], half), bias);
                let magnitudes = _mm256_abs_epi8(codes);
                for j in 0..N {
                    totals[j] = dot(totals[j], magnitudes, _mm256_sign_epi8(_mm256_set1_epi32(quad[j]), codes), ones);
                }
            }
            for j in 0..N {
                let out = &mut out[j * TILE_PANELS + p];
                let scale = _mm256_mul_ps(load_half(&row_scales[p], half), _mm256_set1_ps(scales[j]));
                let sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(totals[j]), scale, load_half(out, half));
                store_half(out, half, sum);
            }
        }
    }
}
