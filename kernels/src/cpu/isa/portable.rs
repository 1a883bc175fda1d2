//! The inner kernels for any CPU, in eight lanes of the crate `wide` (SSE2, NEON or plain code).
//! Products are rounded before they are added, as there may be no fused multiply-add.

use std::hint::black_box;

use wide::f32x8;

use super::LANES;
use crate::cpu::matrix::Element;
use crate::cpu::probe;

/// Values that are widened at a time, on the stack.
const CHUNK: usize = 256;

/// There is no portable way to ask.
pub(super) fn prefetch<T: Element>(_: &[T]) {}

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

pub(super) fn dot<T: Element, const N: usize>(weights: &[T], x: [&[f32]; N]) -> [f32; N] {
    let mut sums = [0.0; N];
    let mut buffer = [0.0; CHUNK];
    for (i, weights) in weights.chunks(CHUNK).enumerate() {
        let wide = &mut buffer[..weights.len()];
        widen(weights, wide);
        for (sum, x) in sums.iter_mut().zip(x) {
            *sum += dot_f32(wide, &x[i * CHUNK..][..wide.len()]);
        }
    }
    sums
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

pub(super) fn pack(rows: &[f32], depth: usize, panel: &mut [f32]) {
    for (r, row) in rows.chunks_exact(depth).enumerate() {
        for (lanes, value) in panel.as_chunks_mut::<LANES>().0.iter_mut().zip(row) {
            lanes[r] = *value;
        }
    }
}

pub(super) fn gemm<T: Element>(
    n: usize,
    (x, x_stride): (&[f32], usize),
    panel: &[T],
    (out, out_stride): (&mut [f32], usize),
) {
    let mut t = 0;
    while t < n {
        let (x, out) = (&x[t * x_stride..], &mut out[t * out_stride..]);
        // Three tokens fill the sixteen registers of SSE2.
        t += match n - t {
            1 => tile::<T, 1>((x, x_stride), panel, (out, out_stride)),
            2 => tile::<T, 2>((x, x_stride), panel, (out, out_stride)),
            _ => tile::<T, 3>((x, x_stride), panel, (out, out_stride)),
        };
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
