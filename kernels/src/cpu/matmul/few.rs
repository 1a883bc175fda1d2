//! One panel of integer weights and few tokens: reading the weights is the limit. A panel takes about half a microsecond,
//! so a hundred cycles between two would be seen.

use super::Part;
use super::integer::QuantizedInputs;
use crate::cpu::crew::Tile;
use crate::quant::inputs::{InputTile, Kind};
use crate::quant::int4::Int4Ref;
use crate::quant::int8::Int8Ref;
use crate::quant::{Lanes, PANEL_ROWS};

/// Columns of a tile of inputs, at most: as many as the inner kernels keep sums of in registers.
pub(super) const COLUMNS: usize = 8;

impl Part<'_> {
    pub(super) fn int4_few(&self, m: &Int4Ref<'_>, inputs: &QuantizedInputs, tile: &mut Tile<'_, f32>) {
        let panel = [m.panel(self.rows(tile).start / PANEL_ROWS)];
        self.few(Kind::Int4, inputs, tile, |inputs, sums| self.isa.int4_product(&panel, inputs, sums));
    }

    pub(super) fn int8_few(&self, m: &Int8Ref<'_>, inputs: &QuantizedInputs, tile: &mut Tile<'_, f32>) {
        let panel = [m.panel(self.rows(tile).start / PANEL_ROWS)];
        self.few(Kind::Int8, inputs, tile, |inputs, sums| self.isa.int8_product(&panel, inputs, 0, sums));
    }

    /// Calls `product` with each tile of inputs and zeros for the sums of its tokens, and finishes the sums.
    fn few(
        &self,
        kind: Kind,
        inputs: &QuantizedInputs,
        tile: &mut Tile<'_, f32>,
        product: impl Fn(&InputTile, &mut [Lanes]),
    ) {
        for (first, inputs) in inputs.of_task(kind, tile.rows.clone()) {
            if inputs.width == 1 {
                let mut sums = [Lanes::default()];
                product(inputs, &mut sums);
                self.finish(tile, first, &mut sums);
                continue;
            }
            let mut sums = [Lanes::default(); COLUMNS];
            let sums = &mut sums[..inputs.width];
            product(inputs, sums);
            self.finish(tile, first, sums);
        }
    }
}
