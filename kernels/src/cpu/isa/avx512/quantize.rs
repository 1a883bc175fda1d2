//! Packing weights.

use std::arch::x86_64::*;

use super::{Avx512, store_lanes};
use crate::quant::int4::GROUP;
use crate::quant::int4_search::{CANDIDATES, CELLS, GUESSES, LAST_CELL, TRIAL_LEVELS, TRIALS, Trials};
use crate::quant::int8::{CODE_BYTES, Step, StepWeights};
use crate::quant::{self, Lanes, PANEL_ROWS};

/// See [`quant::int4::quantize_rows`].
pub(in crate::cpu::isa) fn int4(_: Avx512, source: &[f32], cols: usize, packed: &mut [u8]) {
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
    fn inner(source: &[f32], cols: usize, packed: &mut [u8]) {
        quant::int4::quantize_rows_with(source, cols, packed, |weights, inverses, sums| {
            trial_sums(weights, inverses, sums)
        });
    }
    // SAFETY: the token proves the features.
    unsafe { inner(source, cols, packed) }
}

/// See [`quant::int8::quantize_rows`].
pub(in crate::cpu::isa) fn int8(_: Avx512, source: &[f32], cols: usize, packed: &mut [u8]) {
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
    fn inner(source: &[f32], cols: usize, packed: &mut [u8]) {
        quant::int8::quantize_rows_with(source, cols, packed, |weights, step| int8_step(weights, step));
    }
    // SAFETY: the token proves the features.
    unsafe { inner(source, cols, packed) }
}

/// See [`quant::int8::quantize_step`]. Scales are found for sixteen rows at once, a row to a lane.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn int8_step(weights: &StepWeights<'_>, step: &mut Step) {
    let load = |row: usize, part: usize| {
        let sixteen: &[f32; 16] = &weights[row].as_chunks().0[part];
        // SAFETY: sixteen values are readable.
        unsafe { _mm512_loadu_ps(sixteen.as_ptr()) }
    };
    let largest = [0, 1].map(|g| {
        largest_of_rows(std::array::from_fn(|r| {
            let [a, b] = [0, 1].map(|i| _mm512_castps_si512(_mm512_abs_ps(load(r, 2 * g + i))));
            // As bits, magnitudes are ordered like integers, and what is not finite comes last.
            _mm512_max_epi32(a, b)
        }))
    });
    let infinite = _mm512_set1_epi32(f32::INFINITY.to_bits() as i32);
    if _mm512_cmpge_epi32_mask(_mm512_max_epi32(largest[0], largest[1]), infinite) != 0 {
        return quant::int8::quantize_step(weights, step);
    }
    let inverses = [0, 1].map(|g| {
        let any = _mm512_test_epi32_mask(largest[g], largest[g]);
        let scale = _mm512_div_ps(_mm512_castsi512_ps(largest[g]), _mm512_set1_ps(127.0));
        let scale = _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT }>(_mm512_min_ps(scale, _mm512_set1_ps(65504.0)));
        let scale = _mm256_mask_max_epu16(scale, any, scale, _mm256_set1_epi16(1));
        let bytes: &mut [u8; 32] = &mut step[CODE_BYTES..].as_chunks_mut().0[g];
        // SAFETY: 32 bytes are writable.
        unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), scale) };
        let mut inverses = Lanes::default();
        store_lanes(&mut inverses, _mm512_maskz_div_ps(any, _mm512_set1_ps(1.0), _mm512_cvtph_ps(scale)));
        inverses
    });
    let mut codes: [__m512i; PANEL_ROWS] = std::array::from_fn(|r| {
        let [a, b, c, d] = std::array::from_fn(|part| {
            let value = _mm512_mul_ps(load(r, part), _mm512_set1_ps(inverses[part / 2][r]));
            // Rounded to even; what is below all integers becomes the least of them.
            _mm512_cvtps_epi32(_mm512_min_ps(value, _mm512_set1_ps(127.0)))
        });
        // Quad k of each in the 128 bits k.
        let codes = _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
        let codes = _mm512_max_epi8(codes, _mm512_set1_epi8(-127));
        _mm512_add_epi8(codes, _mm512_set1_epi8(quant::int8::BIAS as u8 as i8))
    });
    transpose(&mut codes);
    let quads = step.as_chunks_mut::<64>().0;
    for (i, codes) in codes.into_iter().enumerate() {
        // SAFETY: 64 bytes are writable.
        unsafe { _mm512_storeu_si512(quads[4 * (i % 4) + i / 4].as_mut_ptr().cast(), codes) };
    }
}

/// The largest of sixteen values of each row, at the place of the row.
#[inline]
#[target_feature(enable = "avx512f")]
fn largest_of_rows(rows: [__m512i; PANEL_ROWS]) -> __m512i {
    let max = |[a, b]: [__m512i; 2]| _mm512_max_epi32(a, b);
    // Four rows' largest of each 128 bits.
    let [a, b, c, d] = std::array::from_fn(|i| {
        let [a, b] = [0, 2].map(|k| {
            let [x, y] = [rows[4 * i + k], rows[4 * i + k + 1]];
            max([_mm512_unpacklo_epi32(x, y), _mm512_unpackhi_epi32(x, y)])
        });
        max([_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b)])
    });
    let halves = |x, y| max([_mm512_shuffle_i32x4::<0x88>(x, y), _mm512_shuffle_i32x4::<0xdd>(x, y)]);
    halves(halves(a, b), halves(c, d))
}

/// Makes row r of column c what was row c of column r.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(square: &mut [__m512i; 16]) {
    for rows in square.as_chunks_mut::<4>().0 {
        let [a, b, c, d] = *rows;
        let (low, high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (low_2, high_2) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        *rows = [
            _mm512_unpacklo_epi64(low, low_2),
            _mm512_unpackhi_epi64(low, low_2),
            _mm512_unpacklo_epi64(high, high_2),
            _mm512_unpackhi_epi64(high, high_2),
        ];
    }
    // Now 128 bits k of vector 4 b + e are rows 4 b to 4 b + 3 of column 4 k + e.
    for e in 0..4 {
        let [a, b, c, d] = [0, 4, 8, 12].map(|b| square[b + e]);
        let [even, even_2] = [_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0x88>(c, d)];
        let [odd, odd_2] = [_mm512_shuffle_i32x4::<0xdd>(a, b), _mm512_shuffle_i32x4::<0xdd>(c, d)];
        square[e] = _mm512_shuffle_i32x4::<0x88>(even, even_2);
        square[4 + e] = _mm512_shuffle_i32x4::<0x88>(odd, odd_2);
        square[8 + e] = _mm512_shuffle_i32x4::<0xdd>(even, even_2);
        square[12 + e] = _mm512_shuffle_i32x4::<0xdd>(odd, odd_2);
    }
}

/// See [`quant::int4_search::trial_sums`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn trial_sums(weights: &[f32; GROUP], inverses: &[f32], [cross, square]: [&mut [Trials]; 2]) {
    match inverses.len() {
        GUESSES => pairs::<{ GUESSES.div_ceil(2) }>(weights, inverses, [cross, square]),
        CANDIDATES => pairs::<{ CANDIDATES.div_ceil(2) }>(weights, inverses, [cross, square]),
        _ => quant::int4_search::trial_sums(weights, inverses, [cross, square]),
    }
}

/// All inverses at once, the trials of two to a register; an odd one stands alone.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn pairs<const PAIRS: usize>(weights: &[f32; GROUP], inverses: &[f32], [cross, square]: [&mut [Trials]; 2]) {
    let mut rows = [const { [const { Rows([0; GROUP]) }; 2] }; PAIRS];
    for (rows, inverse) in rows.as_flattened_mut().iter_mut().zip(inverses) {
        rows.find(weights, *inverse);
    }
    let (mut crosses, mut squares) = ([_mm512_setzero_ps(); PAIRS], [_mm512_setzero_ps(); PAIRS]);
    for (k, weight) in weights.iter().enumerate() {
        let weight = _mm512_set1_ps(*weight);
        for i in 0..PAIRS {
            let (low, high) = (rows[i][0].load(k), rows[i][1].load(k));
            let levels = _mm512_insertf64x4::<1>(_mm512_castpd256_pd512(low), high);
            let levels = _mm512_castpd_ps(levels);
            crosses[i] = _mm512_add_ps(crosses[i], _mm512_mul_ps(weight, levels));
            // Sums of integers are exact, fused or not.
            squares[i] = _mm512_fmadd_ps(levels, levels, squares[i]);
        }
    }
    for (out, sums) in [(cross, crosses), (square, squares)] {
        for (out, sum) in out.chunks_mut(2).zip(sums) {
            let halves =
                [_mm512_castpd512_pd256(_mm512_castps_pd(sum)), _mm512_extractf64x4_pd::<1>(_mm512_castps_pd(sum))];
            for (out, half) in out.iter_mut().zip(halves) {
                // SAFETY: eight values are writable.
                unsafe { _mm256_storeu_pd(out.as_mut_ptr().cast(), half) };
            }
        }
    }
}

/// Where the rows of [`TRIAL_LEVELS`] begin that a group's weights need, in values.
#[repr(align(64))]
struct Rows([i32; GROUP]);

impl Rows {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
    fn find(&mut self, weights: &[f32; GROUP], inverse: f32) {
        // SAFETY: sixteen values are readable.
        let y = _mm512_mul_ps(unsafe { _mm512_loadu_ps(weights.as_ptr()) }, _mm512_set1_ps(inverse));
        let cell = _mm512_add_ps(_mm512_add_ps(y, y), _mm512_set1_ps(CELLS as f32));
        // The maximum with NaN is its second operand.
        let cell = _mm512_min_ps(_mm512_max_ps(cell, _mm512_setzero_ps()), _mm512_set1_ps(LAST_CELL));
        let rows = _mm512_slli_epi32::<{ TRIALS.ilog2() }>(_mm512_cvttps_epi32(cell));
        // SAFETY: sixteen values are writable.
        unsafe { _mm512_storeu_si512(self.0.as_mut_ptr().cast(), rows) };
    }

    /// The levels of weight `k`.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
    fn load(&self, k: usize) -> __m256d {
        // SAFETY: `find` writes places of rows alone, and what it has not written is the first.
        unsafe { _mm256_loadu_pd(TRIAL_LEVELS.as_ptr().cast::<f32>().add(self.0[k] as usize).cast()) }
    }
}
