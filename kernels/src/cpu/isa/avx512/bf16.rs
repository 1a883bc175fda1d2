//! Products of pairs: `vdpbf16ps` adds to each lane the products of two bf16 with two others. What is denormal counts
//! as 0, sums as well.

use std::arch::x86_64::*;

use half::bf16;

use super::super::LANES;
use super::super::avx2::dense::Stream;
use super::super::bf16::PairLanes;
use super::dense::{ROWS, TOKENS, add_to, reduce, transpose};
use super::{Bf16, lowest};

/// Values of a register.
const VALUES: usize = 2 * LANES;

/// Adds products of pairs to sums.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn add_products(sums: __m512, a: __m512i, b: __m512i) -> __m512 {
    // SAFETY: all are 64 bytes of which every pattern is a value.
    let (a, b) = unsafe { (std::mem::transmute::<__m512i, __m512bh>(a), std::mem::transmute::<__m512i, __m512bh>(b)) };
    _mm512_dpbf16_ps(sums, a, b)
}

/// As many values from `from` on as `n` says, up to a register; zeros behind them.
///
/// # Safety
/// The CPU has the features, and the values are readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn load_values(from: *const bf16, n: usize) -> __m512i {
    if n >= VALUES {
        // SAFETY: the caller vouches for 32 values of two bytes.
        unsafe { _mm512_loadu_si512(from.cast()) }
    } else {
        // SAFETY: the mask has the values that the caller vouches for.
        unsafe { _mm512_maskz_loadu_epi16((1 << n) - 1, from.cast()) }
    }
}

pub(in crate::cpu::isa) fn narrow(_: Bf16, x: &[f32], out: &mut [u32]) {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    fn inner(x: &[f32], out: &mut [u32]) {
        for (i, out) in out.chunks_mut(LANES).enumerate() {
            let x = &x[x.len().min(VALUES * i)..];
            let n = x.len().min(VALUES);
            // SAFETY: the masks have n values together.
            let (low, high) = unsafe {
                let low = _mm512_maskz_loadu_ps(lowest(n.min(LANES)), x.as_ptr());
                (low, _mm512_maskz_loadu_ps(lowest(n.saturating_sub(LANES)), x.as_ptr().wrapping_add(LANES)))
            };
            // SAFETY: both are 64 bytes.
            let pairs = unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) };
            // SAFETY: the mask has the pairs that there is room for.
            unsafe { _mm512_mask_storeu_epi32(out.as_mut_ptr().cast(), lowest(out.len()), pairs) };
        }
    }
    // SAFETY: the token proves the features.
    unsafe { inner(x, out) }
}

pub(in crate::cpu::isa) fn interleave(_: Bf16, rows: [&[bf16]; LANES], panel: &mut [PairLanes]) {
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
    fn inner(rows: [&[bf16]; LANES], panel: &mut [PairLanes]) {
        let ahead = 2 * panel.len();
        for (i, panel) in panel.chunks_mut(LANES).enumerate() {
            let mut block = [_mm512_setzero_ps(); LANES];
            for (lanes, row) in block.iter_mut().zip(rows) {
                let rest = &row[VALUES * i..];
                _mm_prefetch::<_MM_HINT_T1>(rest.as_ptr().wrapping_add(ahead).cast());
                // SAFETY: as many values are read as there are.
                *lanes = _mm512_castsi512_ps(unsafe { load_values(rest.as_ptr(), rest.len()) });
            }
            for (out, pairs) in panel.iter_mut().zip(transpose(block)) {
                // SAFETY: 64 bytes are writable.
                unsafe { _mm512_storeu_ps(out.as_mut_ptr().cast(), pairs) };
            }
        }
    }
    // SAFETY: the token proves the features.
    unsafe { inner(rows, panel) }
}

pub(in crate::cpu::isa) fn gemm(
    _: Bf16,
    n: usize,
    (x, x_stride): (&[u32], usize),
    panels: &[PairLanes],
    depth: usize,
    (out, out_stride): (&mut [f32], usize),
) {
    let width = n.div_ceil(n.div_ceil(TOKENS));
    let at_once = if (panels.len() / depth).is_multiple_of(ROWS) { ROWS } else { 1 };
    for (i, panels) in panels.chunks_exact(at_once * depth).enumerate() {
        for t in (0..n).step_by(width) {
            let x = (&x[t * x_stride..], x_stride);
            let out = (&mut out[t * out_stride + i * LANES..], out_stride);
            // SAFETY: the token proves the features; Bf16Isa::gemm has checked that x has n rows of the panels' depth
            // and out n rows of their lanes.
            unsafe {
                match (at_once, width.min(n - t)) {
                    (ROWS, 1) => tile::<ROWS, 1>(x, panels, depth, out),
                    (ROWS, 2) => tile::<ROWS, 2>(x, panels, depth, out),
                    (ROWS, 3) => tile::<ROWS, 3>(x, panels, depth, out),
                    (ROWS, 4) => tile::<ROWS, 4>(x, panels, depth, out),
                    (ROWS, 5) => tile::<ROWS, 5>(x, panels, depth, out),
                    (ROWS, _) => tile::<ROWS, 6>(x, panels, depth, out),
                    (_, 1) => tile::<1, 1>(x, panels, depth, out),
                    (_, 2) => tile::<1, 2>(x, panels, depth, out),
                    (_, 3) => tile::<1, 3>(x, panels, depth, out),
                    (_, 4) => tile::<1, 4>(x, panels, depth, out),
                    (_, 5) => tile::<1, 5>(x, panels, depth, out),
                    _ => tile::<1, 6>(x, panels, depth, out),
                }
            }
        }
    }
}

/// N tokens by the lanes of P panels, summed in registers over their depth.
///
/// # Safety
/// `x` has N rows of the panels' depth, `out` N rows of P * LANES.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi,avx512bf16")]
unsafe fn tile<const P: usize, const N: usize>(
    (x, x_stride): (&[u32], usize),
    panels: &[PairLanes],
    depth: usize,
    (out, out_stride): (&mut [f32], usize),
) {
    let mut sums = [[_mm512_setzero_ps(); P]; N];
    for k in 0..depth {
        let mut weights = [_mm512_setzero_si512(); P];
        for (p, weights) in weights.iter_mut().enumerate() {
            // SAFETY: panel p has 64 bytes for each k below the depth.
            *weights = unsafe { _mm512_loadu_si512(panels.as_ptr().add(p * depth + k).cast()) };
        }
        for (t, sums) in sums.iter_mut().enumerate() {
            // SAFETY: t < N rows, k < depth.
            let x = _mm512_set1_epi32(unsafe { *x.as_ptr().add(t * x_stride + k) } as i32);
            for (sum, weights) in sums.iter_mut().zip(weights) {
                *sum = add_products(*sum, weights, x);
            }
        }
    }
    for (t, sums) in sums.into_iter().enumerate() {
        // SAFETY: row t < N has P * LANES values.
        unsafe { add_to(out.as_mut_ptr().add(t * out_stride), sums) };
    }
}

pub(in crate::cpu::isa) fn dots(
    _: Bf16,
    weights: &[bf16],
    cols: usize,
    (x, x_stride): (&[u32], usize),
    (out, stride): (&mut [f32], usize),
) {
    let n = x.len() / x_stride;
    let width = n.div_ceil(n.div_ceil(TOKENS));
    for (i, weights) in weights.chunks(ROWS * cols).enumerate() {
        for (j, x) in x.chunks(width * x_stride).enumerate() {
            let (x, out) = ((x, x_stride), (&mut out[j * width * stride + i * ROWS..], stride));
            // SAFETY: the token proves the features; Bf16Isa::dots has checked that weights and inputs are whole rows,
            // and that there is room for the sums.
            unsafe {
                match (weights.len() / cols, x.0.len() / x_stride) {
                    (ROWS, 1) => dot_tile::<ROWS, 1>(weights, cols, x, out),
                    (ROWS, 2) => dot_tile::<ROWS, 2>(weights, cols, x, out),
                    (ROWS, 3) => dot_tile::<ROWS, 3>(weights, cols, x, out),
                    (ROWS, 4) => dot_tile::<ROWS, 4>(weights, cols, x, out),
                    (ROWS, 5) => dot_tile::<ROWS, 5>(weights, cols, x, out),
                    (ROWS, 6) => dot_tile::<ROWS, 6>(weights, cols, x, out),
                    _ => single_dots(weights, cols, x, out),
                }
            }
        }
    }
}

/// Row by row, token by token.
///
/// # Safety
/// The CPU has the features; `weights` and `x` are whole rows, and `out` has room for the sums.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi,avx512bf16")]
unsafe fn single_dots(
    weights: &[bf16],
    cols: usize,
    (x, x_stride): (&[u32], usize),
    (out, stride): (&mut [f32], usize),
) {
    for (r, weights) in weights.chunks_exact(cols).enumerate() {
        for (t, x) in x.chunks_exact(x_stride).enumerate() {
            // SAFETY: one row each; the sum's place is in `out`, as the caller vouches.
            unsafe { dot_tile::<1, 1>(weights, cols, (x, x_stride), (&mut out[t * stride + r..], stride)) };
        }
    }
}

/// R rows by N tokens.
///
/// # Safety
/// `weights` has R rows of `cols`, `x` has N rows of whole registers of pairs, at least as long; `out` has N rows of R.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi,avx512bf16")]
unsafe fn dot_tile<const R: usize, const N: usize>(
    weights: &[bf16],
    cols: usize,
    (x, x_stride): (&[u32], usize),
    (out, stride): (&mut [f32], usize),
) {
    let mut sums = [[_mm512_setzero_ps(); R]; N];
    let mut stream = Stream::new(weights);
    for k in (0..cols).step_by(VALUES) {
        let mut lanes = [_mm512_setzero_si512(); R];
        for (r, lanes) in lanes.iter_mut().enumerate() {
            let row = weights.as_ptr().wrapping_add(r * cols + k);
            stream.ask::<bf16, VALUES>(row);
            // SAFETY: as many values are read as row r has from k on.
            *lanes = unsafe { load_values(row, cols - k) };
        }
        for (t, sums) in sums.iter_mut().enumerate() {
            // SAFETY: token t has whole registers, as far as the weights go.
            let x = unsafe { _mm512_loadu_si512(x.as_ptr().add(t * x_stride + k / 2).cast()) };
            for (sum, lanes) in sums.iter_mut().zip(lanes) {
                *sum = add_products(*sum, lanes, x);
            }
        }
    }
    for (t, sums) in sums.into_iter().enumerate() {
        reduce(sums, &mut out[t * stride..][..R]);
    }
}
