//! Dense weights: widened, packed to panels, and multiplied as f32.

use std::arch::x86_64::*;

use super::super::LANES;
use super::Avx2;
use crate::cpu::matrix::Element;

pub(in crate::cpu::isa) fn widen<T: Element>(_: Avx2, values: &[T], out: &mut [f32]) {
    #[target_feature(enable = "avx2,fma,f16c")]
    fn inner<T: Element>(values: &[T], out: &mut [f32]) {
        let ((blocks, rest), (outs, out_rest)) = (values.as_chunks::<8>(), out.as_chunks_mut::<8>());
        for (values, out) in blocks.iter().zip(outs) {
            // SAFETY: both are arrays of eight values; the features are those of this function.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), T::load8(values.as_ptr())) };
        }
        out_rest.iter_mut().zip(rest).for_each(|(out, value)| *out = value.widen());
    }
    // SAFETY: the token proves the features.
    unsafe { inner(values, out) }
}

pub(in crate::cpu::isa) fn dot<T: Element, const N: usize>(_: Avx2, weights: &[T], x: [&[f32]; N]) -> [f32; N] {
    // Accumulators enough to hide the latency of the multiply-add, few enough to stay in registers.
    // SAFETY: the token proves the features; Isa::dot has checked that the rows of x are as long as weights.
    unsafe { if N <= 2 { dot_unrolled::<T, N, 4>(weights, x) } else { dot_unrolled::<T, N, 2>(weights, x) } }
}

/// The dot products in U independent sums a token.
///
/// # Safety
/// Rows of `x` are as long as `weights`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dot_unrolled<T: Element, const N: usize, const U: usize>(weights: &[T], x: [&[f32]; N]) -> [f32; N] {
    let mut sums = [[_mm256_setzero_ps(); N]; U];
    let n = weights.len();
    let mut k = 0;
    while k + 8 * U <= n {
        for sums in &mut sums {
            // SAFETY: the U steps of 8 end at most at n, the length of weights and of each row of x.
            unsafe { dot_step(weights, x, k, sums) };
            k += 8;
        }
    }
    while k + 8 <= n {
        // SAFETY: k + 8 <= n.
        unsafe { dot_step(weights, x, k, &mut sums[0]) };
        k += 8;
    }
    // No closure sees the sums: one that is not inlined would keep them in memory during the loops above.
    let mut totals = [0.0; N];
    for (t, total) in totals.iter_mut().enumerate() {
        let mut all = sums[0][t];
        for sums in &sums[1..] {
            all = _mm256_add_ps(all, sums[t]);
        }
        *total = reduce(all);
        for (weight, x) in weights[k..].iter().zip(&x[t][k..]) {
            *total += weight.widen() * x;
        }
    }
    totals
}

/// Adds the products of eight weights from `k` on.
///
/// # Safety
/// `weights` and the rows of `x` have at least k + 8 values.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dot_step<T: Element, const N: usize>(weights: &[T], x: [&[f32]; N], k: usize, sums: &mut [__m256; N]) {
    // SAFETY: the caller vouches for k + 8 values.
    let weights = unsafe { T::load8(weights.as_ptr().add(k)) };
    for (sum, x) in sums.iter_mut().zip(x) {
        // SAFETY: as above.
        let x = unsafe { _mm256_loadu_ps(x.as_ptr().add(k)) };
        *sum = _mm256_fmadd_ps(weights, x, *sum);
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

pub(in crate::cpu::isa) fn pack(_: Avx2, rows: &[f32], depth: usize, panel: &mut [f32]) {
    // SAFETY: the token proves the features; Isa::pack has checked that both hold LANES * depth values.
    unsafe { transpose(rows, depth, panel) }
}

/// The transpose of LANES rows of `depth`, in blocks of 8 x 8.
///
/// # Safety
/// `rows` and `panel` hold LANES * depth values.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn transpose(rows: &[f32], depth: usize, panel: &mut [f32]) {
    let blocks = depth / 8 * 8;
    for k in (0..blocks).step_by(8) {
        for r in [0, 8] {
            // SAFETY: rows r..r + 8 <= LANES and columns k..k + 8 <= depth.
            let row = |i: usize| unsafe { _mm256_loadu_ps(rows.as_ptr().add((r + i) * depth + k)) };
            for (i, lanes) in
                transpose8([row(0), row(1), row(2), row(3), row(4), row(5), row(6), row(7)]).iter().enumerate()
            {
                // SAFETY: k + i < depth, and r + 8 <= LANES.
                unsafe { _mm256_storeu_ps(panel.as_mut_ptr().add((k + i) * LANES + r), *lanes) };
            }
        }
    }
    for k in blocks..depth {
        for r in 0..LANES {
            panel[k * LANES + r] = rows[r * depth + k];
        }
    }
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
    panel: &[T],
    (out, out_stride): (&mut [f32], usize),
) {
    let mut t = 0;
    while t < n {
        let (x, out) = (&x[t * x_stride..], &mut out[t * out_stride..]);
        let (x, out) = ((x, x_stride), (out, out_stride));
        // Six tokens are twelve sums, which with two weights and one input fill the sixteen registers. What is
        // left over is cut evenly, as few sums wait for their own latency; one or two tokens sum in four parts.
        // SAFETY: the token proves the features; Isa::gemm has checked that x has n rows of the panel's depth
        // and out n rows of LANES.
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
