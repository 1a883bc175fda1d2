//! The inner kernels: a few small functions, written once for each tier.
//!
//! Operations call them through [`Isa`], whose value is the proof that the tier's instructions exist. The
//! checks of shapes are here, so that a tier's file may rely on them.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_integer;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
mod portable;

use super::matrix::Element;
use super::{Isa, Tier, probe};
use crate::quant::inputs::{InputTile, Kind};
use crate::quant::int4::{self, Panel};
use crate::quant::product::{self, TILE_PANELS, TileQuad};
use crate::quant::{Lanes, int8};

/// Output features in the lanes of a panel: a panel is [depth][LANES].
pub(super) const LANES: usize = 16;

impl Isa {
    /// Asks for values that will be read soon. Changes nothing but time.
    pub(super) fn prefetch<T: Element>(self, values: &[T]) {
        match self.0 {
            Tier::Portable => portable::prefetch(values),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(_) | Tier::Avx512(_) => avx2::prefetch(values),
        }
    }

    /// `out[i] = values[i]`, exact.
    pub(super) fn widen<T: Element>(self, values: &[T], out: &mut [f32]) {
        assert_eq!(values.len(), out.len(), "values to widen");
        match self.0 {
            Tier::Portable => portable::widen(values, out),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(token) => avx2::widen(token, values, out),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(token) => avx2::widen(token.avx2(), values, out),
        }
    }

    /// The values of a panel's first inputs, `out[k][row]`, exactly as the format's specification gives them.
    pub(super) fn unpack_int8(self, steps: &[int8::Step], out: &mut [Lanes]) {
        match self.0 {
            Tier::Portable => int8::unpack(steps, out),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(token) => avx2::unpack_int8(token, steps, out),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(token) => avx2::unpack_int8(token.avx2(), steps, out),
        }
    }

    /// The values of a panel's first inputs, `out[k][row]`, exactly as the format's specification gives them.
    pub(super) fn unpack_int4(self, row_scales: &Lanes, steps: &[int4::Step], out: &mut [Lanes]) {
        match self.0 {
            Tier::Portable => int4::unpack(row_scales, steps, out),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(token) => avx2::unpack_int4(token, row_scales, steps, out),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(token) => avx2::unpack_int4(token.avx2(), row_scales, steps, out),
        }
    }

    /// See [`InputTile::fill`].
    pub(super) fn quantize(self, kind: Kind, x: &[f32], width: usize, tile: &mut InputTile) {
        match self.0 {
            Tier::Portable => tile.fill(kind, x, width),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(token) => avx2::quantize(token, kind, x, width, tile),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(token) => avx512::quantize(token, kind, x, width, tile),
        }
    }

    /// See [`probe::read`].
    pub(super) fn fold(self, data: &[u8]) -> u64 {
        match self.0 {
            Tier::Portable => probe::fold(data, |_| ()),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(token) => avx2::fold(token, data),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(token) => avx512::fold(token, data),
        }
    }

    /// See [`probe::multiply`].
    pub(super) fn multiply(self, operation: probe::Operation, rounds: usize) -> u64 {
        match self.0 {
            Tier::Portable => portable::multiply(operation, rounds),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(token) => avx2::multiply(token, operation, rounds),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(token) => avx512::multiply(token, operation, rounds),
        }
    }

    /// See [`product::int4_product`].
    pub(super) fn int4_product(self, panels: &[Panel<'_>], inputs: &InputTile, sums: &mut [Lanes]) {
        assert_eq!(sums.len(), panels.len() * inputs.width, "sums of a product");
        match self.0 {
            Tier::Portable => product::int4_product(panels, inputs, sums),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(token) => avx2_integer::int4_product(token, panels, inputs, sums),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(token) => avx512::int4_product(token, panels, inputs, sums),
        }
    }

    /// See [`product::int8_product`].
    pub(super) fn int8_product(self, panels: &[&[int8::Step]], inputs: &InputTile, first: usize, sums: &mut [Lanes]) {
        assert_eq!(sums.len(), panels.len() * inputs.width, "sums of a product");
        match self.0 {
            Tier::Portable => product::int8_product(panels, inputs, first, sums),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(token) => avx2_integer::int8_product(token, panels, inputs, first, sums),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(token) => avx512::int8_product(token, panels, inputs, first, sums),
        }
    }

    /// See [`product::expand`].
    pub(super) fn expand(self, row_scales: &Lanes, steps: &[int4::Step], index: usize, tile: &mut [TileQuad]) -> Lanes {
        match self.0 {
            Tier::Portable => product::expand(row_scales, steps, index, tile),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(token) => avx2_integer::expand(token, row_scales, steps, index, tile),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(token) => avx512::expand(token, row_scales, steps, index, tile),
        }
    }

    /// See [`product::expanded_product`].
    pub(super) fn expanded_product(
        self,
        tile: &[TileQuad],
        scales: &[Lanes; TILE_PANELS],
        inputs: &InputTile,
        block: usize,
        sums: &mut [Lanes],
    ) {
        assert_eq!(sums.len(), TILE_PANELS * inputs.width, "sums of a product");
        match self.0 {
            Tier::Portable => product::expanded_product(tile, scales, inputs, block, sums),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(token) => avx2_integer::expanded_product(token, tile, scales, inputs, block, sums),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(token) => avx512::expanded_product(token, tile, scales, inputs, block, sums),
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
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(token) => avx2::dot(token.avx2(), weights, x),
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
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(token) => avx2::pack(token.avx2(), rows, depth, panel),
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
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(token) => avx2::gemm(token.avx2(), n, (x, x_stride), panel, (out, out_stride)),
        }
    }
}

#[cfg(test)]
mod tests;
