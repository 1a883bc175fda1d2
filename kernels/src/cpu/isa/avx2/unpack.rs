//! The values of quantized weights.

use std::arch::x86_64::*;

use super::{Avx2, half_quad, level_table, load_heads};
use crate::quant::{Lanes, QUAD, int4, int8};

/// Writes eight rows of a quad: `out[i][8 half..] = scales * (byte i of each lane + offsets)`, for as many inputs as
/// `out` has.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn unpack_quad(bytes: __m256i, offsets: __m256i, scales: __m256, half: usize, out: &mut [Lanes]) {
    let places = [24, 16, 8, 0];
    for (out, place) in out.iter_mut().zip(places) {
        let upper = _mm256_sll_epi32(bytes, _mm_cvtsi32_si128(place));
        let value = _mm256_add_epi32(_mm256_srai_epi32::<24>(upper), offsets);
        let value = _mm256_mul_ps(scales, _mm256_cvtepi32_ps(value));
        // SAFETY: eight values are writable.
        unsafe { _mm256_storeu_ps(out.as_chunks_mut::<8>().0[half].as_mut_ptr(), value) };
    }
}

pub(in crate::cpu::isa) fn unpack_int8(_: Avx2, steps: &[int8::Step], out: &mut [Lanes]) {
    #[target_feature(enable = "avx2,fma,f16c")]
    fn inner(steps: &[int8::Step], out: &mut [Lanes]) {
        // Without the sign bit, a biased code is the code.
        let bias = _mm256_set1_epi8(int8::BIAS as i8);
        for (out, (quads, stored)) in out.chunks_mut(int8::GROUP).zip(steps.iter().flat_map(int8::groups)) {
            for half in 0..2 {
                // SAFETY: sixteen bytes are readable.
                let scales = unsafe { _mm_loadu_si128(stored.as_chunks::<16>().0[half].as_ptr().cast()) };
                let scales = _mm256_cvtph_ps(scales);
                for (out, quad) in out.chunks_mut(QUAD).zip(quads) {
                    let codes = _mm256_xor_si256(half_quad(quad, half), bias);
                    unpack_quad(codes, _mm256_setzero_si256(), scales, half, out);
                }
            }
        }
    }
    // SAFETY: the token proves the features.
    unsafe { inner(steps, out) }
}

pub(in crate::cpu::isa) fn unpack_int4(_: Avx2, row_scales: &Lanes, steps: &[int4::Step], out: &mut [Lanes]) {
    #[target_feature(enable = "avx2,fma,f16c")]
    fn inner(row_scales: &Lanes, steps: &[int4::Step], out: &mut [Lanes]) {
        let table = level_table();
        let (low_half, shift_bits) = (_mm256_set1_epi8(15), _mm256_set1_epi32(12));
        for (out, (pairs, heads)) in out.chunks_mut(int4::GROUP).zip(steps.iter().flat_map(int4::groups)) {
            for half in 0..2 {
                let heads = load_heads(heads, half);
                let offsets = _mm256_and_si256(_mm256_slli_epi32::<2>(heads), shift_bits);
                // SAFETY: eight values are readable.
                let scales = unsafe { _mm256_loadu_ps(row_scales.as_chunks::<8>().0[half].as_ptr()) };
                let scales = _mm256_mul_ps(scales, _mm256_cvtepi32_ps(_mm256_srai_epi32::<2>(heads)));
                for (quad, out) in out.chunks_mut(QUAD).enumerate() {
                    let codes = half_quad(&pairs[quad / 2], half);
                    let codes = if quad % 2 == 0 { codes } else { _mm256_srli_epi16::<4>(codes) };
                    let levels = _mm256_shuffle_epi8(table, _mm256_and_si256(codes, low_half));
                    unpack_quad(levels, offsets, scales, half, out);
                }
            }
        }
    }
    // SAFETY: the token proves the features.
    unsafe { inner(row_scales, steps, out) }
}
