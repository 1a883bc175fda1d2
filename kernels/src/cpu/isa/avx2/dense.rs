//! Dense weights: widened, packed to panels, and multiplied as f32.

use std::arch::asm;
use std::arch::x86_64::*;

use super::super::LANES;
use super::{Avx2, Load};
use crate::cpu::matrix::Element;
use crate::quant::Lanes;

/// How many bytes ahead in its row a weight is asked for from the second-level cache.
const NEAR: usize = 1024;

/// Asks for the weights of rows that are read side by side: those of the next rows from memory, in its order, into the
/// second-level cache, and those that come next in each row from there. The first-level cache has too few misses under
/// way at a time to wait for memory: a Zen 4 core that asked for everything there read 12 GB/s, in two steps 23.
pub(in crate::cpu::isa) struct Stream {
    next: *const u8,
}

impl Stream {
    /// For the rows of `weights`, which others follow.
    pub(in crate::cpu::isa) fn new<T>(weights: &[T]) -> Stream {
        Stream { next: weights.as_ptr_range().end.cast() }
    }

    /// Once for each N values of each row, which start at `row`. Stays where it is written, as [`super::prefetch_ahead`].
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(in crate::cpu::isa) fn ask<T, const N: usize>(&mut self, row: *const T) {
        let bytes = N * size_of::<T>();
        for line in (0..bytes).step_by(64) {
            let (next, near) = (self.next.wrapping_add(line), row.cast::<u8>().wrapping_add(NEAR + line));
            // SAFETY: a prefetch reads nothing that can be seen, and any address is allowed.
            unsafe {
                asm!("prefetcht1 [{}]", "prefetcht0 [{}]", in(reg) next, in(reg) near,
                    options(readonly, nostack, preserves_flags));
            }
        }
        self.next = self.next.wrapping_add(bytes);
    }
}

/// Rows and tokens that share their loads: eight sums, the inputs in four registers, and two for a row's weights, of
/// sixteen registers.
const ROWS: usize = 4;
const TOKENS: usize = 2;

/// Values of a step of a row: two registers of f32.
const PAIR: usize = 16;

pub(in crate::cpu::isa) fn dots<T: Element>(
    _: Avx2,
    weights: &[T],
    x: &[f32],
    cols: usize,
    (out, stride): (&mut [f32], usize),
) {
    for (i, weights) in weights.chunks(ROWS * cols).enumerate() {
        for (j, x) in x.chunks(TOKENS * cols).enumerate() {
            let out = (&mut out[j * TOKENS * stride + i * ROWS..], stride);
            // SAFETY: the token proves the features; Isa::dots has checked that weights and inputs are whole rows of
            // `cols`, and that there is room for the sums.
            unsafe {
                match (weights.len() / cols, x.len() / cols) {
                    (ROWS, TOKENS) => dot_tile::<T, ROWS, TOKENS>(weights, x, cols, out),
                    (ROWS, 1) => dot_tile::<T, ROWS, 1>(weights, x, cols, out),
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
#[target_feature(enable = "avx2,fma,f16c")]
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
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dot_tile<T: Element, const R: usize, const N: usize>(
    weights: &[T],
    x: &[f32],
    cols: usize,
    (out, stride): (&mut [f32], usize),
) {
    let mut sums = [[_mm256_setzero_ps(); R]; N];
    let mut stream = Stream::new(weights);
    let mut k = 0;
    while k + PAIR <= cols {
        let mut inputs = [[_mm256_setzero_ps(); 2]; N];
        for (t, inputs) in inputs.iter_mut().enumerate() {
            // SAFETY: token t has PAIR values from k on.
            *inputs = unsafe { T::inputs_like_pair(x.as_ptr().add(t * cols + k)) };
        }
        for r in 0..R {
            let row = weights.as_ptr().wrapping_add(r * cols + k);
            stream.ask::<T, PAIR>(row);
            // SAFETY: so has row r.
            let weights = unsafe { <T as Load>::load_pair(row) };
            for (sums, inputs) in sums.iter_mut().zip(&inputs) {
                sums[r] = _mm256_fmadd_ps(weights[0], inputs[0], sums[r]);
                sums[r] = _mm256_fmadd_ps(weights[1], inputs[1], sums[r]);
            }
        }
        k += PAIR;
    }
    // No closure sees the sums: one that is not inlined would keep them in memory during the loop above.
    for t in 0..N {
        for r in 0..R {
            let mut total = reduce(sums[t][r]);
            for k in k..cols {
                total += weights[r * cols + k].widen() * x[t * cols + k];
            }
            out[t * stride + r] = total;
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
