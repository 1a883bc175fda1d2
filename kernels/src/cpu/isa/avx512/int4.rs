//! Products with int4 weights, as they are read and expanded.

use std::arch::x86_64::*;

use super::super::avx2::prefetch_step;
use super::{Avx512, load, load_heads, load_lanes, store_lanes};
use crate::quant::inputs::InputTile;
use crate::quant::int4::{self, Panel, Step};
use crate::quant::product::{self, BLOCK_STEPS, TILE_PANELS, TileQuad};
use crate::quant::{Lanes, QUAD, STEP, int8};

/// Quads of a step, and groups of weights in it.
const STEP_QUADS: usize = STEP / QUAD;
const STEP_GROUPS: usize = STEP / int4::GROUP;

/// The levels of int4 weights at codes in the lower four bits of a byte, whatever its upper bits are.
#[inline]
#[target_feature(enable = "avx512f")]
fn level_table() -> __m512i {
    // SAFETY: sixteen bytes are readable.
    _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(int4::TABLE.as_ptr().cast()) })
}

/// See [`product::int4_product`].
pub(in crate::cpu::isa) fn int4_product(_: Avx512, panels: &[Panel<'_>], inputs: &InputTile, sums: &mut [Lanes]) {
    // Two panels share the loads of the inputs. A single token is bound by memory, which likes one stream best.
    // SAFETY: the token proves the features.
    unsafe {
        match (inputs.width, panels) {
            (1, [panel]) => int4_columns::<1, 1>([panel], inputs, sums),
            (2, [a, b]) => int4_columns::<2, 2>([a, b], inputs, sums),
            (3, [a, b]) => int4_columns::<3, 2>([a, b], inputs, sums),
            (4, [a, b]) => int4_columns::<4, 2>([a, b], inputs, sums),
            _ => product::int4_product(panels, inputs, sums),
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn int4_columns<const N: usize, const P: usize>(panels: [&Panel<'_>; P], inputs: &InputTile, out: &mut [Lanes]) {
    // With their sign bits turned, levels are unsigned and 128 more.
    let table = _mm512_xor_si512(level_table(), _mm512_set1_epi8(i8::MIN));
    let (shift_bits, bias) = (_mm512_set1_epi32(3), _mm512_set1_epi32(int8::BIAS << 16));
    let quads = inputs.codes.as_chunks::<N>().0.as_chunks::<STEP_QUADS>().0;
    let group_sums = inputs.group_sums.as_chunks::<N>().0.as_chunks::<STEP_GROUPS>().0;
    let scales = inputs.scales.as_chunks::<N>().0;
    let mut sums = [[_mm512_setzero_ps(); P]; N];
    let n_steps = panels[0].steps.len();
    for (block, scales) in scales.iter().enumerate() {
        let mut totals = [[_mm512_setzero_si512(); P]; N];
        for s in block * BLOCK_STEPS..n_steps.min((block + 1) * BLOCK_STEPS) {
            for panel in panels {
                prefetch_step(&panel.steps[s]);
            }
            let (quads, group_sums) = (&quads[s].as_chunks::<4>().0, &group_sums[s]);
            for g in 0..STEP_GROUPS {
                for p in 0..P {
                    let ([low, high], heads) = int4::group(&panels[p].steps[s], g);
                    let heads = _mm512_cvtepi8_epi32(load_heads(heads));
                    // The pairs (shift, 128): heads & 3 | 128 << 16.
                    let pairs = _mm512_ternarylogic_epi32::<0xea>(heads, shift_bits, bias);
                    let group_scales = _mm512_srai_epi32::<2>(heads);
                    let (low, high) = (load(low), load(high));
                    let levels = [
                        _mm512_permutexvar_epi8(low, table),
                        _mm512_permutexvar_epi8(_mm512_srli_epi16::<4>(low), table),
                        _mm512_permutexvar_epi8(high, table),
                        _mm512_permutexvar_epi8(_mm512_srli_epi16::<4>(high), table),
                    ];
                    for j in 0..N {
                        let mut sum = _mm512_madd_epi16(pairs, _mm512_set1_epi32(group_sums[g][j]));
                        for q in 0..4 {
                            sum = _mm512_dpbusd_epi32(sum, levels[q], _mm512_set1_epi32(quads[g][q][j]));
                        }
                        totals[j][p] = _mm512_add_epi32(totals[j][p], _mm512_mullo_epi32(sum, group_scales));
                    }
                }
            }
        }
        for j in 0..N {
            for p in 0..P {
                sums[j][p] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(totals[j][p]), _mm512_set1_ps(scales[j]), sums[j][p]);
            }
        }
    }
    for (out, sums) in out.as_chunks_mut::<P>().0.iter_mut().zip(sums) {
        for p in 0..P {
            store_lanes(&mut out[p], _mm512_mul_ps(load_lanes(&panels[p].row_scales), sums[p]));
        }
    }
}

/// See [`product::expand`].
pub(in crate::cpu::isa) fn expand(
    _: Avx512,
    row_scales: &Lanes,
    steps: &[Step],
    index: usize,
    tile: &mut [TileQuad],
) -> Lanes {
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
    fn inner(row_scales: &Lanes, steps: &[Step], index: usize, tile: &mut [TileQuad]) -> Lanes {
        let (largest, units) = product::block_scales(steps);
        let table = level_table();
        // Both halves of a row's 32 bits get the row's 16.
        let twice = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 0, 1, 4, 5, 4, 5, 8, 9, 8, 9, 12, 13, 12, 13));
        // SAFETY: sixteen values of two bytes are readable.
        let units = _mm512_cvtepi16_epi32(unsafe { _mm256_loadu_si256(units.as_ptr().cast()) });
        let units = _mm512_shuffle_epi8(units, twice);
        let (offset_bits, even, bias) = (_mm512_set1_epi16(12), _mm512_set1_epi16(0xff), _mm512_set1_epi8(i8::MIN));
        let tile = tile.as_chunks_mut::<4>().0.as_chunks_mut::<STEP_GROUPS>().0;
        for (step, tile) in steps.iter().zip(tile) {
            for (([low, high], heads), tile) in int4::groups(step).into_iter().zip(tile) {
                let heads = _mm512_shuffle_epi8(_mm512_cvtepi8_epi32(load_heads(heads)), twice);
                let offsets = _mm512_and_si512(_mm512_slli_epi16::<2>(heads), offset_bits);
                let factors = _mm512_mullo_epi16(_mm512_srai_epi16::<2>(heads), units);
                let (low, high) = (load(low), load(high));
                let codes = [low, _mm512_srli_epi16::<4>(low), high, _mm512_srli_epi16::<4>(high)];
                for (codes, tile) in codes.into_iter().zip(tile) {
                    let levels = _mm512_permutexvar_epi8(codes, table);
                    let evens = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(levels));
                    let odds = _mm512_srai_epi16::<8>(levels);
                    let evens = _mm512_mulhrs_epi16(_mm512_add_epi16(evens, offsets), factors);
                    let odds = _mm512_mulhrs_epi16(_mm512_add_epi16(odds, offsets), factors);
                    // Even bytes from evens, odd bytes from odds: (evens & even) | (odds << 8).
                    let bytes = _mm512_ternarylogic_epi32::<0xea>(evens, even, _mm512_slli_epi16::<8>(odds));
                    // SAFETY: 64 bytes are writable.
                    unsafe { _mm512_storeu_si512(tile[index].as_mut_ptr().cast(), _mm512_xor_si512(bytes, bias)) };
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
    _: Avx512,
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

/// N columns by 64 rows: with six columns 24 sums, four weights and one input, of 32 registers.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
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
    let mut totals = [[_mm512_setzero_si512(); TILE_PANELS]; N];
    for j in 0..N {
        totals[j] = [_mm512_set1_epi32(corrections[j]); TILE_PANELS];
    }
    for (weights, quad) in tile.iter().zip(quads) {
        let weights = [load(&weights[0]), load(&weights[1]), load(&weights[2]), load(&weights[3])];
        for j in 0..N {
            let x = _mm512_set1_epi32(quad[j]);
            for h in 0..TILE_PANELS {
                totals[j][h] = _mm512_dpbusd_epi32(totals[j][h], weights[h], x);
            }
        }
    }
    for (j, out) in out.as_chunks_mut::<TILE_PANELS>().0.iter_mut().enumerate().take(N) {
        let scale = _mm512_set1_ps(scales[j]);
        for h in 0..TILE_PANELS {
            let scales = _mm512_mul_ps(load_lanes(&row_scales[h]), scale);
            let sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(totals[j][h]), scales, load_lanes(&out[h]));
            store_lanes(&mut out[h], sum);
        }
    }
}
