//! Activations become bytes.

use std::arch::x86_64::*;

use super::Avx512;
use crate::quant::inputs::{GROUP, InputTile, Kind, LEAST, ROUND};
use crate::quant::{QUAD, STEP, int8};

/// Values of a register.
const LANES: usize = 16;

/// See [`InputTile::fill`].
pub(in crate::cpu::isa) fn quantize(_: Avx512, kind: Kind, x: &[f32], width: usize, tile: &mut InputTile) {
    let cols = tile.reset(kind, x.len(), width);
    for (column, x) in x.chunks_exact(cols.max(1)).enumerate() {
        for (i, x) in x.chunks(ALL).enumerate() {
            // SAFETY: the token proves the features.
            unsafe {
                match kind {
                    Kind::Int4 => blocks::<{ ALL / LANES }>(x, i, column, tile),
                    Kind::Int8 => blocks::<{ Kind::Int8.block() / LANES }>(x, i, column, tile),
                }
            }
        }
    }
}

/// Values that are looked at together.
const ALL: usize = Kind::Int4.block();

/// The codes of up to 256 values of a column, the `i`th of them, in blocks of N registers.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn blocks<const N: usize>(x: &[f32], i: usize, column: usize, tile: &mut InputTile) {
    let (width, n_steps, n_blocks) = (tile.width, x.len().div_ceil(STEP), x.len().div_ceil(N * LANES));
    let mut values = [_mm512_setzero_ps(); ALL / LANES];
    if let Some(x) = x.as_chunks::<ALL>().0.first() {
        for (values, x) in values.iter_mut().zip(x.as_chunks::<LANES>().0) {
            // SAFETY: sixteen values are readable.
            *values = unsafe { _mm512_loadu_ps(x.as_ptr()) };
        }
    } else {
        for (values, x) in values.iter_mut().zip(x.chunks(LANES)) {
            // SAFETY: the mask lets no more be read than `x` has.
            *values = unsafe { _mm512_maskz_loadu_ps(0xffff >> (LANES - x.len()), x.as_ptr()) };
        }
    }
    // As bits, magnitudes are ordered like integers, and what is not finite comes last.
    let (mut scales, mut inverses) = ([0.0; ALL / LANES], [0.0; ALL / LANES]);
    for (b, values) in values.as_chunks::<N>().0.iter().enumerate() {
        let mut magnitudes = _mm512_setzero_si512();
        for values in values {
            let bits = _mm512_and_si512(_mm512_castps_si512(*values), _mm512_set1_epi32(i32::MAX));
            magnitudes = _mm512_max_epi32(magnitudes, bits);
        }
        let largest = f32::from_bits(_mm512_reduce_max_epi32(magnitudes) as u32);
        if !largest.is_finite() {
            scales[b] = f32::NAN;
        } else if largest >= LEAST {
            (scales[b], inverses[b]) = (largest / 127.0, 127.0 / largest);
        }
    }
    // In whole registers: a load of what several stores have just written would wait for all of them to reach the cache.
    let mut codes = [[0u8; STEP]; ALL / STEP];
    // The sums of groups of 16: in each quad of a register, those of its quads, then the quads' sums.
    let mut sums = [[0i32; LANES]; ALL / STEP];
    for (i, (codes, sums)) in codes.iter_mut().zip(&mut sums).enumerate() {
        let quarter = |q: usize| {
            let r = i * (STEP / LANES) + q;
            // Only a scale above 0 has codes; NaN is not.
            let mask = if scales[r / N] > 0.0 { 0xffff } else { 0 };
            // Not fused, as in the specification.
            let rounded = _mm512_mul_ps(values[r], _mm512_set1_ps(inverses[r / N]));
            let rounded = _mm512_castps_si512(_mm512_add_ps(rounded, _mm512_set1_ps(ROUND)));
            _mm512_maskz_cvtepi32_epi8(mask, rounded)
        };
        let all = _mm512_inserti32x4::<1>(_mm512_castsi128_si512(quarter(0)), quarter(1));
        let all = _mm512_inserti32x4::<3>(_mm512_inserti32x4::<2>(all, quarter(2)), quarter(3));
        let quads = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), all);
        let pairs = _mm512_add_epi32(quads, _mm512_shuffle_epi32::<0b10_11_00_01>(quads));
        let groups = _mm512_add_epi32(pairs, _mm512_shuffle_epi32::<0b01_00_11_10>(pairs));
        // SAFETY: 64 bytes and sixteen values are writable.
        unsafe {
            _mm512_storeu_si512(codes.as_mut_ptr().cast(), all);
            _mm512_storeu_si512(sums.as_mut_ptr().cast(), groups);
        }
    }
    let mut group_sums = [0; ALL / GROUP];
    for (group, sum) in group_sums.iter_mut().enumerate() {
        *sum = sums[group / 4][group % 4 * 4];
    }

    let out = tile.codes[i * (ALL / QUAD) * width..].chunks_exact_mut(width);
    for (out, quad) in out.zip(codes[..n_steps].as_flattened().as_chunks::<QUAD>().0) {
        out[column] = i32::from_le_bytes(*quad);
    }
    let first = i * (ALL / LANES / N) * width;
    let out = tile.scales[first..].chunks_exact_mut(width).zip(tile.corrections[first..].chunks_exact_mut(width));
    let blocks = scales.iter().zip(group_sums.as_chunks::<N>().0).take(n_blocks);
    for ((scale_out, correction_out), (scale, sums)) in out.zip(blocks) {
        scale_out[column] = *scale;
        correction_out[column] = -int8::BIAS * sums.iter().sum::<i32>();
    }
    if N == ALL / LANES {
        let out = tile.group_sums[i * (ALL / GROUP / 2) * width..].chunks_exact_mut(width);
        for (out, [even, odd]) in out.zip(group_sums.as_chunks::<2>().0) {
            out[column] = even & 0xffff | odd << 16;
        }
    }
}
