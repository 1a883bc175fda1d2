//! Quantized weights: choosing the tier.

use super::elementwise::Loop;
#[cfg(target_arch = "x86_64")]
use super::{avx_vnni, avx2, avx512};
use crate::cpu::{Isa, Tier};
use crate::quant::inputs::{InputTile, Kind};
use crate::quant::int4::{self, Panel};
use crate::quant::product::{self, TILE_PANELS, TileQuad};
use crate::quant::{Lanes, int8};

impl Isa {
    /// The values of a panel's first inputs, `out[k][row]`, exactly as the format's specification gives them.
    pub(in crate::cpu) fn unpack_int8(self, steps: &[int8::Step], out: &mut [Lanes]) {
        match self.0 {
            Tier::Portable => int8::unpack(steps, out),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(token) => avx2::unpack::unpack_int8(token, steps, out),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(token) => avx512::unpack::unpack_int8(token, steps, out),
        }
    }

    /// The values of a panel's first inputs, `out[k][row]`, exactly as the format's specification gives them.
    pub(in crate::cpu) fn unpack_int4(self, row_scales: &Lanes, steps: &[int4::Step], out: &mut [Lanes]) {
        match self.0 {
            Tier::Portable => int4::unpack(row_scales, steps, out),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(token) => avx2::unpack::unpack_int4(token, row_scales, steps, out),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(token) => avx512::unpack::unpack_int4(token, row_scales, steps, out),
        }
    }

    /// See [`InputTile::fill`].
    pub(in crate::cpu) fn quantize(self, kind: Kind, x: &[f32], width: usize, tile: &mut InputTile) {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(token) => avx512::inputs::quantize(token, kind, x, width, tile),
            _ => self.compute(Fill { kind, x, width, tile }),
        }
    }

    /// See [`product::int4_product`].
    pub(in crate::cpu) fn int4_product(self, panels: &[Panel<'_>], inputs: &InputTile, sums: &mut [Lanes]) {
        assert_eq!(sums.len(), panels.len() * inputs.width, "sums of a product");
        match self.0 {
            Tier::Portable => product::int4_product(panels, inputs, sums),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(token) => match token.vnni() {
                Some(vnni) => avx_vnni::integer::int4_product(vnni, panels, inputs, sums),
                None => avx2::integer::int4_product(token, panels, inputs, sums),
            },
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(token) => avx512::int4::int4_product(token, panels, inputs, sums),
        }
    }

    /// See [`product::int8_product`].
    pub(in crate::cpu) fn int8_product(
        self,
        panels: &[&[int8::Step]],
        inputs: &InputTile,
        first: usize,
        sums: &mut [Lanes],
    ) {
        assert_eq!(sums.len(), panels.len() * inputs.width, "sums of a product");
        match self.0 {
            Tier::Portable => product::int8_product(panels, inputs, first, sums),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(token) => match token.vnni() {
                Some(vnni) => avx_vnni::integer::int8_product(vnni, panels, inputs, first, sums),
                None => avx2::integer::int8_product(token, panels, inputs, first, sums),
            },
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(token) => avx512::int8::int8_product(token, panels, inputs, first, sums),
        }
    }

    /// See [`product::expand`].
    pub(in crate::cpu) fn expand(
        self,
        row_scales: &Lanes,
        steps: &[int4::Step],
        index: usize,
        tile: &mut [TileQuad],
    ) -> Lanes {
        match self.0 {
            Tier::Portable => product::expand(row_scales, steps, index, tile),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(token) => avx2::integer::expand(token, row_scales, steps, index, tile),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(token) => avx512::int4::expand(token, row_scales, steps, index, tile),
        }
    }

    /// See [`product::expanded_product`].
    pub(in crate::cpu) fn expanded_product(
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
            Tier::Avx2(token) => match token.vnni() {
                Some(vnni) => avx_vnni::integer::expanded_product(vnni, tile, scales, inputs, block, sums),
                None => avx2::integer::expanded_product(token, tile, scales, inputs, block, sums),
            },
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(token) => avx512::int4::expanded_product(token, tile, scales, inputs, block, sums),
        }
    }
}

struct Fill<'a> {
    kind: Kind,
    x: &'a [f32],
    width: usize,
    tile: &'a mut InputTile,
}

impl Loop for Fill<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.tile.fill(self.kind, self.x, self.width);
    }
}

#[cfg(test)]
mod tests;
