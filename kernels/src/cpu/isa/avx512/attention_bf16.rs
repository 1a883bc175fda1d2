//! Attention in bf16: `vdpbf16ps` multiplies pairs of bf16 and adds both products to an f32.

use std::arch::x86_64::*;
use std::ops::Range;

use half::bf16;

use super::super::LANES;
use super::super::attention::{PanelValue, Product, QUERIES, STEP_BLOCKS};
use super::Bf16;
use super::attention::{ACROSS, Panels, load_floats, maxima, store_floats};
use crate::cpu::attention::softmax::{Softmax, vectors};

const LOG2_E: f32 = std::f32::consts::LOG2_E;

/// How far scores may be above their reference: weights of e^8 are as exact as others, and sums far from overflow.
const SLACK: f32 = 8.0;

/// Inputs of a tile: with [`ACROSS`] panels their sums are enough not to wait for each other.
const DOWN: usize = 4;

/// The first of the panels side by side that the first inputs ask for, and how many each [`DOWN`] inputs do: asked for all
/// at once they would wait for each other, and so would the products.
fn asks(product: &Product<'_, bf16, bf16>) -> (usize, usize) {
    if product.ahead.is_empty() {
        return (0, 0);
    }
    let (first, n) = product.share;
    let n_asked = ACROSS.div_ceil(n.max(1).div_ceil(DOWN));
    (first / DOWN * n_asked, n_asked)
}

/// `count` panels in parts of almost one width, so that no tile is narrow.
fn even_width(count: usize) -> usize {
    count.div_ceil(count.div_ceil(ACROSS))
}

pub(in crate::cpu::isa) fn scores(_: Bf16, product: Product<'_, bf16, bf16>) {
    let depth = product.blocks[0].len() / LANES;
    let asks = asks(&product);
    let (mut out, mut later) = (product.out, product.ahead.iter());
    for blocks in product.blocks.chunks(even_width(product.blocks.len())) {
        let mut panels = [std::ptr::null(); ACROSS];
        panels.iter_mut().zip(blocks).for_each(|(panel, block)| *panel = block.as_ptr());
        let mut ahead = panels.map(|panel| panel.cast());
        ahead.iter_mut().zip(later.by_ref()).take(blocks.len()).for_each(|(ahead, block)| *ahead = block.as_ptr());
        // SAFETY: the token proves the features; Product::check_scores has checked that the n rows of x are `depth`
        // long, each block is a panel of that depth, and the n rows of sums hold LANES for each block.
        unsafe {
            let (x, out) = ((product.x.as_ptr(), product.x_stride), (out.as_mut_ptr(), product.out_stride));
            multiply(product.n, x, (&[(panels, ahead)], asks), blocks.len(), depth, out, &[]);
        }
        out = &mut out[blocks.len() * LANES..];
    }
}

pub(in crate::cpu::isa) fn add_values(_: Bf16, product: Product<'_, bf16, bf16>) {
    let n_panels = product.blocks[0].len() / (LANES * LANES);
    let step = even_width(n_panels);
    for first in (0..n_panels).step_by(step) {
        let width = step.min(n_panels - first);
        let mut panels = [([std::ptr::null(); ACROSS], [std::ptr::null(); ACROSS]); STEP_BLOCKS];
        for (b, (panels, block)) in panels.iter_mut().zip(product.blocks).enumerate() {
            let later = product.ahead.get(b).map_or(block.as_ptr().cast(), |later| later.as_ptr());
            let values = block[first * LANES * LANES..].chunks_exact(LANES * LANES);
            for (m, panel) in values.take(width).enumerate() {
                panels.0[m] = panel.as_ptr();
                panels.1[m] = later.wrapping_add((first + m) * LANES * LANES * size_of::<bf16>());
            }
        }
        let out = product.out[first * LANES..].as_mut_ptr();
        // SAFETY: the token proves the features; Product::check_values has checked that the n rows of x hold LANES for
        // each block, each block has `width` panels of LANES rows of LANES from `first` on, and the n rows of sums
        // LANES for each of them.
        unsafe {
            let (x, out) = ((product.x.as_ptr(), product.x_stride), (out, product.out_stride));
            let panels = (&panels[..product.blocks.len()], asks(&product));
            multiply(product.n, x, panels, width, LANES, out, product.factors);
        }
    }
}

/// The sums of n inputs over `width` panels side by side and all of `panels` below each other; added to the factors
/// times `out`, or written there if there are none. Beside the panels stands what [`asks`] says.
///
/// # Safety
/// `x` has n rows of `depth` values for each of `panels`, whose first `width` are [depth / 2][LANES][2]; `out` has n
/// rows of `width` times LANES; width <= ACROSS.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn multiply(
    n: usize,
    (x, x_stride): (*const bf16, usize),
    (panels, (first_asked, n_asked)): (&[Panels<bf16>], (usize, usize)),
    width: usize,
    depth: usize,
    (out, out_stride): (*mut f32, usize),
    factors: &[f32],
) {
    for t in (0..n).step_by(DOWN) {
        // SAFETY: rows t.. of n, and as the caller's.
        unsafe {
            let (x, out) = ((x.add(t * x_stride), x_stride), (out.add(t * out_stride), out_stride));
            let factors = factors.get(t..).unwrap_or_default();
            let asked = width.min(first_asked + t / DOWN * n_asked)..width.min(first_asked + (t / DOWN + 1) * n_asked);
            rows(n - t, x, (panels, asked), width, depth, out, factors);
        }
    }
}

/// The first DOWN of n inputs, which ask for what follows a range of the panels side by side.
///
/// # Safety
/// As for [`multiply`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn rows(
    n: usize,
    x: (*const bf16, usize),
    panels: (&[Panels<bf16>], Range<usize>),
    width: usize,
    depth: usize,
    out: (*mut f32, usize),
    factors: &[f32],
) {
    // SAFETY: as the caller's; M is the width and N at most n.
    unsafe {
        match (width, n) {
            (1, 1) => tile::<1, 1>(x, panels, depth, out, factors),
            (1, 2) => tile::<1, 2>(x, panels, depth, out, factors),
            (1, 3) => tile::<1, 3>(x, panels, depth, out, factors),
            (1, _) => tile::<1, 4>(x, panels, depth, out, factors),
            (2, 1) => tile::<2, 1>(x, panels, depth, out, factors),
            (2, 2) => tile::<2, 2>(x, panels, depth, out, factors),
            (2, 3) => tile::<2, 3>(x, panels, depth, out, factors),
            (2, _) => tile::<2, 4>(x, panels, depth, out, factors),
            (3, 1) => tile::<3, 1>(x, panels, depth, out, factors),
            (3, 2) => tile::<3, 2>(x, panels, depth, out, factors),
            (3, 3) => tile::<3, 3>(x, panels, depth, out, factors),
            (3, _) => tile::<3, 4>(x, panels, depth, out, factors),
            (_, 1) => tile::<4, 1>(x, panels, depth, out, factors),
            (_, 2) => tile::<4, 2>(x, panels, depth, out, factors),
            (_, 3) => tile::<4, 3>(x, panels, depth, out, factors),
            _ => tile::<4, 4>(x, panels, depth, out, factors),
        }
    }
}

/// N inputs and M panels, whose sums stay in registers.
///
/// # Safety
/// As for [`multiply`], with n = N and width = M.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn tile<const M: usize, const N: usize>(
    (x, x_stride): (*const bf16, usize),
    (panels, asked): (&[Panels<bf16>], Range<usize>),
    depth: usize,
    (out, out_stride): (*mut f32, usize),
    factors: &[f32],
) {
    let mut sums = [[_mm512_setzero_ps(); M]; N];
    for (b, (panels, ahead)) in panels.iter().enumerate() {
        for k in (0..depth).step_by(2) {
            for ahead in &ahead[asked.clone()] {
                _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(k * LANES * size_of::<bf16>()).cast());
            }
            let mut pairs = [_mm512_setzero_si512(); M];
            for m in 0..M {
                // SAFETY: panel m < M has 2 LANES values for the pair k.
                pairs[m] = unsafe { _mm512_loadu_si512(panels[m].add(k * LANES).cast()) };
            }
            for (t, sums) in sums.iter_mut().enumerate() {
                // SAFETY: row t < N holds the pair from b * depth + k on.
                let pair = unsafe { x.add(t * x_stride + b * depth + k).cast::<i32>().read_unaligned() };
                let pair = _mm512_set1_epi32(pair);
                for (sum, pairs) in sums.iter_mut().zip(pairs) {
                    *sum = _mm512_dpbf16_ps(*sum, halves(pair), halves(pairs));
                }
            }
        }
    }
    for (t, sums) in sums.iter().enumerate() {
        for (m, lanes) in sums.iter().enumerate() {
            // SAFETY: row t < N holds LANES sums for each m < M.
            unsafe {
                let out = out.add(t * out_stride + m * LANES);
                let lanes = match factors.get(t) {
                    Some(factor) => _mm512_fmadd_ps(_mm512_loadu_ps(out), _mm512_set1_ps(*factor), *lanes),
                    None => *lanes,
                };
                _mm512_storeu_ps(out, lanes);
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn halves(pairs: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes of which every pattern is a value.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(pairs) }
}

/// Stores sixteen values, rounded to nearest even.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn store_halves(values: __m512, out: &mut [bf16; LANES]) {
    // SAFETY: both are 32 bytes of which every pattern is a value.
    let halves = unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(values)) };
    // SAFETY: sixteen values of two bytes are writable.
    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), halves) };
}

pub(in crate::cpu::isa) fn narrow<P: PanelValue>(_: Bf16, values: &[P], out: &mut [bf16]) {
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512bf16")]
    fn inner<P: PanelValue>(values: &[P], out: &mut [bf16]) {
        let ((blocks, rest), (outs, out_rest)) = (values.as_chunks::<LANES>(), out.as_chunks_mut::<LANES>());
        for (values, out) in blocks.iter().zip(outs) {
            // SAFETY: sixteen values are readable; the features are those of this function.
            store_halves(unsafe { P::load16(values.as_ptr()) }, out);
        }
        out_rest.iter_mut().zip(rest).for_each(|(out, value)| *out = bf16::from_f32(value.widen()));
    }
    // SAFETY: the token proves the features.
    unsafe { inner(values, out) }
}

pub(in crate::cpu::isa) fn weigh(_: Bf16, mut softmax: Softmax<'_>, weights: &mut [bf16]) {
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi,avx512bf16")]
    fn inner(softmax: &mut Softmax<'_>, weights: &mut [bf16]) {
        if weigh_by_old(softmax, weights) {
            return;
        }
        let maxima = maxima(softmax);
        let (stride, result_len) = (softmax.stride, softmax.result_len);
        let rows = softmax.scores.chunks(stride).zip(softmax.results.chunks_exact_mut(result_len));
        let rows = rows.zip(weights.chunks_mut(stride)).zip(softmax.visible).zip(maxima);
        for ((((scores, result), weights), visible), maximum) in rows {
            let (scores, weights) = (&scores[..softmax.n_keys], &mut weights[..softmax.n_keys]);
            let vectors = vectors(visible);
            weights[..vectors.start * LANES].fill(bf16::ZERO);
            weights[vectors.end * LANES..].fill(bf16::ZERO);
            let Some(totals) = result[result_len - 2 * LANES..].first_chunk_mut() else { continue };
            let mut total = load_floats(totals);
            let offset = _mm512_set1_ps(maximum * LOG2_E);
            let scores = &scores.as_chunks::<LANES>().0[vectors.clone()];
            let weights = &mut weights.as_chunks_mut::<LANES>().0[vectors.clone()];
            let weight = |scores| exp2(_mm512_fmsub_ps(load_floats(scores), _mm512_set1_ps(LOG2_E), offset));
            match softmax.value_scales {
                None => {
                    for (scores, to) in scores.iter().zip(weights) {
                        let values = weight(scores);
                        total = _mm512_add_ps(total, values);
                        store_halves(values, to);
                    }
                }
                Some(scales) => {
                    for ((scores, to), scales) in scores.iter().zip(weights).zip(&scales.as_chunks().0[vectors]) {
                        let values = weight(scores);
                        total = _mm512_add_ps(total, values);
                        store_halves(_mm512_mul_ps(values, load_floats(scales)), to);
                    }
                }
            }
            store_floats(totals, total);
        }
    }
    // SAFETY: the token proves the features.
    unsafe { inner(&mut softmax, weights) }
}

/// A softmax whose queries see all keys, and whose scores are not above the references of old sums by more than
/// [`SLACK`]: these stay, so no row waits for its largest score. Says whether it was one; else nothing has changed but
/// weights.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi,avx512bf16")]
fn weigh_by_old(softmax: &mut Softmax<'_>, weights: &mut [bf16]) -> bool {
    let (stride, result_len, n_keys) = (softmax.stride, softmax.result_len, softmax.n_keys);
    if softmax.visible.iter().any(|visible| *visible != (0..n_keys)) {
        return false;
    }
    let mut sums = [_mm512_setzero_ps(); QUERIES];
    let rows = softmax.scores.chunks(stride).zip(softmax.results.chunks_exact(result_len));
    for (((scores, result), weights), sum) in
        rows.zip(weights.chunks_mut(stride)).zip(&mut sums).take(softmax.visible.len())
    {
        let reference = result[result_len - LANES];
        if reference == f32::NEG_INFINITY {
            return false;
        }
        let (bound, offset) = (_mm512_set1_ps(reference + SLACK), _mm512_set1_ps(reference * LOG2_E));
        let mut above = 0;
        let rows = scores[..n_keys].as_chunks::<LANES>().0.iter().zip(weights.as_chunks_mut::<LANES>().0);
        let weight = |scores| exp2(_mm512_fmsub_ps(scores, _mm512_set1_ps(LOG2_E), offset));
        match (softmax.key_scales, softmax.value_scales) {
            (Some(key_scales), Some(value_scales)) => {
                let scales = key_scales.as_chunks().0.iter().zip(value_scales.as_chunks().0);
                for ((scores, to), (key_scales, value_scales)) in rows.zip(scales) {
                    let scores = _mm512_mul_ps(load_floats(scores), load_floats(key_scales));
                    above |= _mm512_cmp_ps_mask::<_CMP_GT_OQ>(scores, bound);
                    let weights = weight(scores);
                    *sum = _mm512_add_ps(*sum, weights);
                    store_halves(_mm512_mul_ps(weights, load_floats(value_scales)), to);
                }
            }
            (None, None) => {
                for (scores, to) in rows {
                    let scores = load_floats(scores);
                    above |= _mm512_cmp_ps_mask::<_CMP_GT_OQ>(scores, bound);
                    let weights = weight(scores);
                    *sum = _mm512_add_ps(*sum, weights);
                    store_halves(weights, to);
                }
            }
            _ => return false,
        }
        if above != 0 {
            return false;
        }
    }
    for (result, sum) in softmax.results.chunks_exact_mut(result_len).zip(sums).take(softmax.visible.len()) {
        let Some(totals) = result[result_len - 2 * LANES..].first_chunk_mut() else { continue };
        store_floats(totals, _mm512_add_ps(load_floats(totals), sum));
    }
    softmax.factors.fill(1.0);
    true
}

/// 2^x for x <= 0 to 3e-6 relative, far below the rounding to bf16; 0 below -149; NaN stays.
///
/// x = n + r with |r| <= 1/2; the polynomial is our own fit of 2^r with the least relative error.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn exp2(x: __m512) -> __m512 {
    const POWERS: [f32; 5] = [0.009_570_102, 0.055_917_86, 0.240_247_45, 0.693_121_8, 0.999_999_3];
    // The second operand is the result where one is NaN.
    let x = _mm512_max_ps(_mm512_set1_ps(-200.0), x);
    let n = _mm512_roundscale_ps::<8>(x);
    let r = _mm512_sub_ps(x, n);
    let mut power = _mm512_set1_ps(POWERS[0]);
    for coefficient in &POWERS[1..] {
        power = _mm512_fmadd_ps(power, r, _mm512_set1_ps(*coefficient));
    }
    _mm512_scalef_ps(power, n)
}
