//! The inner kernels: four small functions, written once for each tier.
//!
//! Operations call them through [`Isa`], whose value is the proof that the tier's instructions exist. The
//! checks of shapes are here, so that a tier's file may rely on them.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
mod portable;

use super::matrix::Element;
use super::{Isa, Tier};

/// Output features in the lanes of a panel: a panel is [depth][LANES].
pub(super) const LANES: usize = 16;

impl Isa {
    /// Asks for values that will be read soon. Changes nothing but time.
    pub(super) fn prefetch<T: Element>(self, values: &[T]) {
        match self.0 {
            Tier::Portable => {}
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(_) => avx2::prefetch(values),
        }
    }

    /// `out[i] = values[i]`, exact.
    pub(super) fn widen<T: Element>(self, values: &[T], out: &mut [f32]) {
        assert_eq!(values.len(), out.len(), "values to widen");
        match self.0 {
            Tier::Portable => portable::widen(values, out),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(token) => avx2::widen(token, values, out),
        }
    }

    /// `sum_k weights[k] * x[t][k]` for each of N tokens.
    pub(super) fn dot<T: Element, const N: usize>(self, weights: &[T], x: [&[f32]; N]) -> [f32; N] {
        for x in x {
            assert_eq!(x.len(), weights.len(), "length of an input row");
        }
        match self.0 {
            Tier::Portable => portable::dot(weights, x),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(token) => avx2::dot(token, weights, x),
        }
    }

    /// `panel[k][r] = rows[r][k]`: LANES rows of `depth` values to a panel.
    pub(super) fn pack(self, rows: &[f32], depth: usize, panel: &mut [f32]) {
        assert_eq!(rows.len(), LANES * depth, "{LANES} rows of {depth}");
        assert_eq!(panel.len(), LANES * depth, "a panel of {depth}");
        match self.0 {
            Tier::Portable => portable::pack(rows, depth, panel),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(token) => avx2::pack(token, rows, depth, panel),
        }
    }

    /// `out[t][r] += sum_k x[t][k] * panel[k][r]` for `n` tokens. Rows of `x` start `x_stride` apart, those of
    /// `out` `out_stride`; the depth is the panel's.
    pub(super) fn gemm<T: Element>(
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
            Tier::Avx2(token) => avx2::gemm(token, n, (x, x_stride), panel, (out, out_stride)),
        }
    }
}
