//! Products in f32: dense weights, and the values of quantized ones.

use super::Part;
use crate::cpu::Isa;
use crate::cpu::crew::Tile;
use crate::cpu::isa::LANES;
use crate::cpu::matrix::{Dense, Element, MatrixRef};
use crate::quant::product::{TILE_PANELS, TILE_ROWS};
use crate::quant::{Lanes, STEP};

/// Input features of a panel, which with LANES outputs takes 16 KiB: half of a first-level cache. A multiple of
/// the steps of quantized weights.
const DEPTH: usize = 256;

/// Tokens that meet a row at once.
const AT_ONCE: usize = 4;

impl Part<'_> {
    /// The products of the tile's tokens `x`, [tokens, cols], with its rows.
    pub(super) fn exact(&self, isa: Isa, x: &[f32], cols: usize, tile: &mut Tile<'_, f32>) {
        let few = self.n_panels < TILE_PANELS;
        match &self.projection.weight {
            MatrixRef::F32(m) if few => self.few(isa, m, x, cols, tile),
            MatrixRef::F16(m) if few => self.few(isa, m, x, cols, tile),
            MatrixRef::Bf16(m) if few => self.few(isa, m, x, cols, tile),
            MatrixRef::F32(m) => self.unpacked(isa, x, cols, tile, |at, panel| pack(isa, m, at, panel)),
            MatrixRef::F16(m) => self.unpacked(isa, x, cols, tile, |at, panel| pack(isa, m, at, panel)),
            MatrixRef::Bf16(m) => self.unpacked(isa, x, cols, tile, |at, panel| pack(isa, m, at, panel)),
            MatrixRef::Int8(m) => self.unpacked(isa, x, cols, tile, |(row, _, start), panel| {
                isa.unpack_int8(&m.panel(row / LANES)[start / STEP..], panel);
            }),
            MatrixRef::Int4(m) => self.unpacked(isa, x, cols, tile, |(row, _, start), panel| {
                let whole = m.panel(row / LANES);
                isa.unpack_int4(&whole.row_scales, &whole.steps[start / STEP..], panel);
            }),
        }
    }

    /// Row by row, each front to back (one stream of memory a worker is the fastest).
    fn few<T: Element>(&self, isa: Isa, m: &Dense<'_, T>, x: &[f32], cols: usize, tile: &mut Tile<'_, f32>) {
        for (column, row) in self.rows(tile).enumerate() {
            let weights = m.row(row);
            for (i, x) in x.chunks(AT_ONCE * cols).enumerate() {
                let x_of = |t: usize| &x[t * cols..][..cols];
                let first = AT_ONCE * i;
                match x.len() / cols {
                    1 => self.dots(isa, weights, [x_of(0)], column, first, tile),
                    2 => self.dots(isa, weights, [x_of(0), x_of(1)], column, first, tile),
                    3 => self.dots(isa, weights, [x_of(0), x_of(1), x_of(2)], column, first, tile),
                    _ => self.dots::<T, AT_ONCE>(isa, weights, std::array::from_fn(x_of), column, first, tile),
                }
            }
        }
    }

    fn dots<T: Element, const N: usize>(
        &self,
        isa: Isa,
        weights: &[T],
        x: [&[f32]; N],
        column: usize,
        first_token: usize,
        tile: &mut Tile<'_, f32>,
    ) {
        for (t, sum) in isa.dot(weights, x).into_iter().enumerate() {
            self.put(tile, first_token + t, column, &[sum]);
        }
    }

    /// Panel by panel. `unpack` writes the values of up to LANES rows, `panel[k][row]`; it is told the first row, how
    /// many there are, and the first input.
    fn unpacked(
        &self,
        isa: Isa,
        x: &[f32],
        cols: usize,
        tile: &mut Tile<'_, f32>,
        unpack: impl Fn((usize, usize, usize), &mut [Lanes]),
    ) {
        let n_tokens = tile.rows.len();
        let rows = self.rows(tile);
        let mut sums = vec![0.0; n_tokens * TILE_ROWS];
        let mut panel = [Lanes::default(); DEPTH];
        for start in (0..cols).step_by(DEPTH) {
            let panel = &mut panel[..DEPTH.min(cols - start)];
            for (i, row) in rows.clone().step_by(LANES).enumerate() {
                unpack((row, LANES.min(rows.end - row), start), panel);
                let sums = (&mut sums[i * LANES..], TILE_ROWS);
                isa.gemm::<f32>(n_tokens, (&x[start..], cols), bytemuck::cast_slice(panel), sums);
            }
        }
        for (t, sums) in sums.chunks_exact(TILE_ROWS).enumerate() {
            self.put(tile, t, 0, sums);
        }
    }
}

/// A panel of up to LANES rows of a dense matrix.
fn pack<T: Element>(isa: Isa, m: &Dense<'_, T>, (row, used, start): (usize, usize, usize), panel: &mut [Lanes]) {
    let depth = panel.len();
    let mut rows = [0.0; LANES * DEPTH];
    let rows = &mut rows[..LANES * depth];
    for (r, out) in rows.chunks_exact_mut(depth).enumerate() {
        // Lanes beyond the last row repeat it; their sums are not looked at.
        isa.widen(&m.row(row + r.min(used - 1))[start..][..depth], out);
    }
    isa.pack(rows, depth, bytemuck::cast_slice_mut(panel));
}
