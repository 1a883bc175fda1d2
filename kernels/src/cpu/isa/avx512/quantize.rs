//! Packing weights.

use std::arch::x86_64::*;

use super::Avx512;
use crate::quant;
use crate::quant::int4::GROUP;
use crate::quant::int4_search::{CANDIDATES, CELLS, GUESSES, LAST_CELL, TRIAL_LEVELS, TRIALS, Trials};

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
