//! Packing weights.

use std::arch::x86_64::*;

use super::Avx2;
use crate::quant;
use crate::quant::int4::GROUP;
use crate::quant::int4_search::{CANDIDATES, CELLS, LAST_CELL, TRIAL_LEVELS, TRIALS, Trials};

/// See [`quant::int4::quantize_rows`].
pub(in crate::cpu::isa) fn int4(_: Avx2, source: &[f32], cols: usize, packed: &mut [u8]) {
    #[target_feature(enable = "avx2,fma,f16c")]
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
#[target_feature(enable = "avx2,fma,f16c")]
fn trial_sums(weights: &[f32; GROUP], inverses: &[f32], [cross, square]: [&mut [Trials]; 2]) {
    /// So many sums of both kinds fit the registers, and they do not wait for each other.
    const AT_ONCE: usize = 5;
    let all = inverses.chunks(AT_ONCE).zip(cross.chunks_mut(AT_ONCE).zip(square.chunks_mut(AT_ONCE)));
    for (inverses, (cross, square)) in all {
        match inverses.len() {
            AT_ONCE => some_trial_sums::<AT_ONCE>(weights, inverses, [cross, square]),
            CANDIDATES => some_trial_sums::<CANDIDATES>(weights, inverses, [cross, square]),
            _ => quant::int4_search::trial_sums(weights, inverses, [cross, square]),
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn some_trial_sums<const N: usize>(weights: &[f32; GROUP], inverses: &[f32], [cross, square]: [&mut [Trials]; 2]) {
    let mut rows = [const { Rows([0; GROUP]) }; N];
    for (rows, inverse) in rows.iter_mut().zip(inverses) {
        rows.find(weights, *inverse);
    }
    let (mut crosses, mut squares) = ([_mm256_setzero_ps(); N], [_mm256_setzero_ps(); N]);
    for (k, weight) in weights.iter().enumerate() {
        let weight = _mm256_set1_ps(*weight);
        for i in 0..N {
            let levels = rows[i].load(k);
            crosses[i] = _mm256_add_ps(crosses[i], _mm256_mul_ps(weight, levels));
            // Sums of integers are exact, fused or not.
            squares[i] = _mm256_fmadd_ps(levels, levels, squares[i]);
        }
    }
    for (out, sums) in [(cross, crosses), (square, squares)] {
        for (out, sum) in out.iter_mut().zip(sums) {
            // SAFETY: eight values are writable.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), sum) };
        }
    }
}

/// Where the rows of [`TRIAL_LEVELS`] begin that a group's weights need, in values.
#[repr(align(64))]
struct Rows([i32; GROUP]);

impl Rows {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn find(&mut self, weights: &[f32; GROUP], inverse: f32) {
        for (rows, weights) in self.0.as_chunks_mut::<8>().0.iter_mut().zip(weights.as_chunks::<8>().0) {
            // SAFETY: eight values are readable.
            let y = _mm256_mul_ps(unsafe { _mm256_loadu_ps(weights.as_ptr()) }, _mm256_set1_ps(inverse));
            let cell = _mm256_add_ps(_mm256_add_ps(y, y), _mm256_set1_ps(CELLS as f32));
            // The maximum with NaN is its second operand.
            let cell = _mm256_min_ps(_mm256_max_ps(cell, _mm256_setzero_ps()), _mm256_set1_ps(LAST_CELL));
            let places = _mm256_slli_epi32::<{ TRIALS.ilog2() as i32 }>(_mm256_cvttps_epi32(cell));
            // SAFETY: eight values are writable.
            unsafe { _mm256_storeu_si256(rows.as_mut_ptr().cast(), places) };
        }
    }

    /// The levels of weight `k`.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn load(&self, k: usize) -> __m256 {
        // SAFETY: `find` writes places of rows alone, and what it has not written is the first.
        unsafe { _mm256_loadu_ps(TRIAL_LEVELS.as_ptr().cast::<f32>().add(self.0[k] as usize)) }
    }
}
