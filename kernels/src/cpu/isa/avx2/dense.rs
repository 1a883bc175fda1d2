//! Dense weights: widened, packed to panels, and multiplied as f32.

use std::arch::x86_64::*;

use super::super::LANES;
use super::{AHEAD, Avx2};
use crate::cpu::matrix::Element;
use crate::quant::Lanes;

/// Rows and tokens that share their loads: eight sums, two weights and one input, of sixteen registers.
const ROWS: usize = 2;
const TOKENS: usize = 4;

pub(in crate::cpu::isa) fn dots<T: Element>(
    _: Avx2,
    weights: &[T],
    x: &[f32],
    cols: usize,
    (out, stride): (&mut [f32], usize),
) {
    let n = x.len() / cols;
    // A single token is bound by memory, which likes one stream best.
    let at_once = if n == 1 { 1 } else { ROWS };
    let width = n.div_ceil(n.div_ceil(TOKENS));
    for (i, weights) in weights.chunks(at_once * cols).enumerate() {
        for (j, x) in x.chunks(width * cols).enumerate() {
            let out = (&mut out[j * width * stride + i * at_once..], stride);
            // Sums enough to hide the latency of the multiply-add, few enough to stay in registers.
            // SAFETY: the token proves the features; Isa::dots has checked that weights and inputs are whole rows of
            // `cols`, and that there is room for the sums.
            unsafe {
                match (weights.len() / cols, x.len() / cols) {
                    (ROWS, 1) => dot_tile::<T, ROWS, 1, 4>(weights, x, cols, out),
                    (ROWS, 2) => dot_tile::<T, ROWS, 2, 2>(weights, x, cols, out),
                    (ROWS, 3) => dot_tile::<T, ROWS, 3, 1>(weights, x, cols, out),
                    (ROWS, _) => dot_tile::<T, ROWS, 4, 1>(weights, x, cols, out),
                    (_, 1) => dot_tile::<T, 1, 1, 4>(weights, x, cols, out),
                    (_, 2) => dot_tile::<T, 1, 2, 4>(weights, x, cols, out),
                    (_, 3) => dot_tile::<T, 1, 3, 2>(weights, x, cols, out),
                    _ => dot_tile::<T, 1, 4, 2>(weights, x, cols, out),
                }
            }
        }
    }
}

/// R rows by N tokens, in U independent sums each.
///
/// # Safety
/// `weights` has R rows of `cols`, `x` has N; `out` has N rows of R, `stride` apart.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dot_tile<T: Element, const R: usize, const N: usize, const U: usize>(
    weights: &[T],
    x: &[f32],
    cols: usize,
    (out, stride): (&mut [f32], usize),
) {
    let mut sums = [[[_mm256_setzero_ps(); R]; N]; U];
    // What is read next, in the order of memory: soon after a single row, after several once these are done.
    let ahead = if R == 1 { AHEAD } else { R * cols * size_of::<T>() };
    let ahead = weights.as_ptr().cast::<u8>().wrapping_add(ahead);
    let mut k = 0;
    while k + 8 * U <= cols {
        for line in (0..8 * R * U * size_of::<T>()).step_by(64) {
            _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(R * k * size_of::<T>() + line).cast());
        }
        for sums in &mut sums {
            // SAFETY: the U steps of 8 end at most at `cols`.
            unsafe { dot_step(weights, x, cols, k, sums) };
            k += 8;
        }
    }
    while k + 8 <= cols {
        // SAFETY: k + 8 <= cols.
        unsafe { dot_step(weights, x, cols, k, &mut sums[0]) };
        k += 8;
    }
    // No closure sees the sums: one that is not inlined would keep them in memory during the loops above.
    for t in 0..N {
        for r in 0..R {
            let mut all = sums[0][t][r];
            for sums in &sums[1..] {
                all = _mm256_add_ps(all, sums[t][r]);
            }
            let mut total = reduce(all);
            for k in k..cols {
                total += weights[r * cols + k].widen() * x[t * cols + k];
            }
            out[t * stride + r] = total;
        }
    }
}

/// Adds the products of eight weights of each row from `k` on.
///
/// # Safety
/// As for [`dot_tile`], and k + 8 is at most `cols`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dot_step<T: Element, const R: usize, const N: usize>(
    weights: &[T],
    x: &[f32],
    cols: usize,
    k: usize,
    sums: &mut [[__m256; R]; N],
) {
    for r in 0..R {
        // SAFETY: row r has eight values from k on.
        let weights = unsafe { T::load8(weights.as_ptr().add(r * cols + k)) };
        for (t, sums) in sums.iter_mut().enumerate() {
            // SAFETY: so has token t.
            let x = unsafe { _mm256_loadu_ps(x.as_ptr().add(t * cols + k)) };
            sums[r] = _mm256_fmadd_ps(weights, x, sums[r]);
        }
    }
}

/// The sum of the lanes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn reduce(lanes: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
}

pub(in crate::cpu::isa) fn pack<T: Element>(_: Avx2, rows: [&[T]; LANES], panel: &mut [Lanes]) {
    #[target_feature(enable = "avx2,fma,f16c")]
    fn inner<T: Element>(rows: [&[T]; LANES], panel: &mut [Lanes]) {
        let (blocks, rest) = panel.as_chunks_mut::<8>();
        let n_blocks = blocks.len();
        for (b, block) in blocks.iter_mut().enumerate() {
            for half in 0..2 {
                let mut lanes = [_mm256_setzero_ps(); 8];
                for (lanes, row) in lanes.iter_mut().zip(&rows[8 * half..]) {
                    let values = &row.as_chunks::<8>().0[b];
                    // SAFETY: eight values are readable.
                    *lanes = unsafe { T::load8(values.as_ptr()) };
                }
                for (out, lanes) in block.iter_mut().zip(transpose8(lanes)) {
                    // SAFETY: eight values are writable.
                    unsafe { _mm256_storeu_ps(out.as_chunks_mut::<8>().0[half].as_mut_ptr(), lanes) };
                }
            }
        }
        for (k, out) in rest.iter_mut().enumerate() {
            out.iter_mut().zip(rows).for_each(|(out, row)| *out = row[8 * n_blocks + k].widen());
        }
    }
    // SAFETY: the token proves the features.
    unsafe { inner(rows, panel) }
}

/// The transpose of 8 x 8 values: pairs of rows, then pairs of pairs, then halves.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn transpose8(r: [__m256; 8]) -> [__m256; 8] {
    let pairs = |a, b| (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    let (a0, a1) = pairs(r[0], r[1]);
    let (b0, b1) = pairs(r[2], r[3]);
    let (c0, c1) = pairs(r[4], r[5]);
    let (d0, d1) = pairs(r[6], r[7]);
    let low = |a, b| _mm256_shuffle_ps::<0x44>(a, b);
    let high = |a, b| _mm256_shuffle_ps::<0xee>(a, b);
    let first = [low(a0, b0), high(a0, b0), low(a1, b1), high(a1, b1)];
    let second = [low(c0, d0), high(c0, d0), low(c1, d1), high(c1, d1)];
    let below = |i: usize| _mm256_permute2f128_ps::<0x20>(first[i], second[i]);
    let above = |i: usize| _mm256_permute2f128_ps::<0x31>(first[i], second[i]);
    [below(0), below(1), below(2), below(3), above(0), above(1), above(2), above(3)]
}

pub(in crate::cpu::isa) fn gemm<T: Element>(
    _: Avx2,
    n: usize,
    (x, x_stride): (&[f32], usize),
    panels: &[T],
    depth: usize,
    (out, out_stride): (&mut [f32], usize),
) {
    for (p, panel) in panels.chunks_exact(depth * LANES).enumerate() {
        let mut t = 0;
        while t < n {
            let (x, out) = ((&x[t * x_stride..], x_stride), (&mut out[t * out_stride + p * LANES..], out_stride));
            // Six tokens are twelve sums, which with two weights and one input fill the sixteen registers. What is
            // left over is cut evenly, as few sums wait for their own latency; one or two tokens sum in four parts.
            // SAFETY: the token proves the features; Isa::gemm_panels has checked that x has n rows of the panels'
            // depth and out n rows of their lanes.
            t += unsafe {
                match n - t {
                    1 => tile::<T, 1, 4>(x, panel, out),
                    2 => tile::<T, 2, 2>(x, panel, out),
                    3 => tile::<T, 3, 1>(x, panel, out),
                    4 | 7 | 8 => tile::<T, 4, 1>(x, panel, out),
                    5 | 9 | 10 => tile::<T, 5, 1>(x, panel, out),
                    _ => tile::<T, 6, 1>(x, panel, out),
                }
            };
        }
    }
}

/// N tokens by LANES outputs, summed in registers over the panel's depth, in U independent parts.
///
/// # Safety
/// `x` has N rows of the panel's depth, `out` N rows of LANES.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<T: Element, const N: usize, const U: usize>(
    (x, x_stride): (&[f32], usize),
    panel: &[T],
    (out, out_stride): (&mut [f32], usize),
) -> usize {
    let mut sums = [[[_mm256_setzero_ps(); 2]; N]; U];
    let depth = panel.len() / LANES;
    let mut k = 0;
    while k + U <= depth {
        for sums in &mut sums {
            // SAFETY: the U steps end at most at the depth.
            unsafe { tile_step((x, x_stride), panel, k, sums) };
            k += 1;
        }
    }
    while k < depth {
        // SAFETY: k < depth.
        unsafe { tile_step((x, x_stride), panel, k, &mut sums[0]) };
        k += 1;
    }
    for t in 0..N {
        let [mut low, mut high] = sums[0][t];
        for sums in &sums[1..] {
            (low, high) = (_mm256_add_ps(low, sums[t][0]), _mm256_add_ps(high, sums[t][1]));
        }
        // SAFETY: t < N rows of LANES = 16 values.
        unsafe {
            let out = out.as_mut_ptr().add(t * out_stride);
            _mm256_storeu_ps(out, _mm256_add_ps(_mm256_loadu_ps(out), low));
            let out = out.add(8);
            _mm256_storeu_ps(out, _mm256_add_ps(_mm256_loadu_ps(out), high));
        }
    }
    N
}

/// Adds the products of all N inputs `k` with the panel's weights `k`.
///
/// # Safety
/// As for [`tile`], and k is below the depth.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile_step<T: Element, const N: usize>(
    (x, x_stride): (&[f32], usize),
    panel: &[T],
    k: usize,
    sums: &mut [[__m256; 2]; N],
) {
    // SAFETY: the panel has LANES = 16 values for each k below the depth.
    let (low, high) = unsafe {
        let weights = panel.as_ptr().add(k * LANES);
        (T::load8(weights), T::load8(weights.add(8)))
    };
    for (t, sums) in sums.iter_mut().enumerate() {
        // SAFETY: t < N rows, k < depth.
        let x = unsafe { _mm256_broadcast_ss(&*x.as_ptr().add(t * x_stride + k)) };
        sums[0] = _mm256_fmadd_ps(x, low, sums[0]);
        sums[1] = _mm256_fmadd_ps(x, high, sums[1]);
    }
}
