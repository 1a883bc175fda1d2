//! Dense weights: choosing the tier.

#[cfg(target_arch = "x86_64")]
use super::avx2;
use super::{LANES, portable};
use crate::cpu::matrix::Element;
use crate::cpu::{Isa, Tier};

impl Isa {
    /// `out[i] = values[i]`, exact.
    pub(in crate::cpu) fn widen<T: Element>(self, values: &[T], out: &mut [f32]) {
        assert_eq!(values.len(), out.len(), "values to widen");
        match self.0 {
            Tier::Portable => portable::widen(values, out),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(token) => avx2::dense::widen(token, values, out),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(token) => avx2::dense::widen(token.avx2(), values, out),
        }
    }

    /// `sum_k weights[k] * x[t][k]` for each of N tokens.
    pub(in crate::cpu) fn dot<T: Element, const N: usize>(self, weights: &[T], x: [&[f32]; N]) -> [f32; N] {
        for x in x {
            assert_eq!(x.len(), weights.len(), "length of an input row");
        }
        match self.0 {
            Tier::Portable => portable::dot(weights, x),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(token) => avx2::dense::dot(token, weights, x),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(token) => avx2::dense::dot(token.avx2(), weights, x),
        }
    }

    /// `panel[k][r] = rows[r][k]`: LANES rows of `depth` values to a panel.
    pub(in crate::cpu) fn pack(self, rows: &[f32], depth: usize, panel: &mut [f32]) {
        assert_eq!(rows.len(), LANES * depth, "{LANES} rows of {depth}");
        assert_eq!(panel.len(), LANES * depth, "a panel of {depth}");
        match self.0 {
            Tier::Portable => portable::pack(rows, depth, panel),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(token) => avx2::dense::pack(token, rows, depth, panel),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(token) => avx2::dense::pack(token.avx2(), rows, depth, panel),
        }
    }

    /// `out[t][r] += sum_k x[t][k] * panel[k][r]` for `n` tokens. Rows of `x` start `x_stride` apart, those of
    /// `out` `out_stride`; the depth is the panel's.
    pub(in crate::cpu) fn gemm<T: Element>(
        self,
        n: usize,
        (x, x_stride): (&[f32], usize),
        panel: &[T],
        (out, out_stride): (&mut [f32], usize),
    ) {
        let depth = panel.len() / LANES;
        if n == 0 || depth == 0 {
            return;
        }
        assert!(x.len() >= (n - 1) * x_stride + depth, "{} inputs for {n} rows of {depth}", x.len());
        assert!(out.len() >= (n - 1) * out_stride + LANES, "{} outputs for {n} rows", out.len());
        match self.0 {
            Tier::Portable => portable::gemm(n, (x, x_stride), panel, (out, out_stride)),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(token) => avx2::dense::gemm(token, n, (x, x_stride), panel, (out, out_stride)),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(token) => avx2::dense::gemm(token.avx2(), n, (x, x_stride), panel, (out, out_stride)),
        }
    }
}
