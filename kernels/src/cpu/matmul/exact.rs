//! Products in f32: dense weights, and the values of quantized ones.

use super::Part;
use crate::cpu::crew::Tile;
use crate::cpu::matrix::{Dense, Element, MatrixRef};
use crate::quant::product::TILE_PANELS;
use crate::quant::{Lanes, PANEL_ROWS, STEP};

/// Up to this many tokens, dense weights are multiplied as they are read.
const FEW: usize = 16;

/// Input features of the panels of a tile, which take 32 KiB: two thirds of a first-level cache. A multiple of the
/// steps of quantized weights.
const DEPTH: usize = 128;

impl Part<'_> {
    /// The products of the tile's tokens `x`, [tokens, cols], with the rows of `weight` that it covers.
    pub(super) fn exact(&self, weight: &MatrixRef<'_>, x: &[f32], cols: usize, tile: &mut Tile<'_, f32>) {
        match weight {
            MatrixRef::F32(m) => self.dense(m, x, cols, tile),
            MatrixRef::F16(m) => self.dense(m, x, cols, tile),
            MatrixRef::Bf16(m) => self.dense(m, x, cols, tile),
            MatrixRef::Int8(m) => self.unpacked(x, cols, tile, |row, start, panel| {
                self.isa.unpack_int8(&m.panel(row / PANEL_ROWS)[start / STEP..], panel);
            }),
            MatrixRef::Int4(m) => self.unpacked(x, cols, tile, |row, start, panel| {
                let whole = m.panel(row / PANEL_ROWS);
                self.isa.unpack_int4(&whole.row_scales, &whole.steps[start / STEP..], panel);
            }),
        }
    }

    fn dense<T: Element>(&self, m: &Dense<'_, T>, x: &[f32], cols: usize, tile: &mut Tile<'_, f32>) {
        let rows = self.rows(tile);
        if tile.rows.len() <= FEW {
            return self.with_sums(tile, |_, sums| {
                self.isa.dots(m.rows(rows), x, cols, (bytemuck::cast_slice_mut(sums), self.n_panels * PANEL_ROWS));
            });
        }
        self.unpacked(x, cols, tile, |row, start, panel| {
            // Lanes beyond the last row repeat it; their sums are not looked at.
            let row_of = |r: usize| &m.row((row + r).min(rows.end - 1))[start..][..panel.len()];
            self.isa.pack(std::array::from_fn(row_of), panel);
        });
    }

    /// Panels of some inputs at a time. `unpack` writes the values of a panel, `panel[k][row]`; it is told the first
    /// row and the first input.
    fn unpacked(&self, x: &[f32], cols: usize, tile: &mut Tile<'_, f32>, unpack: impl Fn(usize, usize, &mut [Lanes])) {
        let first_rows = self.panels(tile).map(|panel| panel * PANEL_ROWS);
        self.with_sums(tile, |tokens, sums| {
            let sums: &mut [f32] = bytemuck::cast_slice_mut(sums);
            let mut panels = [Lanes::default(); TILE_PANELS * DEPTH];
            for start in (0..cols).step_by(DEPTH) {
                let depth = DEPTH.min(cols - start);
                let panels = &mut panels[..self.n_panels * depth];
                for (panel, row) in panels.chunks_exact_mut(depth).zip(first_rows) {
                    unpack(row, start, panel);
                }
                let panels: &[f32] = bytemuck::cast_slice(panels);
                let sums = (&mut *sums, self.n_panels * PANEL_ROWS);
                self.isa.gemm_panels(tokens.len(), (&x[start..], cols), panels, depth, sums);
            }
        });
    }
}
