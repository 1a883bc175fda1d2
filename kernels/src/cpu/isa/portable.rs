//! The inner kernels for any CPU, in eight lanes of the crate `wide` (SSE2, NEON or plain code).
//! Products are rounded before they are added, as there may be no fused multiply-add.

use std::hint::black_box;

use wide::f32x8;

use super::LANES;
use super::attention::{PanelValue, Product};
use crate::cpu::matrix::Element;
use crate::cpu::probe;
use crate::quant::Lanes;

/// Values that are widened at a time, on the stack.
const CHUNK: usize = 256;

/// There is no portable way to ask.
pub(super) fn prefetch<T>(_: &[T]) {}

/// See [`probe::multiply`].
pub(super) fn multiply(operation: probe::Operation, rounds: usize) -> u64 {
    /// Sums that do not wait for each other.
    const SUMS: usize = 12;
    if operation != probe::Operation::F32 {
        return 0;
    }
    let x = f32x8::splat(black_box(0.5));
    let mut sums = [x; SUMS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = *sum * x + x;
        }
    }
    black_box(sums);
    2 * 8 * (SUMS * rounds) as u64
}

pub(super) fn widen<T: Element>(values: &[T], out: &mut [f32]) {
    out.iter_mut().zip(values).for_each(|(out, value)| *out = value.widen());
}

pub(super) fn dots<T: Element>(weights: &[T], x: &[f32], cols: usize, (out, stride): (&mut [f32], usize)) {
    let mut buffer = [0.0; CHUNK];
    for (r, weights) in weights.chunks_exact(cols).enumerate() {
        for t in 0..x.len() / cols {
            out[t * stride + r] = 0.0;
        }
        for (i, weights) in weights.chunks(CHUNK).enumerate() {
            let wide = &mut buffer[..weights.len()];
            widen(weights, wide);
            for (t, x) in x.chunks_exact(cols).enumerate() {
                out[t * stride + r] += dot_f32(wide, &x[i * CHUNK..][..wide.len()]);
            }
        }
    }
}

fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut lanes = [f32x8::ZERO; 2];
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        lanes[i % 2] += f32x8::from(*a) * f32x8::from(*b);
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    (lanes[0] + lanes[1]).reduce_add() + rest
}

pub(super) fn pack<T: Element>(rows: [&[T]; LANES], panel: &mut [Lanes]) {
    for (r, row) in rows.into_iter().enumerate() {
        for (lanes, value) in panel.iter_mut().zip(row) {
            lanes[r] = value.widen();
        }
    }
}

pub(super) fn gemm<T: Element>(
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
            // Three tokens fill the sixteen registers of SSE2.
            t += match n - t {
                1 => tile::<T, 1>(x, panel, out),
                2 => tile::<T, 2>(x, panel, out),
                _ => tile::<T, 3>(x, panel, out),
            };
        }
    }
}

fn tile<T: Element, const N: usize>(
    (x, x_stride): (&[f32], usize),
    panel: &[T],
    (out, out_stride): (&mut [f32], usize),
) -> usize {
    let panel = panel.as_chunks::<LANES>().0;
    let x: [&[f32]; N] = std::array::from_fn(|t| &x[t * x_stride..][..panel.len()]);
    let mut sums = [[f32x8::ZERO; 2]; N];
    for (k, weights) in panel.iter().enumerate() {
        let lanes = |first: usize| f32x8::from(std::array::from_fn(|r| weights[first + r].widen()));
        let (low, high) = (lanes(0), lanes(8));
        for (sums, x) in sums.iter_mut().zip(x) {
            let x = f32x8::splat(x[k]);
            sums[0] += x * low;
            sums[1] += x * high;
        }
    }
    for (t, sums) in sums.iter().enumerate() {
        let out = &mut out[t * out_stride..][..LANES];
        let values = sums.iter().flat_map(|sum| sum.to_array());
        out.iter_mut().zip(values).for_each(|(out, sum)| *out += sum);
    }
    N
}

/// See [`crate::cpu::Isa::scores`].
pub(super) fn scores<P: PanelValue>(product: Product<'_, f32, P>) {
    let depth = product.blocks[0].len() / LANES;
    for t in 0..product.n {
        let x = &product.x[t * product.x_stride..][..depth];
        for (block, out) in product.blocks.iter().zip(product.out[t * product.out_stride..].as_chunks_mut().0) {
            *out = pair_sums(x, block);
        }
    }
}

/// See [`crate::cpu::Isa::add_values`].
pub(super) fn add_values<P: PanelValue>(product: Product<'_, f32, P>) {
    for (t, factor) in product.factors.iter().enumerate() {
        let x = product.x[t * product.x_stride..].as_chunks::<LANES>().0;
        let n_sums = product.blocks[0].len() / LANES;
        product.out[t * product.out_stride..][..n_sums].iter_mut().for_each(|out| *out *= factor);
        for (x, block) in x.iter().zip(product.blocks) {
            let panels = block.chunks_exact(LANES * LANES);
            for (panel, out) in panels.zip(product.out[t * product.out_stride..].as_chunks_mut::<LANES>().0) {
                out.iter_mut().zip(pair_sums(x, panel)).for_each(|(out, sum)| *out += sum);
            }
        }
    }
}

/// The product of a row with a panel of pairs, [x.len() / 2][LANES][2].
fn pair_sums<P: PanelValue>(x: &[f32], panel: &[P]) -> [f32; LANES] {
    let mut sums = [f32x8::ZERO; 4];
    for ([even, odd], pairs) in x.as_chunks::<2>().0.iter().zip(panel.as_chunks::<{ 2 * LANES }>().0) {
        let pair = f32x8::new([*even, *odd, *even, *odd, *even, *odd, *even, *odd]);
        for (sum, values) in sums.iter_mut().zip(pairs.as_chunks::<8>().0) {
            *sum += pair * f32x8::from(values.map(PanelValue::widen));
        }
    }
    std::array::from_fn(|lane| {
        let sums = sums[lane / 4].as_array();
        sums[lane % 4 * 2] + sums[lane % 4 * 2 + 1]
    })
}
