//! Attention in f32: products with panels of pairs, and the softmax.

use std::arch::x86_64::*;

use super::super::LANES;
use super::super::attention::{PanelValue, Product, QUERIES, STEP_BLOCKS};
use super::Avx512;
use crate::cpu::attention::softmax::{Softmax, hide, vectors};

pub(in crate::cpu::isa) fn widen<P: PanelValue>(_: Avx512, values: &[P], out: &mut [f32]) {
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
    fn inner<P: PanelValue>(values: &[P], out: &mut [f32]) {
        let ((blocks, rest), (outs, out_rest)) = (values.as_chunks::<LANES>(), out.as_chunks_mut::<LANES>());
        for (values, out) in blocks.iter().zip(outs) {
            // SAFETY: sixteen values are readable; the features are those of this function.
            store_floats(out, unsafe { P::load16(values.as_ptr()) });
        }
        out_rest.iter_mut().zip(rest).for_each(|(out, value)| *out = value.widen());
    }
    // SAFETY: the token proves the features.
    unsafe { inner(values, out) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load_floats(values: &[f32; LANES]) -> __m512 {
    // SAFETY: sixteen values are readable.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store_floats(to: &mut [f32; LANES], values: __m512) {
    // SAFETY: sixteen values are writable.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), values) };
}

/// Panels side by side that a tile takes at most.
pub(super) const ACROSS: usize = 4;

/// So many panels side by side that a tile's sums fill the registers, and do not wait for each other.
fn across(n: usize) -> usize {
    match n {
        1 | 2 => ACROSS,
        3 | 4 => 2,
        _ => 1,
    }
}

pub(in crate::cpu::isa) fn scores<P: PanelValue>(_: Avx512, product: Product<'_, f32, P>) {
    let depth = product.blocks[0].len() / LANES;
    let (mut out, mut later) = (product.out, product.ahead.iter());
    for blocks in product.blocks.chunks(across(product.n)) {
        let mut panels = [std::ptr::null(); ACROSS];
        panels.iter_mut().zip(blocks).for_each(|(panel, block)| *panel = block.as_ptr());
        let mut ahead = panels.map(|panel| panel.cast());
        ahead.iter_mut().zip(later.by_ref()).take(blocks.len()).for_each(|(ahead, block)| *ahead = block.as_ptr());
        // SAFETY: the token proves the features; Product::check_scores has checked that the n rows of x are `depth`
        // long, each block is a panel of that depth, and the n rows of sums hold LANES for each block.
        unsafe {
            let (x, out) = ((product.x.as_ptr(), product.x_stride), (out.as_mut_ptr(), product.out_stride));
            multiply(product.n, x, &[(panels, ahead)], blocks.len(), depth, out, &[]);
        }
        out = &mut out[blocks.len() * LANES..];
    }
}

pub(in crate::cpu::isa) fn add_values<P: PanelValue>(_: Avx512, product: Product<'_, f32, P>) {
    let n_panels = product.blocks[0].len() / (LANES * LANES);
    for first in (0..n_panels).step_by(across(product.n)) {
        let width = across(product.n).min(n_panels - first);
        let mut panels = [([std::ptr::null(); ACROSS], [std::ptr::null(); ACROSS]); STEP_BLOCKS];
        for (b, (panels, block)) in panels.iter_mut().zip(product.blocks).enumerate() {
            let later = product.ahead.get(b).map_or(block.as_ptr().cast(), |later| later.as_ptr());
            let values = block[first * LANES * LANES..].chunks_exact(LANES * LANES);
            for (m, panel) in values.take(width).enumerate() {
                panels.0[m] = panel.as_ptr();
                panels.1[m] = later.wrapping_add((first + m) * LANES * LANES * size_of::<P>());
            }
        }
        let out = product.out[first * LANES..].as_mut_ptr();
        // SAFETY: the token proves the features; Product::check_values has checked that the n rows of x hold LANES for
        // each block, each block has `width` panels of LANES rows of LANES from `first` on, and the n rows of sums
        // LANES for each of them.
        unsafe {
            let (x, out) = ((product.x.as_ptr(), product.x_stride), (out, product.out_stride));
            multiply(product.n, x, &panels[..product.blocks.len()], width, LANES, out, product.factors);
        }
    }
}

/// Panels side by side, and for each what will be read next.
pub(super) type Panels<P> = ([*const P; ACROSS], [*const u8; ACROSS]);

/// The sums of n inputs over `width` panels side by side and all of `panels` below each other; added to the factors
/// times `out`, or written there if there are none.
///
/// # Safety
/// `x` has n rows of `depth` values for each of `panels`, whose first `width` are [depth / 2][LANES][2]; `out` has n
/// rows of `width` times LANES; n <= 8, and width <= across(n).
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn multiply<P: PanelValue>(
    n: usize,
    x: (*const f32, usize),
    panels: &[Panels<P>],
    width: usize,
    depth: usize,
    out: (*mut f32, usize),
    factors: &[f32],
) {
    // SAFETY: as the caller's; M is the width and N is n.
    unsafe {
        match (width, n) {
            (4, 1) => tile::<P, 4, 1>(x, panels, depth, out, factors),
            (4, 2) => tile::<P, 4, 2>(x, panels, depth, out, factors),
            (3, 1) => tile::<P, 3, 1>(x, panels, depth, out, factors),
            (3, 2) => tile::<P, 3, 2>(x, panels, depth, out, factors),
            (2, 1) => tile::<P, 2, 1>(x, panels, depth, out, factors),
            (2, 2) => tile::<P, 2, 2>(x, panels, depth, out, factors),
            (2, 3) => tile::<P, 2, 3>(x, panels, depth, out, factors),
            (2, 4) => tile::<P, 2, 4>(x, panels, depth, out, factors),
            (1, 1) => tile::<P, 1, 1>(x, panels, depth, out, factors),
            (1, 2) => tile::<P, 1, 2>(x, panels, depth, out, factors),
            (1, 3) => tile::<P, 1, 3>(x, panels, depth, out, factors),
            (1, 4) => tile::<P, 1, 4>(x, panels, depth, out, factors),
            (1, 5) => tile::<P, 1, 5>(x, panels, depth, out, factors),
            (1, 6) => tile::<P, 1, 6>(x, panels, depth, out, factors),
            (1, 7) => tile::<P, 1, 7>(x, panels, depth, out, factors),
            (1, 8) => tile::<P, 1, 8>(x, panels, depth, out, factors),
            _ => unreachable!("{width} panels for {n} inputs"),
        }
    }
}

/// N inputs and M panels, whose sums stay in registers: eight lanes of a panel times two of the summed index in each.
///
/// # Safety
/// As for [`multiply`], with n = N and width = M.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn tile<P: PanelValue, const M: usize, const N: usize>(
    (x, x_stride): (*const f32, usize),
    panels: &[Panels<P>],
    depth: usize,
    (out, out_stride): (*mut f32, usize),
    factors: &[f32],
) {
    let mut sums = [[[_mm512_setzero_ps(); 2]; M]; N];
    for (b, (panels, ahead)) in panels.iter().enumerate() {
        for k in (0..depth).step_by(2) {
            let mut values = [[_mm512_setzero_ps(); 2]; M];
            for m in 0..M {
                _mm_prefetch::<_MM_HINT_T0>(ahead[m].wrapping_add(k * LANES * size_of::<P>()).cast());
                // SAFETY: panel m < M has 2 LANES values for the pair k.
                values[m] = unsafe {
                    let pairs = panels[m].add(k * LANES);
                    [P::load16(pairs), P::load16(pairs.add(LANES))]
                };
            }
            for (t, sums) in sums.iter_mut().enumerate() {
                // SAFETY: row t < N holds the pair from b * depth + k on.
                let pair = unsafe { x.add(t * x_stride + b * depth + k).cast::<f64>().read_unaligned() };
                let pair = _mm512_castpd_ps(_mm512_set1_pd(pair));
                for (sums, values) in sums.iter_mut().zip(&values) {
                    sums[0] = _mm512_fmadd_ps(pair, values[0], sums[0]);
                    sums[1] = _mm512_fmadd_ps(pair, values[1], sums[1]);
                }
            }
        }
    }
    let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    let odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    for (t, sums) in sums.iter().enumerate() {
        for (m, [low, high]) in sums.iter().enumerate() {
            let (first, second) = (_mm512_permutex2var_ps(*low, even, *high), _mm512_permutex2var_ps(*low, odd, *high));
            let lanes = _mm512_add_ps(first, second);
            // SAFETY: row t < N holds LANES sums for each m < M.
            unsafe {
                let out = out.add(t * out_stride + m * LANES);
                let lanes = match factors.get(t) {
                    Some(factor) => _mm512_fmadd_ps(_mm512_loadu_ps(out), _mm512_set1_ps(*factor), lanes),
                    None => lanes,
                };
                _mm512_storeu_ps(out, lanes);
            }
        }
    }
}

pub(in crate::cpu::isa) fn weigh(_: Avx512, mut softmax: Softmax<'_>) {
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
    fn inner(softmax: &mut Softmax<'_>) {
        let maxima = maxima(softmax);
        let rows = softmax.scores.chunks_mut(softmax.stride).zip(softmax.results.chunks_exact_mut(softmax.result_len));
        for (((scores, result), visible), maximum) in rows.zip(softmax.visible).zip(maxima) {
            let Some(totals) = result[softmax.result_len - 2 * LANES..].first_chunk_mut() else { continue };
            let mut total = load_floats(totals);
            let scores = &mut scores[..softmax.n_keys];
            for scores in &mut scores.as_chunks_mut::<LANES>().0[vectors(visible)] {
                let weights = exp(_mm512_sub_ps(load_floats(scores), _mm512_set1_ps(maximum)));
                total = _mm512_add_ps(total, weights);
                store_floats(scores, weights);
            }
            store_floats(totals, total);
            if let Some(scales) = softmax.value_scales {
                scores.iter_mut().zip(scales).for_each(|(weight, scale)| *weight *= scale);
            }
        }
    }
    // SAFETY: the token proves the features.
    unsafe { inner(&mut softmax) }
}

/// The first half of a softmax: hides what is not visible, and gives the largest score of each query with those before.
/// Results get them, and what this makes of the sums of weights; factors, what it makes of the sums of values.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
pub(super) fn maxima(softmax: &mut Softmax<'_>) -> [f32; QUERIES] {
    let (mut old, mut new) = ([0.0; LANES], [0.0; LANES]);
    let rows = softmax.scores.chunks_mut(softmax.stride).zip(softmax.results.chunks_exact(softmax.result_len));
    for (t, ((scores, result), visible)) in rows.zip(softmax.visible).enumerate() {
        let scores = &mut scores[..softmax.n_keys];
        if let Some(scales) = softmax.key_scales {
            scores.iter_mut().zip(scales).for_each(|(score, scale)| *score *= scale);
        }
        hide(scores, visible);
        old[t] = result[softmax.result_len - LANES];
        let mut largest = _mm512_set1_ps(old[t]);
        for scores in &scores.as_chunks::<LANES>().0[vectors(visible)] {
            largest = _mm512_max_ps(largest, load_floats(scores));
        }
        new[t] = _mm512_reduce_max_ps(largest);
    }
    // All exponentials at once: one by one they would take as long as a query's weights.
    let (from, to) = (load_floats(&old), load_floats(&new));
    let moved = _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(from, to);
    let factors = _mm512_mask_blend_ps(moved, _mm512_set1_ps(1.0), exp(_mm512_sub_ps(from, to)));
    store_floats(&mut old, factors);
    softmax.factors.copy_from_slice(&old[..QUERIES]);
    let results = softmax.results.chunks_exact_mut(softmax.result_len);
    for ((result, maximum), factor) in results.zip(&new).zip(&old) {
        let Some((totals, tail)) = result[softmax.result_len - 2 * LANES..].split_first_chunk_mut() else { continue };
        store_floats(totals, _mm512_mul_ps(load_floats(totals), _mm512_set1_ps(*factor)));
        tail[0] = *maximum;
    }
    std::array::from_fn(|t| new[t])
}

/// e^x for x <= 0 to 2 units in the last place, 0 below -103; NaN stays. The method and the coefficients are those of
/// [`crate::cpu::math::exp`], with fused multiply-adds.
#[inline]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn exp(x: __m512) -> __m512 {
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const TAIL: [f32; 6] = [1.989_928_6e-4, 1.393_365e-3, 8.333_298e-3, 4.166_646_7e-2, 0.166_666_67, 0.5];
    // The second operand is the result where one is NaN.
    let x = _mm512_max_ps(_mm512_set1_ps(-150.0), x);
    let n = _mm512_roundscale_ps::<8>(_mm512_mul_ps(x, _mm512_set1_ps(std::f32::consts::LOG2_E)));
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2_HIGH), x);
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(LN2_LOW), r);
    let mut power = _mm512_setzero_ps();
    for coefficient in TAIL {
        power = _mm512_fmadd_ps(power, r, _mm512_set1_ps(coefficient));
    }
    let power = _mm512_fmadd_ps(_mm512_mul_ps(r, r), power, r);
    _mm512_scalef_ps(_mm512_add_ps(power, _mm512_set1_ps(1.0)), n)
}
