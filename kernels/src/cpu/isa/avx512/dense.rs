//! Dense weights: as they are read, and packed to panels, multiplied as f32.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::super::LANES;
use super::super::avx2::dense::Stream;
use super::{Avx512, lowest, store_lanes};
use crate::cpu::matrix::Element;
use crate::quant::Lanes;

/// Loads of sixteen values as f32.
pub trait Load: Sized {
    /// Sixteen values from `from`, exact.
    ///
    /// # Safety
    /// The CPU has the features of [`Avx512`], and sixteen values are readable at `from`, which needs no alignment.
    unsafe fn load16(from: *const Self) -> __m512;

    /// The values of sixteen whose bit is set; zeros elsewhere.
    ///
    /// # Safety
    /// As for [`Load::load16`], but that only the values whose bit is set must be readable.
    unsafe fn load_some(from: *const Self, mask: __mmask16) -> __m512;

    /// The first `n` of 32 values, zeros behind them, in whatever order is fastest.
    ///
    /// # Safety
    /// As for [`Load::load16`], but that `n` values must be readable, and n is at most 32.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load_pair(from: *const Self, n: usize) -> [__m512; 2] {
        if n == PAIR {
            // SAFETY: the caller vouches for all of them.
            unsafe { [Self::load16(from), Self::load16(from.add(LANES))] }
        } else {
            let (low, high) = (lowest(n), lowest(n.saturating_sub(LANES)));
            // SAFETY: and here for those of the masks.
            unsafe { [Self::load_some(from, low), Self::load_some(from.wrapping_add(LANES), high)] }
        }
    }

    /// Inputs in the order of [`Load::load_pair`].
    ///
    /// # Safety
    /// The CPU has the features of [`Avx512`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn like_pair(x: [__m512; 2]) -> [__m512; 2] {
        x
    }
}

impl Load for f32 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load16(from: *const f32) -> __m512 {
        // SAFETY: the caller vouches for sixteen readable values.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load_some(from: *const f32, mask: __mmask16) -> __m512 {
        // SAFETY: the caller vouches for the values of the mask; no others are touched.
        unsafe { _mm512_maskz_loadu_ps(mask, from) }
    }
}

impl Load for f16 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load16(from: *const f16) -> __m512 {
        // SAFETY: the caller vouches for sixteen readable values of two bytes.
        _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(from.cast()) })
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load_some(from: *const f16, mask: __mmask16) -> __m512 {
        // SAFETY: the caller vouches for the values of the mask; no others are touched.
        _mm512_cvtph_ps(unsafe { _mm256_maskz_loadu_epi16(mask, from.cast()) })
    }
}

impl Load for bf16 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load16(from: *const bf16) -> __m512 {
        // SAFETY: the caller vouches for sixteen readable values of two bytes.
        upper_halves(unsafe { _mm256_loadu_si256(from.cast()) })
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load_some(from: *const bf16, mask: __mmask16) -> __m512 {
        // SAFETY: the caller vouches for the values of the mask; no others are touched.
        upper_halves(unsafe { _mm256_maskz_loadu_epi16(mask, from.cast()) })
    }

    /// Values of even places, then those of odd ones: a shift and a mask, where to widen two halves in order would
    /// take four operations of the units that permute and shift.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load_pair(from: *const bf16, n: usize) -> [__m512; 2] {
        let values = if n == PAIR {
            // SAFETY: the caller vouches for 64 readable bytes.
            unsafe { _mm512_loadu_si512(from.cast()) }
        } else {
            // SAFETY: the mask has the values that the caller vouches for.
            unsafe { _mm512_maskz_loadu_epi16((1 << n) - 1, from.cast()) }
        };
        let odd = _mm512_and_si512(values, _mm512_set1_epi32(0xffff_0000_u32 as i32));
        [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(values)), _mm512_castsi512_ps(odd)]
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn like_pair([low, high]: [__m512; 2]) -> [__m512; 2] {
        let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        let odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
        [_mm512_permutex2var_ps(low, even, high), _mm512_permutex2var_ps(low, odd, high)]
    }
}

impl Load for i8 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load16(from: *const i8) -> __m512 {
        // SAFETY: the caller vouches for sixteen readable bytes.
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(unsafe { _mm_loadu_si128(from.cast()) }))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn load_some(from: *const i8, mask: __mmask16) -> __m512 {
        // SAFETY: the caller vouches for the values of the mask; no others are touched.
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(unsafe { _mm_maskz_loadu_epi8(mask, from) }))
    }
}

/// Values of a step of a row: two registers of f32.
const PAIR: usize = 2 * LANES;

/// bf16 as f32.
#[inline]
#[target_feature(enable = "avx512f")]
fn upper_halves(values: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(values)))
}

/// Rows (or panels) that share the loads of the inputs, and tokens that share those of the weights: 24 sums, four
/// weights and one input, of 32 registers.
pub(super) const ROWS: usize = 4;
pub(super) const TOKENS: usize = 6;

/// Tokens at once where weights are multiplied as they are read: 16 sums, the inputs in eight registers, and two for a
/// row's weights.
const FEW_TOKENS: usize = 4;

pub(in crate::cpu::isa) fn dots<T: Element>(
    _: Avx512,
    weights: &[T],
    x: &[f32],
    cols: usize,
    (out, stride): (&mut [f32], usize),
) {
    let n = x.len() / cols;
    let width = n.div_ceil(n.div_ceil(FEW_TOKENS));
    for (i, weights) in weights.chunks(ROWS * cols).enumerate() {
        for (j, x) in x.chunks(width * cols).enumerate() {
            let out = (&mut out[j * width * stride + i * ROWS..], stride);
            // SAFETY: the token proves the features; Isa::dots has checked that weights and inputs are whole rows of
            // `cols`, and that there is room for the sums.
            unsafe {
                match (weights.len() / cols, x.len() / cols) {
                    (ROWS, 1) => dot_tile::<T, ROWS, 1>(weights, x, cols, out),
                    (ROWS, 2) => dot_tile::<T, ROWS, 2>(weights, x, cols, out),
                    (ROWS, 3) => dot_tile::<T, ROWS, 3>(weights, x, cols, out),
                    (ROWS, FEW_TOKENS) => dot_tile::<T, ROWS, FEW_TOKENS>(weights, x, cols, out),
                    _ => single_dots(weights, x, cols, out),
                }
            }
        }
    }
}

/// Row by row, token by token.
///
/// # Safety
/// The CPU has the features; `weights` and `x` are whole rows, and `out` has room for the sums.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn single_dots<T: Element>(weights: &[T], x: &[f32], cols: usize, (out, stride): (&mut [f32], usize)) {
    for (r, weights) in weights.chunks_exact(cols).enumerate() {
        for (t, x) in x.chunks_exact(cols).enumerate() {
            // SAFETY: one row each; the sum's place is in `out`, as the caller vouches.
            unsafe { dot_tile::<T, 1, 1>(weights, x, cols, (&mut out[t * stride + r..], stride)) };
        }
    }
}

/// R rows by N tokens.
///
/// # Safety
/// `weights` has R rows of `cols`, `x` has N; `out` has N rows of R, `stride` apart.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn dot_tile<T: Element, const R: usize, const N: usize>(
    weights: &[T],
    x: &[f32],
    cols: usize,
    (out, stride): (&mut [f32], usize),
) {
    let mut sums = [[_mm512_setzero_ps(); R]; N];
    let mut stream = Stream::new(weights);
    let mut k = 0;
    while k + PAIR <= cols {
        // SAFETY: k + PAIR <= cols.
        unsafe { dot_step(weights, x, cols, k, PAIR, &mut stream, &mut sums) };
        k += PAIR;
    }
    if k < cols {
        // SAFETY: cols - k values are left.
        unsafe { dot_step(weights, x, cols, k, cols - k, &mut stream, &mut sums) };
    }
    for (t, sums) in sums.into_iter().enumerate() {
        reduce(sums, &mut out[t * stride..][..R]);
    }
}

/// Adds the products of `n` weights of each row from `k` on.
///
/// # Safety
/// As for [`dot_tile`]; `n` is at most PAIR, and k + n at most `cols`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn dot_step<T: Element, const R: usize, const N: usize>(
    weights: &[T],
    x: &[f32],
    cols: usize,
    k: usize,
    n: usize,
    stream: &mut Stream,
    sums: &mut [[__m512; R]; N],
) {
    let mut inputs = [[_mm512_setzero_ps(); 2]; N];
    for (t, inputs) in inputs.iter_mut().enumerate() {
        // SAFETY: the caller vouches for n values of token t.
        *inputs = unsafe { <T as Load>::like_pair(<f32 as Load>::load_pair(x.as_ptr().add(t * cols + k), n)) };
    }
    for r in 0..R {
        let row = weights.as_ptr().wrapping_add(r * cols + k);
        stream.ask::<T, PAIR>(row);
        // SAFETY: and for those of row r.
        let weights = unsafe { <T as Load>::load_pair(row, n) };
        for (sums, inputs) in sums.iter_mut().zip(&inputs) {
            sums[r] = _mm512_fmadd_ps(weights[0], inputs[0], sums[r]);
            sums[r] = _mm512_fmadd_ps(weights[1], inputs[1], sums[r]);
        }
    }
}

/// The sums of U independent parts.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_parts<const A: usize, const B: usize, const U: usize>(parts: [[[__m512; A]; B]; U]) -> [[__m512; A]; B] {
    let mut all = parts[0];
    for part in &parts[1..] {
        for (all, part) in all.as_flattened_mut().iter_mut().zip(part.as_flattened()) {
            *all = _mm512_add_ps(*all, *part);
        }
    }
    all
}

/// The sums of the lanes of each vector.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
pub(super) fn reduce<const R: usize>(lanes: [__m512; R], out: &mut [f32]) {
    if let ([a, b, c, d], Some(out)) = (lanes.as_slice(), out.first_chunk_mut::<4>()) {
        let pairs = |a, b| _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let (ab, cd) = (_mm512_castps_pd(pairs(*a, *b)), _mm512_castps_pd(pairs(*c, *d)));
        let (low, high) = (_mm512_unpacklo_pd(ab, cd), _mm512_unpackhi_pd(ab, cd));
        let quads = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
        let eight = _mm256_add_ps(_mm512_castps512_ps256(quads), upper_half(quads));
        let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
        // SAFETY: four values are writable.
        unsafe { _mm_storeu_ps(out.as_mut_ptr(), four) };
    } else {
        out.iter_mut().zip(lanes).for_each(|(out, lanes)| *out = _mm512_reduce_add_ps(lanes));
    }
}

/// The upper half of a register.
#[inline]
#[target_feature(enable = "avx512f")]
fn upper_half(values: __m512) -> __m256 {
    _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(values)))
}

pub(in crate::cpu::isa) fn pack<T: Element>(_: Avx512, rows: [&[T]; LANES], panel: &mut [Lanes]) {
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
    fn inner<T: Element>(rows: [&[T]; LANES], panel: &mut [Lanes]) {
        let (ahead, mut k) = (panel.len(), 0);
        for panel in panel.chunks_mut(LANES) {
            let mut block = [_mm512_setzero_ps(); LANES];
            for (lanes, row) in block.iter_mut().zip(rows) {
                let rest = &row[k..];
                _mm_prefetch::<_MM_HINT_T1>(rest.as_ptr().wrapping_add(ahead).cast());
                *lanes = match rest.first_chunk::<LANES>() {
                    // SAFETY: sixteen values are readable.
                    Some(values) => unsafe { T::load16(values.as_ptr()) },
                    // SAFETY: the mask has as many values as there are.
                    None => unsafe { T::load_some(rest.as_ptr(), lowest(rest.len())) },
                };
            }
            let block = transpose(block);
            for (out, lanes) in panel.iter_mut().zip(block) {
                store_lanes(out, lanes);
            }
            k += LANES;
        }
    }
    // SAFETY: the token proves the features.
    unsafe { inner(rows, panel) }
}

/// The transpose of 16 x 16 values of 32 bits: pairs of rows, pairs of pairs, then quarters of registers.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
pub(super) fn transpose(r: [__m512; LANES]) -> [__m512; LANES] {
    let mut pairs = r;
    for i in 0..LANES / 2 {
        pairs[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    // quads[4 i + j]: in each quarter q column 4 q + j of rows 4 i..4 i + 4.
    let mut quads = r;
    for i in 0..LANES / 4 {
        for (half, from) in [4 * i, 4 * i + 1].into_iter().enumerate() {
            let (a, b) = (_mm512_castps_pd(pairs[from]), _mm512_castps_pd(pairs[from + 2]));
            quads[4 * i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            quads[4 * i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    }
    let mut out = r;
    for j in 0..4 {
        let (a, b, c, d) = (quads[j], quads[4 + j], quads[8 + j], quads[12 + j]);
        let (low, high) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(c, d));
        out[j] = _mm512_shuffle_f32x4::<0x88>(low, high);
        out[8 + j] = _mm512_shuffle_f32x4::<0xdd>(low, high);
        let (low, high) = (_mm512_shuffle_f32x4::<0xdd>(a, b), _mm512_shuffle_f32x4::<0xdd>(c, d));
        out[4 + j] = _mm512_shuffle_f32x4::<0x88>(low, high);
        out[12 + j] = _mm512_shuffle_f32x4::<0xdd>(low, high);
    }
    out
}

/// Panels that share the inputs of many tokens.
const PANELS: usize = 4;

pub(in crate::cpu::isa) fn gemm<T: Element>(
    _: Avx512,
    n: usize,
    (x, x_stride): (&[f32], usize),
    panels: &[T],
    depth: usize,
    (out, out_stride): (&mut [f32], usize),
) {
    let panel_len = depth * LANES;
    let n_panels = panels.len() / panel_len;
    let width = n.div_ceil(n.div_ceil(TOKENS));
    let at_once = if n_panels == PANELS { PANELS } else { 1 };
    for (i, panels) in panels.chunks_exact(at_once * panel_len).enumerate() {
        for t in (0..n).step_by(width) {
            let x = (&x[t * x_stride..], x_stride);
            let out = (&mut out[t * out_stride + i * LANES..], out_stride);
            // Few sums would wait for their own latency, so a single panel's are in several parts.
            // SAFETY: the token proves the features; Isa::gemm_panels has checked that x has n rows of the panels' depth and
            // out n rows of their lanes.
            unsafe {
                match (at_once, width.min(n - t)) {
                    (PANELS, 1) => tile::<T, PANELS, 1, 2>(x, panels, depth, out),
                    (PANELS, 2) => tile::<T, PANELS, 2, 1>(x, panels, depth, out),
                    (PANELS, 3) => tile::<T, PANELS, 3, 1>(x, panels, depth, out),
                    (PANELS, 4) => tile::<T, PANELS, 4, 1>(x, panels, depth, out),
                    (PANELS, 5) => tile::<T, PANELS, 5, 1>(x, panels, depth, out),
                    (PANELS, _) => tile::<T, PANELS, 6, 1>(x, panels, depth, out),
                    (_, 1) => tile::<T, 1, 1, 8>(x, panels, depth, out),
                    (_, 2) => tile::<T, 1, 2, 4>(x, panels, depth, out),
                    (_, 3) => tile::<T, 1, 3, 4>(x, panels, depth, out),
                    (_, 4) => tile::<T, 1, 4, 2>(x, panels, depth, out),
                    (_, 5) => tile::<T, 1, 5, 2>(x, panels, depth, out),
                    _ => tile::<T, 1, 6, 2>(x, panels, depth, out),
                }
            }
        }
    }
}

/// N tokens by the lanes of P panels, summed in registers over their depth, in U independent parts.
///
/// # Safety
/// `x` has N rows of the panels' depth, `out` N rows of P * LANES.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn tile<T: Element, const P: usize, const N: usize, const U: usize>(
    (x, x_stride): (&[f32], usize),
    panels: &[T],
    depth: usize,
    (out, out_stride): (&mut [f32], usize),
) {
    let mut sums = [[[_mm512_setzero_ps(); P]; N]; U];
    let whole = depth / U * U;
    for first in (0..whole).step_by(U) {
        for (u, sums) in sums.iter_mut().enumerate() {
            // SAFETY: first + u < depth.
            unsafe { tile_step((x, x_stride), panels, depth, first + u, sums) };
        }
    }
    for k in whole..depth {
        // SAFETY: k < depth.
        unsafe { tile_step((x, x_stride), panels, depth, k, &mut sums[0]) };
    }
    for (t, sums) in add_parts(sums).into_iter().enumerate() {
        // SAFETY: row t < N has P * LANES values.
        unsafe { add_to(out.as_mut_ptr().add(t * out_stride), sums) };
    }
}

/// Adds sums to the values from `out` on.
///
/// # Safety
/// The CPU has the features, and there are P * LANES values.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn add_to<const P: usize>(out: *mut f32, sums: [__m512; P]) {
    for (p, sum) in sums.into_iter().enumerate() {
        // SAFETY: the caller vouches for the values.
        unsafe {
            let out = out.add(p * LANES);
            _mm512_storeu_ps(out, _mm512_add_ps(_mm512_loadu_ps(out), sum));
        }
    }
}

/// Adds the products of all N inputs `k` with the panels' weights `k`.
///
/// # Safety
/// As for [`tile`], and k is below the depth.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn tile_step<T: Element, const P: usize, const N: usize>(
    (x, x_stride): (&[f32], usize),
    panels: &[T],
    depth: usize,
    k: usize,
    sums: &mut [[__m512; P]; N],
) {
    let mut weights = [_mm512_setzero_ps(); P];
    for (p, weights) in weights.iter_mut().enumerate() {
        // SAFETY: panel p has LANES values for each k below the depth.
        *weights = unsafe { T::load16(panels.as_ptr().add((p * depth + k) * LANES)) };
    }
    for (t, sums) in sums.iter_mut().enumerate() {
        // SAFETY: t < N rows, k < depth.
        let x = _mm512_set1_ps(unsafe { *x.as_ptr().add(t * x_stride + k) });
        for (sum, weights) in sums.iter_mut().zip(weights) {
            *sum = _mm512_fmadd_ps(x, weights, *sum);
        }
    }
}
