//! Dense weights: choosing the tier.

use super::{LANES, portable};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use crate::cpu::matrix::Element;
use crate::cpu::{Isa, Tier};
use crate::quant::Lanes;

impl Isa {
    /// `out[t * stride + r] = sum_k weights[r * cols + k] * x[t * cols + k]`, reading the weights once, front to back.
    pub(in crate::cpu) fn dots<T: Element>(
        self,
        weights: &[T],
        x: &[f32],
        cols: usize,
        (out, stride): (&mut [f32], usize),
    ) {
        check_dots(weights.len(), x.len(), cols, (out.len(), stride));
        match self.0 {
            Tier::Portable => portable::dots(weights, x, cols, (out, stride)),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(token) => avx2::dense::dots(token, weights, x, cols, (out, stride)),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(token) => avx512::dense::dots(token, weights, x, cols, (out, stride)),
        }
    }

    /// `panel[k][r] = rows[r][k]`. May ask for as many values that follow in each row.
    pub(in crate::cpu) fn pack<T: Element>(self, rows: [&[T]; LANES], panel: &mut [Lanes]) {
        for row in rows {
            assert_eq!(row.len(), panel.len(), "values of a row of a panel");
        }
        match self.0 {
            Tier::Portable => portable::pack(rows, panel),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(token) => avx2::dense::pack(token, rows, panel),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(token) => avx512::dense::pack(token, rows, panel),
        }
    }

    /// `out[t][p][r] += sum_k x[t][k] * panels[p][k][r]` for `n` tokens and panels of `depth` inputs. Rows of `x` start
    /// `x_stride` apart, those of `out` `out_stride`.
    pub(in crate::cpu) fn gemm_panels<T: Element>(
        self,
        n: usize,
        (x, x_stride): (&[f32], usize),
        panels: &[T],
        depth: usize,
        (out, out_stride): (&mut [f32], usize),
    ) {
        if n == 0 || depth == 0 {
            return;
        }
        let width = panels.len() / depth;
        assert!(panels.len().is_multiple_of(depth * LANES), "{} weights in panels of depth {depth}", panels.len());
        assert!(x.len() >= (n - 1) * x_stride + depth, "{} inputs for {n} rows of {depth}", x.len());
        assert!(out.len() >= (n - 1) * out_stride + width, "{} outputs for {n} rows of {width}", out.len());
        match self.0 {
            Tier::Portable => portable::gemm(n, (x, x_stride), panels, depth, (out, out_stride)),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(token) => avx2::dense::gemm(token, n, (x, x_stride), panels, depth, (out, out_stride)),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(token) => avx512::dense::gemm(token, n, (x, x_stride), panels, depth, (out, out_stride)),
        }
    }
}

/// That `weights` values are rows of `cols`, so are `x`, and that `out` has room for their products.
pub(super) fn check_dots(weights: usize, x: usize, cols: usize, (out, stride): (usize, usize)) {
    assert!(cols > 0 && weights.is_multiple_of(cols) && x.is_multiple_of(cols), "{weights} and {x} in rows of {cols}");
    let (rows, n) = (weights / cols, x / cols);
    assert!(n > 0 && out >= (n - 1) * stride + rows, "{out} outputs for {n} tokens, {rows} rows {stride} apart");
}
