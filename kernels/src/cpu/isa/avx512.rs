//! The inner kernels for AVX-512 with F, BW, VL, VNNI and VBMI (Intel's Ice Lake, AMD's Zen 4, and later).
//!
//! A register holds a quad of a panel: sixteen rows by four inputs. `vpdpbusd` adds the products of its unsigned
//! weights with four signed inputs, which every lane shares; weights are stored or looked up with a bias of 128,
//! and what the bias adds is known from the inputs alone.

use std::arch::x86_64::*;
use std::hint::black_box;

use super::avx2::{Avx2, prefetch_step};
use crate::cpu::probe;
use crate::quant::inputs::{InputTile, Kind};
use crate::quant::int4::{self, Panel};
use crate::quant::int8;
use crate::quant::product::{self, BLOCK_STEPS, TILE_PANELS, TileQuad};
use crate::quant::{Lanes, QUAD, STEP};

/// Proof that this CPU has AVX-512 F, BW, VL, VNNI and VBMI, and all of [`Avx2`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cpu) struct Avx512(Avx2);

impl Avx512 {
    /// The proof, if it holds.
    pub(in crate::cpu) fn detect() -> Option<Avx512> {
        let all = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx512vbmi");
        Avx2::detect().filter(|_| all).map(Avx512)
    }

    /// The weaker proof, for what AVX2 does as well.
    pub(super) fn avx2(self) -> Avx2 {
        self.0
    }
}

/// Quads of a step, and groups of int4 weights in it.
const STEP_QUADS: usize = STEP / QUAD;
const STEP_GROUPS: usize = STEP / int4::GROUP;

#[inline]
#[target_feature(enable = "avx512f")]
fn load(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: 64 bytes are readable, and the load needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_lanes(lanes: &Lanes) -> __m512 {
    // SAFETY: sixteen values are readable.
    unsafe { _mm512_loadu_ps(lanes.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_lanes(lanes: &mut Lanes, values: __m512) {
    // SAFETY: sixteen values are writable.
    unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), values) };
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_heads(heads: &[u8; 16]) -> __m128i {
    // SAFETY: sixteen bytes are readable.
    unsafe { _mm_loadu_si128(heads.as_ptr().cast()) }
}

pub(super) fn quantize(_: Avx512, kind: Kind, x: &[f32], width: usize, tile: &mut InputTile) {
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
    fn inner(kind: Kind, x: &[f32], width: usize, tile: &mut InputTile) {
        tile.fill(kind, x, width);
    }
    // SAFETY: the token proves the features.
    unsafe { inner(kind, x, width, tile) }
}

/// See [`probe::read`].
pub(super) fn fold(_: Avx512, data: &[u8]) -> u64 {
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
    fn inner(data: &[u8]) -> u64 {
        probe::fold(data, |block| block.as_chunks::<256>().0.iter().for_each(|block| prefetch_step(block)))
    }
    // SAFETY: the token proves the features.
    unsafe { inner(data) }
}

/// See [`probe::multiply`].
pub(super) fn multiply(_: Avx512, operation: probe::Operation, rounds: usize) -> u64 {
    /// Sums that do not wait for each other.
    const SUMS: usize = 12;
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
    fn int8(rounds: usize) -> i32 {
        let x = _mm512_set1_epi8(black_box(3));
        let mut sums = [_mm512_setzero_si512(); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, x, x);
            }
        }
        sums.into_iter().fold(0, |all, sum| all ^ _mm512_reduce_add_epi32(sum))
    }
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
    fn float(rounds: usize) -> f32 {
        let x = _mm512_set1_ps(black_box(0.5));
        let mut sums = [x; SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, x, x);
            }
        }
        sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum()
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    fn bf16(rounds: usize) -> f32 {
        // Two halves of one in each lane.
        let x = _mm512_set1_epi32(black_box(0x3f00_3f00));
        // SAFETY: both are 64 bytes of which every pattern is a value.
        let x = unsafe { std::mem::transmute::<__m512i, __m512bh>(x) };
        let mut sums = [_mm512_setzero_ps(); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, x, x);
            }
        }
        sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum()
    }
    if operation == probe::Operation::Bf16 && !is_x86_feature_detected!("avx512bf16") {
        return 0;
    }
    // SAFETY: the token proves the features but that of bf16, which has just been asked for.
    unsafe {
        match operation {
            probe::Operation::Bf16 => (black_box(bf16(rounds)), 2 * 32 * (SUMS * rounds) as u64).1,
            probe::Operation::Int8 => (black_box(int8(rounds)), 2 * 64 * (SUMS * rounds) as u64).1,
            probe::Operation::F32 => (black_box(float(rounds)), 2 * 16 * (SUMS * rounds) as u64).1,
        }
    }
}

/// The levels of int4 weights at codes in the lower four bits of a byte, whatever its upper bits are.
#[inline]
#[target_feature(enable = "avx512f")]
fn level_table() -> __m512i {
    // SAFETY: sixteen bytes are readable.
    _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(int4::TABLE.as_ptr().cast()) })
}

/// See [`product::int4_product`].
pub(super) fn int4_product(_: Avx512, panels: &[Panel<'_>], inputs: &InputTile, sums: &mut [Lanes]) {
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

/// See [`product::int8_product`].
pub(super) fn int8_product(_: Avx512, panels: &[&[int8::Step]], inputs: &InputTile, first: usize, sums: &mut [Lanes]) {
    // Two panels share the loads of the inputs, and six columns of them have their sums in the registers.
    let (at_once, stride) = (panels.len().min(2), panels.len());
    for (i, panels) in panels.chunks(at_once.max(1)).enumerate() {
        let sums = &mut sums[i * at_once..];
        // SAFETY: the token proves the features.
        unsafe {
            match (inputs.width, panels) {
                (1, &[panel]) => int8_columns::<1, 1>([panel], inputs, first, sums, stride),
                (1, &[a, b]) => int8_columns::<1, 2>([a, b], inputs, first, sums, stride),
                (2, &[a, b]) => int8_columns::<2, 2>([a, b], inputs, first, sums, stride),
                (3, &[a, b]) => int8_columns::<3, 2>([a, b], inputs, first, sums, stride),
                (4, &[a, b]) => int8_columns::<4, 2>([a, b], inputs, first, sums, stride),
                (5, &[a, b]) => int8_columns::<5, 2>([a, b], inputs, first, sums, stride),
                (6, &[a, b]) => int8_columns::<6, 2>([a, b], inputs, first, sums, stride),
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
        if N <= 4 && g % GROUPS == 0 {
            for panel in panels {
                prefetch_step(&panel[g / GROUPS]);
            }
        }
    }
    for j in 0..N {
        for p in 0..P {
            store_lanes(&mut out[j * stride + p], sums[j][p]);
        }
    }
}

/// See [`product::expand`].
pub(super) fn expand(
    _: Avx512,
    row_scales: &Lanes,
    steps: &[int4::Step],
    index: usize,
    tile: &mut [TileQuad],
) -> Lanes {
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
    fn inner(row_scales: &Lanes, steps: &[int4::Step], index: usize, tile: &mut [TileQuad]) -> Lanes {
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
pub(super) fn expanded_product(
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
