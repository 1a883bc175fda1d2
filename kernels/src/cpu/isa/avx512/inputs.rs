//! Activations become bytes.

use std::arch::x86_64::*;

use super::{Avx512, load};
use crate::quant::QUAD;
use crate::quant::inputs::{GROUP, InputTile, Kind, LEAST, ROUND};

/// Values of a register.
const LANES: usize = 16;

/// See [`InputTile::fill`].
pub(in crate::cpu::isa) fn quantize(_: Avx512, kind: Kind, x: &[f32], width: usize, tile: &mut InputTile) {
    let cols = tile.reset(kind, x.len(), width);
    for (column, x) in x.chunks_exact(cols.max(1)).enumerate() {
        for (i, x) in x.chunks(Kind::Int4.block()).enumerate() {
            // SAFETY: the token proves the features.
            unsafe {
                match kind {
                    Kind::Int4 => blocks::<{ Kind::Int4.block() / LANES }>(x, i, column, tile),
                    Kind::Int8 => blocks::<{ Kind::Int8.block() / LANES }>(x, i, column, tile),
                }
            }
        }
    }
}

/// The codes of up to 256 values of a column, the `i`th of them, in blocks of N registers.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn blocks<const N: usize>(x: &[f32], i: usize, column: usize, tile: &mut InputTile) {
    const ALL: usize = Kind::Int4.block();
    let width = tile.width;
    let mut codes = [[0u8; 64]; ALL / 64];
    for (b, x) in x.chunks(N * LANES).enumerate() {
        let mut values = [_mm512_setzero_ps(); N];
        for (values, x) in values.iter_mut().zip(x.chunks(LANES)) {
            let mask = 0xffff >> (LANES - x.len());
            // SAFETY: the mask lets no more be read than `x` has.
            *values = unsafe { _mm512_maskz_loadu_ps(mask, x.as_ptr()) };
        }
        // As bits, magnitudes are ordered like integers, and what is not finite comes last.
        let magnitude_bits = _mm512_set1_epi32(i32::MAX);
        let mut magnitudes = _mm512_setzero_si512();
        for values in values {
            let bits = _mm512_and_si512(_mm512_castps_si512(values), magnitude_bits);
            magnitudes = _mm512_max_epi32(magnitudes, bits);
        }
        let largest = f32::from_bits(_mm512_reduce_max_epi32(magnitudes) as u32);
        let scale = &mut tile.scales[(i * (ALL / LANES / N) + b) * width + column];
        if !largest.is_finite() {
            *scale = f32::NAN;
        } else if largest >= LEAST {
            *scale = largest / 127.0;
            let inverse = _mm512_set1_ps(127.0 / largest);
            let codes = &mut codes.as_flattened_mut()[b * N * LANES..];
            for (codes, values) in codes.as_chunks_mut::<LANES>().0.iter_mut().zip(values) {
                // Not fused, as in the specification.
                let rounded = _mm512_add_ps(_mm512_mul_ps(values, inverse), _mm512_set1_ps(ROUND));
                let bytes = _mm512_cvtepi32_epi8(_mm512_castps_si512(rounded));
                // SAFETY: sixteen bytes are writable.
                unsafe { _mm_storeu_si128(codes.as_mut_ptr().cast(), bytes) };
            }
        }
    }
    let n_steps = x.len().div_ceil(64);
    let first = i * (ALL / QUAD);
    for (step, codes) in codes[..n_steps].iter().enumerate() {
        let quads = codes.as_chunks::<QUAD>().0;
        for (q, quad) in quads.iter().enumerate() {
            tile.codes[(first + step * quads.len() + q) * width + column] = i32::from_le_bytes(*quad);
        }
    }
    // The sums of groups of 16: in each quad of a register, those of its quads, then the quads' sums.
    let mut sums = [[0i32; LANES]; ALL / 64];
    for (sums, codes) in sums[..n_steps].iter_mut().zip(&codes) {
        let quads = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), load(codes));
        let pairs = _mm512_add_epi32(quads, _mm512_shuffle_epi32::<0b10_11_00_01>(quads));
        let groups = _mm512_add_epi32(pairs, _mm512_shuffle_epi32::<0b01_00_11_10>(pairs));
        // SAFETY: sixteen values are writable.
        unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), groups) };
    }
    let sums = |group: usize| sums[group / 4][group % 4 * 4];
    const GROUPS: usize = ALL / GROUP;
    for block in 0..x.len().div_ceil(N * LANES) {
        let sum: i32 = (block * N..(block + 1) * N).map(sums).sum();
        tile.corrections[(i * (GROUPS / N) + block) * width + column] = -128 * sum;
    }
    if N == Kind::Int4.block() / LANES {
        for pair in 0..2 * n_steps {
            let both = sums(2 * pair) & 0xffff | sums(2 * pair + 1) << 16;
            tile.group_sums[(i * GROUPS / 2 + pair) * width + column] = both;
        }
    }
}
