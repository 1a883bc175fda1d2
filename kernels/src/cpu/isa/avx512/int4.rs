//! Products with int4 weights, as they are read and expanded.

use std::arch::x86_64::*;

use super::super::avx2::{AHEAD, prefetch_ahead};
use super::{Avx512, load, load_lanes, store_lanes};
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
pub(super) fn level_table() -> __m512i {
    // SAFETY: sixteen bytes are readable.
    _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(int4::TABLE.as_ptr().cast()) })
}

/// See [`product::int4_product`].
pub(in crate::cpu::isa) fn int4_product(_: Avx512, panels: &[Panel<'_>], inputs: &InputTile, sums: &mut [Lanes]) {
    for (p, panel) in panels.iter().enumerate() {
        let out = (&mut sums[p..], panels.len());
        // SAFETY: the token proves the features.
        unsafe {
            match inputs.width {
                1 => int4_columns::<1, true>(panel, inputs, out),
                2 => int4_columns::<2, true>(panel, inputs, out),
                3 => int4_columns::<3, true>(panel, inputs, out),
                4 => int4_columns::<4, true>(panel, inputs, out),
                5 => int4_columns::<5, false>(panel, inputs, out),
                6 => int4_columns::<6, false>(panel, inputs, out),
                7 => int4_columns::<7, false>(panel, inputs, out),
                8 => int4_columns::<8, false>(panel, inputs, out),
                _ => return product::int4_product(panels, inputs, sums),
            }
        }
    }
}

/// Heads of two neighbouring groups: each row's two, in the upper bytes of its 16 bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn heads_of_two(heads: __m512i, pair: usize) -> __m512i {
    const ORDERS: [[u8; 64]; STEP_GROUPS / 2] = {
        let mut orders = [[0; 64]; STEP_GROUPS / 2];
        let mut i = 0;
        while i < 128 {
            orders[i / 64][i % 64] = (i / 64 * 32 + i % 4 / 2 * 16 + i % 64 / 4) as u8;
            i += 1;
        }
        orders
    };
    _mm512_permutexvar_epi8(load(&ORDERS[pair]), heads)
}

/// Heads of a group: each row's in the upper bytes of both halves of its 32 bits.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn heads_of_one(heads: __m512i, group: usize) -> __m512i {
    const ORDERS: [[u8; 64]; STEP_GROUPS] = {
        let mut orders = [[0; 64]; STEP_GROUPS];
        let mut i = 0;
        while i < 256 {
            orders[i / 64][i % 64] = (i / 64 * 16 + i % 64 / 4) as u8;
            i += 1;
        }
        orders
    };
    _mm512_permutexvar_epi8(load(&ORDERS[group]), heads)
}

/// The levels of a group's quads, by its two lines.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn levels_of(table: __m512i, lines: [__m512i; 2]) -> [__m512i; 4] {
    let [low, high] = lines;
    [
        _mm512_permutexvar_epi8(low, table),
        _mm512_permutexvar_epi8(_mm512_srli_epi16::<4>(low), table),
        _mm512_permutexvar_epi8(high, table),
        _mm512_permutexvar_epi8(_mm512_srli_epi16::<4>(high), table),
    ]
}

/// The products of a group with column `j` of its inputs.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn dot<const N: usize>(levels: &[__m512i; 4], quads: &[[i32; N]; 4], j: usize) -> __m512i {
    let mut sum = _mm512_setzero_si512();
    for q in 0..4 {
        sum = _mm512_dpbusd_epi32(sum, levels[q], _mm512_set1_epi32(quads[q][j]));
    }
    sum
}

/// N columns, whose sums are `stride` apart. Weights are looked up once for all columns.
///
/// With their sign bits turned, levels are unsigned and 128 more; what that and the shift add is
/// group_scale * (4 shift - 128) times the sum of the group's inputs, one product for two groups.
///
/// With HEADS_LAST a step is read front to back, and each line that is read asks for one further ahead: lines out of
/// order or all at once cost 3 to 5 % of the memory's speed, with four columns 10 %. The sums of all groups then wait for
/// the heads, for which there are registers up to four columns, or nearly.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn int4_columns<const N: usize, const HEADS_LAST: bool>(
    panel: &Panel<'_>,
    inputs: &InputTile,
    (out, stride): (&mut [Lanes], usize),
) {
    let table = _mm512_xor_si512(level_table(), _mm512_set1_epi8(i8::MIN));
    let (shift_bits, bias) = (_mm512_set1_epi16(12), _mm512_set1_epi16(-int8::BIAS as i16));
    let quads = inputs.codes.as_chunks::<N>().0.as_chunks::<4>().0.as_chunks::<STEP_GROUPS>().0;
    let group_sums = inputs.group_sums.as_chunks::<N>().0.as_chunks::<{ STEP_GROUPS / 2 }>().0;
    let blocks = quads.chunks(BLOCK_STEPS).zip(group_sums.chunks(BLOCK_STEPS)).zip(inputs.scales.as_chunks::<N>().0);
    let mut sums = [_mm512_setzero_ps(); N];
    for (steps, ((quads, group_sums), scales)) in panel.steps.chunks(BLOCK_STEPS).zip(blocks) {
        let mut totals = [_mm512_setzero_si512(); N];
        for (step, (quads, group_sums)) in steps.iter().zip(quads.iter().zip(group_sums)) {
            let (lines, heads) = int4::parts(step);
            let mut products = [[_mm512_setzero_si512(); N]; STEP_GROUPS];
            if HEADS_LAST {
                for (g, products) in products.iter_mut().enumerate() {
                    let lines = [2 * g, 2 * g + 1].map(|line| {
                        prefetch_ahead(&lines[line], AHEAD);
                        load(&lines[line])
                    });
                    let levels = levels_of(table, lines);
                    for (j, product) in products.iter_mut().enumerate() {
                        *product = dot(&levels, &quads[g], j);
                    }
                }
                prefetch_ahead(heads, AHEAD);
            } else {
                prefetch_ahead(step, AHEAD);
            }
            let heads = load(heads);
            for g in 0..STEP_GROUPS {
                let heads = heads_of_two(heads, g / 2);
                if g % 2 == 0 {
                    let offsets = _mm512_srli_epi16::<6>(heads);
                    // offsets & shift_bits | bias
                    let offsets = _mm512_ternarylogic_epi32::<0xea>(offsets, shift_bits, bias);
                    let offsets = _mm512_mullo_epi16(_mm512_srai_epi16::<10>(heads), offsets);
                    for j in 0..N {
                        totals[j] = _mm512_dpwssd_epi32(totals[j], offsets, _mm512_set1_epi32(group_sums[g / 2][j]));
                    }
                }
                let group_scales = if g % 2 == 0 { _mm512_slli_epi32::<16>(heads) } else { heads };
                let group_scales = _mm512_srai_epi32::<26>(group_scales);
                let levels = if HEADS_LAST {
                    [_mm512_setzero_si512(); 4]
                } else {
                    levels_of(table, [load(&lines[2 * g]), load(&lines[2 * g + 1])])
                };
                for j in 0..N {
                    let product = if HEADS_LAST { products[g][j] } else { dot(&levels, &quads[g], j) };
                    totals[j] = _mm512_add_epi32(totals[j], _mm512_mullo_epi32(product, group_scales));
                }
            }
        }
        for j in 0..N {
            sums[j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(totals[j]), _mm512_set1_ps(scales[j]), sums[j]);
        }
    }
    let row_scales = load_lanes(&panel.row_scales);
    for j in 0..N {
        store_lanes(&mut out[j * stride], _mm512_mul_ps(row_scales, sums[j]));
    }
}

/// floor(32767 / m) for m in 0..=32, as the specification has it.
const UNITS: [[i16; 32]; 2] = {
    let mut units = [[i16::MAX; 32]; 2];
    let mut m = 1;
    while m <= 32 {
        units[m / 32][m % 32] = i16::MAX / m as i16;
        m += 1;
    }
    units
};

/// See [`product::expand`].
pub(in crate::cpu::isa) fn expand(
    _: Avx512,
    row_scales: &Lanes,
    steps: &[Step],
    index: usize,
    tile: &mut [TileQuad],
) -> Lanes {
    // SAFETY: the token proves the features.
    unsafe { expand_block(row_scales, steps, index, tile) }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn expand_block(row_scales: &Lanes, steps: &[Step], index: usize, tile: &mut [TileQuad]) -> Lanes {
    // The upper six bits of heads are the scales; in place, they are four times as large.
    let scale_bits = _mm512_set1_epi8(!3);
    let mut magnitudes = _mm512_setzero_si512();
    for step in steps {
        prefetch_ahead(step, BLOCK_STEPS * size_of::<Step>());
        let scales = _mm512_and_si512(load(int4::parts(step).1), scale_bits);
        magnitudes = _mm512_max_epu8(magnitudes, _mm512_abs_epi8(scales));
    }
    let halves = _mm256_max_epu8(_mm512_castsi512_si256(magnitudes), _mm512_extracti64x4_epi64::<1>(magnitudes));
    let largest = _mm_max_epu8(_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves));
    let largest = _mm512_srli_epi32::<2>(_mm512_cvtepu8_epi32(largest));
    // SAFETY: each has 64 readable bytes.
    let units = unsafe { UNITS.each_ref().map(|units| _mm512_loadu_si512(units.as_ptr().cast())) };
    // Both halves of a row's 32 bits get the row's 16.
    let order = _mm512_or_si512(largest, _mm512_slli_epi32::<16>(largest));
    let units = _mm512_permutex2var_epi16(units[0], order, units[1]);

    let table = level_table();
    let (offset_bits, even, bias) = (_mm512_set1_epi16(12), _mm512_set1_epi16(0xff), _mm512_set1_epi8(i8::MIN));
    let tile = tile.as_chunks_mut::<4>().0.as_chunks_mut::<STEP_GROUPS>().0;
    for (step, tile) in steps.iter().zip(tile) {
        let (pairs, heads) = int4::parts(step);
        let heads = load(heads);
        for (g, tile) in tile.iter_mut().enumerate() {
            let heads = heads_of_one(heads, g);
            let offsets = _mm512_and_si512(_mm512_srli_epi16::<6>(heads), offset_bits);
            let factors = _mm512_mullo_epi16(_mm512_srai_epi16::<10>(heads), units);
            let (low, high) = (load(&pairs[2 * g]), load(&pairs[2 * g + 1]));
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
    let mut scales = Lanes::default();
    store_lanes(&mut scales, _mm512_mul_ps(load_lanes(row_scales), _mm512_cvtepi32_ps(largest)));
    scales
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
