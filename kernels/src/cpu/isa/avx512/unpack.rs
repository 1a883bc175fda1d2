//! The values of quantized weights.

use std::arch::x86_64::*;

use super::int4::level_table;
use super::{Avx512, load, load_lanes, store_lanes};
use crate::quant::{Lanes, QUAD, int4, int8};

/// Writes a quad: `out[i] = scales * (byte i of each lane + offsets)`, for as many inputs as `out` has.
#[inline]
#[target_feature(enable = "avx512f")]
fn unpack_quad(bytes: __m512i, offsets: __m512i, scales: __m512, out: &mut [Lanes]) {
    let upper = [_mm512_slli_epi32::<24>(bytes), _mm512_slli_epi32::<16>(bytes), _mm512_slli_epi32::<8>(bytes), bytes];
    for (out, upper) in out.iter_mut().zip(upper) {
        let value = _mm512_add_epi32(_mm512_srai_epi32::<24>(upper), offsets);
        store_lanes(out, _mm512_mul_ps(scales, _mm512_cvtepi32_ps(value)));
    }
}

pub(in crate::cpu::isa) fn unpack_int8(_: Avx512, steps: &[int8::Step], out: &mut [Lanes]) {
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
    fn inner(steps: &[int8::Step], out: &mut [Lanes]) {
        // Without the sign bit, a biased code is the code.
        let bias = _mm512_set1_epi8(int8::BIAS as i8);
        for (out, (quads, stored)) in out.chunks_mut(int8::GROUP).zip(steps.iter().flat_map(int8::groups)) {
            // SAFETY: 32 bytes are readable.
            let scales = _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(stored.as_ptr().cast()) });
            for (out, quad) in out.chunks_mut(QUAD).zip(quads) {
                unpack_quad(_mm512_xor_si512(load(quad), bias), _mm512_setzero_si512(), scales, out);
            }
        }
    }
    // SAFETY: the token proves the features.
    unsafe { inner(steps, out) }
}

pub(in crate::cpu::isa) fn unpack_int4(_: Avx512, row_scales: &Lanes, steps: &[int4::Step], out: &mut [Lanes]) {
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
    fn inner(row_scales: &Lanes, steps: &[int4::Step], out: &mut [Lanes]) {
        let (table, shift_bits) = (level_table(), _mm512_set1_epi32(12));
        for (out, (pairs, heads)) in out.chunks_mut(int4::GROUP).zip(steps.iter().flat_map(int4::groups)) {
            // SAFETY: sixteen bytes are readable.
            let heads = _mm512_cvtepi8_epi32(unsafe { _mm_loadu_si128(heads.as_ptr().cast()) });
            let offsets = _mm512_and_si512(_mm512_slli_epi32::<2>(heads), shift_bits);
            let scales = _mm512_mul_ps(load_lanes(row_scales), _mm512_cvtepi32_ps(_mm512_srai_epi32::<2>(heads)));
            for (quad, out) in out.chunks_mut(QUAD).enumerate() {
                let codes = load(&pairs[quad / 2]);
                let codes = if quad % 2 == 0 { codes } else { _mm512_srli_epi16::<4>(codes) };
                unpack_quad(_mm512_permutexvar_epi8(codes, table), offsets, scales, out);
            }
        }
    }
    // SAFETY: the token proves the features.
    unsafe { inner(row_scales, steps, out) }
}
