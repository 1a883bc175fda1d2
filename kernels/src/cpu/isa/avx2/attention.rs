//! Attention in f32: products with panels of pairs, and the softmax.

use std::arch::x86_64::*;

use super::super::LANES;
use super::super::attention::{PanelValue, Product, STEP_BLOCKS};
use super::Avx2;

pub(in crate::cpu::isa) fn widen<P: PanelValue>(_: Avx2, values: &[P], out: &mut [f32]) {
    #[target_feature(enable = "avx2,fma,f16c")]
    fn inner<P: PanelValue>(values: &[P], out: &mut [f32]) {
        let ((blocks, rest), (outs, out_rest)) = (values.as_chunks::<8>(), out.as_chunks_mut::<8>());
        for (values, out) in blocks.iter().zip(outs) {
            // SAFETY: both are arrays of eight values; the features are those of this function.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), P::load8(values.as_ptr())) };
        }
        out_rest.iter_mut().zip(rest).for_each(|(out, value)| *out = value.widen());
    }
    // SAFETY: the token proves the features.
    unsafe { inner(values, out) }
}

pub(in crate::cpu::isa) fn scores<P: PanelValue>(_: Avx2, product: Product<'_, f32, P>) {
    let depth = product.blocks[0].len() / LANES;
    for (b, block) in product.blocks.iter().enumerate() {
        let later = product.ahead.get(b).map_or(block.as_ptr().cast(), |later| later.as_ptr());
        let out = product.out[b * LANES..].as_mut_ptr();
        // SAFETY: the token proves the features; Product::check_scores has checked that the n rows of x are `depth`
        // long, the block is a panel of that depth, and the n rows of sums hold LANES from 16 b on.
        unsafe {
            let (x, out) = ((product.x.as_ptr(), product.x_stride), (out, product.out_stride));
            multiply(product.n, x, &[(block.as_ptr(), later)], depth, out, &[]);
        }
    }
}

pub(in crate::cpu::isa) fn add_values<P: PanelValue>(_: Avx2, product: Product<'_, f32, P>) {
    for m in 0..product.blocks[0].len() / (LANES * LANES) {
        let mut panels = [(std::ptr::null(), std::ptr::null()); STEP_BLOCKS];
        for (b, (panel, block)) in panels.iter_mut().zip(product.blocks).enumerate() {
            let later = product.ahead.get(b).map_or(block.as_ptr().cast(), |later| later.as_ptr());
            *panel = (block[m * LANES * LANES..].as_ptr(), later.wrapping_add(m * LANES * LANES * size_of::<P>()));
        }
        let out = product.out[m * LANES..].as_mut_ptr();
        // SAFETY: the token proves the features; Product::check_values has checked that the n rows of x hold LANES for
        // each block, each block has LANES rows of LANES from panel m on, and the n rows of sums LANES from 16 m on.
        unsafe {
            let (x, out) = ((product.x.as_ptr(), product.x_stride), (out, product.out_stride));
            multiply(product.n, x, &panels[..product.blocks.len()], LANES, out, product.factors);
        }
    }
}

/// A panel, and what will be read next.
type Panel<P> = (*const P, *const u8);

/// The sums of n inputs over panels that follow each other in depth; added to `out`, or written there.
///
/// # Safety
/// `x` has n rows of `depth` values for each panel, a panel is [depth / 2][LANES][2], `out` has n rows of LANES.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn multiply<P: PanelValue>(
    n: usize,
    (x, x_stride): (*const f32, usize),
    panels: &[Panel<P>],
    depth: usize,
    (out, out_stride): (*mut f32, usize),
    factors: &[f32],
) {
    let mut t = 0;
    while t < n {
        // Three inputs are twelve sums, which with three inputs and a part of the panel fill the sixteen registers.
        // SAFETY: rows t.. of n.
        t += unsafe {
            let (x, out) = ((x.add(t * x_stride), x_stride), (out.add(t * out_stride), out_stride));
            let factors = factors.get(t..).unwrap_or_default();
            match n - t {
                1 => tile::<P, 1>(x, panels, depth, out, factors),
                2 | 4 => tile::<P, 2>(x, panels, depth, out, factors),
                _ => tile::<P, 3>(x, panels, depth, out, factors),
            }
        };
    }
}

/// N inputs, whose sums stay in registers: four lanes of a panel times two of the summed index in each.
///
/// # Safety
/// As for [`multiply`], with n = N.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<P: PanelValue, const N: usize>(
    (x, x_stride): (*const f32, usize),
    panels: &[Panel<P>],
    depth: usize,
    (out, out_stride): (*mut f32, usize),
    factors: &[f32],
) -> usize {
    let mut sums = [[_mm256_setzero_ps(); 4]; N];
    for (b, (panel, ahead)) in panels.iter().enumerate() {
        for k in (0..depth).step_by(2) {
            _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(k * LANES * size_of::<P>()).cast());
            let mut pairs = [_mm256_setzero_ps(); N];
            for (t, pair) in pairs.iter_mut().enumerate() {
                // SAFETY: row t < N holds the pair from b * depth + k on.
                let pair_at = unsafe { x.add(t * x_stride + b * depth + k).cast::<f64>().read_unaligned() };
                *pair = _mm256_castpd_ps(_mm256_set1_pd(pair_at));
            }
            for i in 0..4 {
                // SAFETY: the panel has 2 LANES values for the pair k.
                let values = unsafe { P::load8(panel.add(k * LANES + 8 * i)) };
                for (pair, sums) in pairs.iter().zip(&mut sums) {
                    sums[i] = _mm256_fmadd_ps(*pair, values, sums[i]);
                }
            }
        }
    }
    for (t, sums) in sums.iter().enumerate() {
        for half in 0..2 {
            // Adds neighbours; within each 128 bits come four sums, of the first and of the second register in turn.
            let neighbours = _mm256_castps_pd(_mm256_hadd_ps(sums[2 * half], sums[2 * half + 1]));
            let lanes = _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(neighbours));
            // SAFETY: row t < N holds LANES sums.
            unsafe {
                let out = out.add(t * out_stride + 8 * half);
                let lanes = match factors.get(t) {
                    Some(factor) => _mm256_fmadd_ps(_mm256_loadu_ps(out), _mm256_set1_ps(*factor), lanes),
                    None => lanes,
                };
                _mm256_storeu_ps(out, lanes);
            }
        }
    }
    N
}
