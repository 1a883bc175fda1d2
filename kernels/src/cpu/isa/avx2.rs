//! The inner kernels for AVX2, FMA and F16C (x86-64 since 2013 with Intel's Haswell, 2015 with AMD's Excavator).

use std::arch::x86_64::*;
use std::hint::black_box;

use half::{bf16, f16};

use super::LANES;
use crate::cpu::matrix::Element;
use crate::cpu::probe;
use crate::quant::inputs::{InputTile, Kind};
use crate::quant::{Lanes, QUAD, int4, int8};

/// Proof that this CPU has AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cpu) struct Avx2(());

impl Avx2 {
    /// The proof, if it holds.
    pub(in crate::cpu) fn detect() -> Option<Avx2> {
        let all =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        all.then_some(Avx2(()))
    }
}

/// Loads of eight values as f32.
pub trait Load: Sized {
    /// Eight values from `from`, exact.
    ///
    /// # Safety
    /// The CPU has the features, and eight values are readable at `from`, which needs no alignment.
    unsafe fn load8(from: *const Self) -> __m256;
}

impl Load for f32 {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load8(from: *const f32) -> __m256 {
        // SAFETY: the caller vouches for eight readable values.
        unsafe { _mm256_loadu_ps(from) }
    }
}

impl Load for f16 {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load8(from: *const f16) -> __m256 {
        // SAFETY: the caller vouches for eight readable values of two bytes.
        _mm256_cvtph_ps(unsafe { _mm_loadu_si128(from.cast()) })
    }
}

impl Load for bf16 {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load8(from: *const bf16) -> __m256 {
        // SAFETY: the caller vouches for eight readable values of two bytes.
        let halves = unsafe { _mm_loadu_si128(from.cast()) };
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
    }
}

pub(super) fn prefetch<T: Element>(values: &[T]) {
    for line in values.chunks(64 / size_of::<T>()) {
        // SAFETY: a prefetch reads nothing that can be seen, and the address is that of a value.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
}

/// How far ahead of its use memory is asked for: what a core reads while one request is on its way.
const AHEAD: usize = 2048;

/// Asks for the bytes of a later step of the stream.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn prefetch_step<const BYTES: usize>(step: &[u8; BYTES]) {
    for line in (0..BYTES).step_by(64) {
        _mm_prefetch::<_MM_HINT_T0>(step.as_ptr().wrapping_add(AHEAD + line).cast());
    }
}

/// See [`probe::read`].
pub(super) fn fold(_: Avx2, data: &[u8]) -> u64 {
    #[target_feature(enable = "avx2,fma,f16c")]
    fn inner(data: &[u8]) -> u64 {
        probe::fold(data, |block| block.as_chunks::<256>().0.iter().for_each(|block| prefetch_step(block)))
    }
    // SAFETY: the token proves the features.
    unsafe { inner(data) }
}

/// See [`probe::multiply`].
pub(super) fn multiply(_: Avx2, operation: probe::Operation, rounds: usize) -> u64 {
    /// Sums that do not wait for each other.
    const SUMS: usize = 12;
    /// Without VNNI a product of bytes takes three instructions. What they multiply depends on the last sum, or the
    /// compiler would take the products out of the loop.
    #[target_feature(enable = "avx2,fma,f16c")]
    fn int8(rounds: usize) {
        let (x, ones) = (_mm256_set1_epi8(black_box(3)), _mm256_set1_epi16(1));
        let mut sums = [x; SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(_mm256_maddubs_epi16(*sum, x), ones));
            }
        }
        black_box(sums);
    }
    #[target_feature(enable = "avx2,fma,f16c")]
    fn float(rounds: usize) {
        let x = _mm256_set1_ps(black_box(0.5));
        let mut sums = [x; SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, x, x);
            }
        }
        black_box(sums);
    }
    let lanes = match operation {
        probe::Operation::Int8 => {
            // SAFETY: the token proves the features.
            unsafe { int8(rounds) };
            32
        }
        probe::Operation::F32 => {
            // SAFETY: the token proves the features.
            unsafe { float(rounds) };
            8
        }
        probe::Operation::Bf16 => 0,
    };
    2 * lanes * (SUMS * rounds) as u64
}

pub(super) fn widen<T: Element>(_: Avx2, values: &[T], out: &mut [f32]) {
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

pub(super) fn quantize(_: Avx2, kind: Kind, x: &[f32], width: usize, tile: &mut InputTile) {
    #[target_feature(enable = "avx2,fma,f16c")]
    fn inner(kind: Kind, x: &[f32], width: usize, tile: &mut InputTile) {
        tile.fill(kind, x, width);
    }
    // SAFETY: the token proves the features.
    unsafe { inner(kind, x, width, tile) }
}

/// Half of a quad of a panel: eight rows.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn half_quad(quad: &[u8; 64], half: usize) -> __m256i {
    // SAFETY: 32 bytes are readable, and the load needs no alignment.
    unsafe { _mm256_loadu_si256(quad.as_chunks::<32>().0[half].as_ptr().cast()) }
}

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

pub(super) fn unpack_int8(_: Avx2, steps: &[int8::Step], out: &mut [Lanes]) {
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

pub(super) fn unpack_int4(_: Avx2, row_scales: &Lanes, steps: &[int4::Step], out: &mut [Lanes]) {
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

/// The levels of int4 weights, in both halves of the register.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn level_table() -> __m256i {
    // SAFETY: sixteen bytes are readable.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(int4::TABLE.as_ptr().cast()) })
}

/// Eight rows' heads of a group of int4 weights, with their signs.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn load_heads(heads: &[u8; 16], half: usize) -> __m256i {
    // SAFETY: eight bytes are readable.
    _mm256_cvtepi8_epi32(unsafe { _mm_loadl_epi64(heads.as_chunks::<8>().0[half].as_ptr().cast()) })
}

pub(super) fn dot<T: Element, const N: usize>(_: Avx2, weights: &[T], x: [&[f32]; N]) -> [f32; N] {
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

pub(super) fn pack(_: Avx2, rows: &[f32], depth: usize, panel: &mut [f32]) {
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

pub(super) fn gemm<T: Element>(
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
