//! Products of bf16 with bf16, two at a time: choosing the tier, if one has an instruction for them.

use half::bf16;

#[cfg(target_arch = "x86_64")]
use super::avx512;
use super::{LANES, dense};
use crate::cpu::Isa;
#[cfg(target_arch = "x86_64")]
use crate::cpu::Tier;

/// Proof that the tier in use multiplies pairs of bf16: it can be made nowhere else.
#[derive(Clone, Copy, Debug)]
pub(in crate::cpu) enum Bf16Isa {
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Bf16),
}

/// Two inputs of sixteen rows: the first in the lower half of each value.
pub(in crate::cpu) type PairLanes = [u32; LANES];

impl Isa {
    /// The tier's products of bf16, if it has them.
    pub(in crate::cpu) fn bf16(self) -> Option<Bf16Isa> {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(token) => token.bf16().map(Bf16Isa::Avx512),
            _ => None,
        }
    }
}

impl Bf16Isa {
    /// Rounds to nearest, ties to even, and fills the rest of the pairs with zeros. What is denormal becomes 0.
    pub(in crate::cpu) fn narrow(self, x: &[f32], out: &mut [u32]) {
        assert!(x.len() <= 2 * out.len(), "{} values in {} pairs", x.len(), out.len());
        match self {
            #[cfg(target_arch = "x86_64")]
            Bf16Isa::Avx512(token) => avx512::bf16::narrow(token, x, out),
        }
    }

    /// `panel[k][r]` = inputs 2 k and 2 k + 1 of row r, 0 behind the last. Asks for as many inputs that follow.
    pub(in crate::cpu) fn interleave(self, rows: [&[bf16]; LANES], panel: &mut [PairLanes]) {
        for row in rows {
            assert_eq!(row.len().div_ceil(2), panel.len(), "pairs of a row of a panel");
        }
        match self {
            #[cfg(target_arch = "x86_64")]
            Bf16Isa::Avx512(token) => avx512::bf16::interleave(token, rows, panel),
        }
    }

    /// `out[t][p][r] += sum_k x[t][k] * panels[p][k][r]` over both values of the pairs k, for `n` tokens and panels of
    /// `depth` pairs. Rows of `x` start `x_stride` pairs apart, those of `out` `out_stride`.
    pub(in crate::cpu) fn gemm(
        self,
        n: usize,
        (x, x_stride): (&[u32], usize),
        panels: &[PairLanes],
        depth: usize,
        (out, out_stride): (&mut [f32], usize),
    ) {
        if n == 0 || depth == 0 {
            return;
        }
        let width = panels.len() / depth * LANES;
        assert!(panels.len().is_multiple_of(depth), "{} lanes in panels of depth {depth}", panels.len());
        assert!(x.len() >= (n - 1) * x_stride + depth, "{} inputs for {n} rows of {depth}", x.len());
        assert!(out.len() >= (n - 1) * out_stride + width, "{} outputs for {n} rows of {width}", out.len());
        match self {
            #[cfg(target_arch = "x86_64")]
            Bf16Isa::Avx512(token) => avx512::bf16::gemm(token, n, (x, x_stride), panels, depth, (out, out_stride)),
        }
    }

    /// `out[t * stride + r] = sum_k weights[r * cols + k] * x[t][k]`, reading the weights once, front to back. Rows of
    /// `x` are `x_stride` pairs: `cols` values and zeros up to a multiple of LANES pairs.
    pub(in crate::cpu) fn dots(
        self,
        weights: &[bf16],
        cols: usize,
        (x, x_stride): (&[u32], usize),
        (out, stride): (&mut [f32], usize),
    ) {
        assert_eq!(x_stride, cols.div_ceil(2).next_multiple_of(LANES), "pairs of {cols} inputs");
        assert!(x.len().is_multiple_of(x_stride), "{} pairs in rows of {x_stride}", x.len());
        dense::check_dots(weights.len(), x.len() / x_stride * cols, cols, (out.len(), stride));
        match self {
            #[cfg(target_arch = "x86_64")]
            Bf16Isa::Avx512(token) => avx512::bf16::dots(token, weights, cols, (x, x_stride), (out, stride)),
        }
    }
}
