//! Products in integers: quantized weights with quantized activations.

use std::cell::Cell;
use std::ops::Range;

use super::{Part, few};
use crate::cpu::crew::{Crew, Tile};
use crate::quant::inputs::{InputTile, Kind};
use crate::quant::int4::{Int4Ref, Panel};
use crate::quant::int8::{self, Int8Ref};
use crate::quant::product::{BLOCK_STEPS, TILE_PANELS, TileQuad};
use crate::quant::{Lanes, PANEL_ROWS, QUAD, STEP};

/// Up to this many tokens, weights that all are integers are multiplied as they are read, tile of inputs by tile of
/// inputs while a panel is in the caches: expanding them, or keeping the sums of several panels, would take longer.
pub(super) const FEW: usize = 20;

/// Columns of a tile of inputs when there are many tokens: as many as the inner kernels keep sums of in registers.
const MANY_COLUMNS: usize = 6;

/// Steps of int8 weights that meet all tokens while they are in the second-level cache.
const INT8_STEPS: usize = 32;

/// Columns of each tile of inputs (the last may have fewer): nearly equal, so that none is much smaller.
pub(super) fn tile_width(n_tokens: usize, few: bool) -> usize {
    let most = if few { few::COLUMNS } else { MANY_COLUMNS };
    n_tokens.div_ceil(n_tokens.div_ceil(most).max(1)).max(1)
}

thread_local! {
    /// Memory that is kept from product to product: new memory would cost a fault for every page.
    static INPUTS: Cell<[Vec<InputTile>; 2]> = const { Cell::new([Vec::new(), Vec::new()]) };
    static SUMS: Cell<Vec<Lanes>> = const { Cell::new(Vec::new()) };
}

/// The activations of all tokens, in each form that a group's weights want.
pub(super) struct QuantizedInputs {
    width: usize,
    n_tiles: usize,
    tiles: [Vec<InputTile>; 2],
}

impl QuantizedInputs {
    /// Quantizes `x`, [n_tokens, cols], in tiles of `width` tokens, for both kinds of weights, if they are there.
    pub(super) fn new(
        crew: &Crew<'_>,
        x: &[f32],
        n_tokens: usize,
        width: usize,
        cols: usize,
        wanted: impl Fn(Kind) -> bool,
    ) -> QuantizedInputs {
        let n_tiles = n_tokens.div_ceil(width);
        let isa = crew.isa();
        let mut tiles = INPUTS.take();
        for (kind, tiles) in [Kind::Int4, Kind::Int8].into_iter().zip(&mut tiles) {
            if !wanted(kind) {
                continue;
            }
            tiles.resize_with(tiles.len().max(n_tiles), InputTile::default);
            crew.rows(&mut tiles[..n_tiles], 1, |i, tile| {
                let tokens = i * width..n_tokens.min((i + 1) * width);
                let x = &x[tokens.start * cols..tokens.end * cols];
                isa.quantize(kind, x, tokens.len(), &mut tile[0]);
            });
        }
        QuantizedInputs { width, n_tiles, tiles }
    }

    /// The inputs of a task's tokens, tile by tile, each with the number of its first token within the task.
    pub(super) fn of_task(
        &self,
        kind: Kind,
        tokens: Range<usize>,
    ) -> impl Iterator<Item = (usize, &InputTile)> + Clone {
        let tiles = &self.tiles[usize::from(kind == Kind::Int8)][..self.n_tiles];
        let tiles = &tiles[tokens.start / self.width..tokens.end.div_ceil(self.width)];
        (0..).step_by(self.width).zip(tiles)
    }
}

impl Drop for QuantizedInputs {
    fn drop(&mut self) {
        INPUTS.set(std::mem::take(&mut self.tiles));
    }
}

/// Expanded weights in the caches, at the start of a cache line.
#[repr(align(64))]
struct Expanded([TileQuad; BLOCK_STEPS * STEP / QUAD]);

impl Part<'_> {
    pub(super) fn int4(&self, m: &Int4Ref<'_>, inputs: &QuantizedInputs, tile: &mut Tile<'_, f32>) {
        let panels = self.panels(tile).map(|index| m.panel(index));
        if self.n_panels == TILE_PANELS {
            return self.int4_many(&panels, inputs, tile);
        }
        let panels = &panels[..self.n_panels];
        self.with_sums(tile, |tokens, sums| {
            for (first, inputs) in inputs.of_task(Kind::Int4, tokens) {
                self.isa.int4_product(panels, inputs, &mut sums[first * panels.len()..][..inputs.width * panels.len()]);
            }
        });
    }

    pub(super) fn int8(&self, m: &Int8Ref<'_>, inputs: &QuantizedInputs, tile: &mut Tile<'_, f32>) {
        let panels = self.panels(tile).map(|index| m.panel(index));
        if self.n_panels == TILE_PANELS {
            let last = m.rows().div_ceil(PANEL_ROWS) - 1;
            let next = self.panels(tile).map(|index| m.panel(last.min(index + TILE_PANELS)));
            return self.int8_many(&panels, &next, inputs, tile);
        }
        let panels = &panels[..self.n_panels];
        self.with_sums(tile, |tokens, sums| {
            for (first, inputs) in inputs.of_task(Kind::Int8, tokens) {
                self.isa.int8_product(
                    panels,
                    inputs,
                    0,
                    &mut sums[first * panels.len()..][..inputs.width * panels.len()],
                );
            }
        });
    }

    /// Block by block, the weights are expanded to bytes that meet all tokens.
    pub(super) fn int4_many(
        &self,
        panels: &[Panel<'_>; TILE_PANELS],
        inputs: &QuantizedInputs,
        tile: &mut Tile<'_, f32>,
    ) {
        let mut all_sums = SUMS.take();
        make_room(&mut all_sums, tile.rows.len() * TILE_PANELS);
        let mut expanded = Expanded([[[0; 64]; TILE_PANELS]; BLOCK_STEPS * STEP / QUAD]);
        let mut scales = [Lanes::default(); TILE_PANELS];
        let n_steps = panels[0].steps.len();
        for (block, start) in (0..n_steps).step_by(BLOCK_STEPS).enumerate() {
            let steps = start..n_steps.min(start + BLOCK_STEPS);
            let expanded = &mut expanded.0[..steps.len() * STEP / QUAD];
            for (index, panel) in panels.iter().enumerate() {
                scales[index] = self.isa.expand(&panel.row_scales, &panel.steps[steps.clone()], index, expanded);
            }
            for (first, inputs) in inputs.of_task(Kind::Int4, tile.rows.clone()) {
                let sums = &mut all_sums[first * TILE_PANELS..][..inputs.width * TILE_PANELS];
                self.accumulate(tile, first, (start == 0, steps.end == n_steps), sums, |sums| {
                    self.isa.expanded_product(expanded, &scales, inputs, block, sums);
                });
            }
        }
        SUMS.set(all_sums);
    }

    /// Some steps at a time, the weights meet all tokens. `next` are the panels of the task that is likely to follow.
    pub(super) fn int8_many(
        &self,
        panels: &[&[int8::Step]; TILE_PANELS],
        next: &[&[int8::Step]; TILE_PANELS],
        inputs: &QuantizedInputs,
        tile: &mut Tile<'_, f32>,
    ) {
        let mut all_sums = SUMS.take();
        make_room(&mut all_sums, tile.rows.len() * TILE_PANELS);
        let n_steps = panels[0].len();
        for start in (0..n_steps).step_by(INT8_STEPS) {
            let end = n_steps.min(start + INT8_STEPS);
            let steps = panels.map(|panel| &panel[start..end]);
            let next = if end < n_steps { panels.map(|panel| &panel[end..]) } else { *next };
            let tiles = inputs.of_task(Kind::Int8, tile.rows.clone());
            let n_tiles = tiles.clone().count();
            for (i, (first, inputs)) in tiles.enumerate() {
                // The weights that come next are read meanwhile, a part with each tile.
                for next in next {
                    let next = next[..next.len().min(INT8_STEPS)].as_flattened();
                    self.isa.prefetch(&next[next.len() * i / n_tiles..next.len() * (i + 1) / n_tiles]);
                }
                let sums = &mut all_sums[first * TILE_PANELS..][..inputs.width * TILE_PANELS];
                self.accumulate(tile, first, (start == 0, end == n_steps), sums, |sums| {
                    self.isa.int8_product(&steps, inputs, start, sums);
                });
            }
        }
        SUMS.set(all_sums);
    }

    /// Lets `work` add to the sums of the tokens from `first` on, `sums[token][panel]`, which are zeros at the first call
    /// for them and are finished at the last.
    fn accumulate(
        &self,
        tile: &mut Tile<'_, f32>,
        first: usize,
        (is_first, is_last): (bool, bool),
        sums: &mut [Lanes],
        work: impl FnOnce(&mut [Lanes]),
    ) {
        if is_first {
            // As bytes, in as wide stores as the loads that follow.
            bytemuck::cast_slice_mut::<_, u8>(sums).fill(0);
        }
        if is_last {
            // Rows of the output lie far from each other. They come while the sums are made.
            (first..first + sums.len() / self.n_panels).for_each(|token| self.isa.prefetch(tile.row(token)));
        }
        work(sums);
        if is_last {
            self.finish(tile, first, sums);
        }
    }

    /// The panels of a task, `n_panels` of them. Behind the last row the last panel is repeated; those sums are not
    /// looked at.
    pub(super) fn panels(&self, tile: &Tile<'_, f32>) -> [usize; TILE_PANELS] {
        let rows = self.rows(tile);
        let (first, last) = (rows.start / PANEL_ROWS, (rows.end - 1) / PANEL_ROWS);
        std::array::from_fn(|i| last.min(first + i))
    }

    /// Calls `work` with the task's tokens and zeros for their sums, [token][panel], and finishes the sums.
    pub(super) fn with_sums(&self, tile: &mut Tile<'_, f32>, work: impl FnOnce(Range<usize>, &mut [Lanes])) {
        let mut sums = SUMS.take();
        sums.clear();
        sums.resize(tile.rows.len() * self.n_panels, Lanes::default());
        work(tile.rows.clone(), &mut sums);
        self.finish(tile, 0, &mut sums);
        SUMS.set(sums);
    }
}

/// Makes `sums` at least `n`, whatever they are.
fn make_room(sums: &mut Vec<Lanes>, n: usize) {
    sums.resize(sums.len().max(n), Lanes::default());
}
