//! Products of bf16 weights with activations that are rounded to bf16, where an instruction multiplies them two at a
//! time.

use std::cell::Cell;
use std::ops::Range;

use half::bf16;

use super::Part;
use crate::cpu::crew::{Crew, Tile};
use crate::cpu::isa::bf16::{Bf16Isa, PairLanes};
use crate::cpu::matrix::Dense;
use crate::quant::PANEL_ROWS;
use crate::quant::product::TILE_PANELS;

/// Up to this many tokens are not worth rounding: reading the weights takes longer than multiplying them as f32.
pub(super) const EXACT: usize = 4;

/// Up to this many tokens, weights are multiplied as they are read.
const FEW: usize = 16;

/// Pairs of inputs of the panels of a tile, which take 32 KiB: two thirds of a first-level cache.
const DEPTH: usize = 128;

/// Interleaved weights in the caches, at the start of a cache line.
#[repr(align(64))]
struct Panels([PairLanes; TILE_PANELS * DEPTH]);

thread_local! {
    /// Memory that is kept from product to product: new memory would cost a fault for every page.
    static INPUTS: Cell<Vec<u32>> = const { Cell::new(Vec::new()) };
}

/// The activations of all tokens, rounded, [block of inputs][token][pair].
pub(super) struct RoundedInputs {
    isa: Bf16Isa,
    n_tokens: usize,
    /// Pairs of a block. The last block is as long, with zeros.
    depth: usize,
    pairs: Vec<u32>,
}

impl RoundedInputs {
    /// Rounds `x`, [n_tokens, cols].
    pub(super) fn new(crew: &Crew<'_>, isa: Bf16Isa, x: &[f32], n_tokens: usize, cols: usize) -> RoundedInputs {
        let few = n_tokens <= FEW;
        let depth = if few { cols.div_ceil(2).next_multiple_of(PANEL_ROWS) } else { DEPTH };
        let n_blocks = cols.div_ceil(2 * depth);
        let mut pairs = INPUTS.take();
        pairs.resize(n_blocks * n_tokens * depth, 0);
        let at_once = if few { 1 } else { n_tokens };
        crew.rows(&mut pairs, at_once * depth, |task, pairs| {
            let (block, first) = (task * at_once / n_tokens, task * at_once % n_tokens);
            let inputs = 2 * depth * block..cols.min(2 * depth * (block + 1));
            for (x, pairs) in x.chunks_exact(cols).skip(first).zip(pairs.chunks_exact_mut(depth)) {
                isa.narrow(&x[inputs.clone()], pairs);
            }
        });
        RoundedInputs { isa, n_tokens, depth, pairs }
    }

    /// A block of the inputs of some tokens.
    fn block(&self, block: usize, tokens: &Range<usize>) -> &[u32] {
        let first = block * self.n_tokens;
        &self.pairs[(first + tokens.start) * self.depth..(first + tokens.end) * self.depth]
    }
}

impl Drop for RoundedInputs {
    fn drop(&mut self) {
        INPUTS.set(std::mem::take(&mut self.pairs));
    }
}

impl Part<'_> {
    /// The products of the tile's tokens with its rows.
    pub(super) fn bf16(&self, m: &Dense<'_, bf16>, inputs: &RoundedInputs, cols: usize, tile: &mut Tile<'_, f32>) {
        let (isa, rows, stride) = (inputs.isa, self.rows(tile), self.n_panels * PANEL_ROWS);
        let first_rows = self.panels(tile).map(|panel| panel * PANEL_ROWS);
        self.with_sums(tile, |tokens, sums| {
            let sums: &mut [f32] = bytemuck::cast_slice_mut(sums);
            if inputs.n_tokens <= FEW {
                isa.dots(m.rows(rows), cols, (inputs.block(0, &tokens), inputs.depth), (sums, stride));
                return;
            }
            let mut panels = Panels([PairLanes::default(); TILE_PANELS * DEPTH]);
            for (block, start) in (0..cols).step_by(2 * DEPTH).enumerate() {
                let width = cols.min(start + 2 * DEPTH) - start;
                let depth = width.div_ceil(2);
                let panels = &mut panels.0[..self.n_panels * depth];
                for (panel, first) in panels.chunks_exact_mut(depth).zip(first_rows) {
                    // Lanes beyond the last row repeat it; their sums are not looked at.
                    let row = |r: usize| &m.row((first + r).min(rows.end - 1))[start..][..width];
                    isa.interleave(std::array::from_fn(row), panel);
                }
                let x = (inputs.block(block, &tokens), inputs.depth);
                isa.gemm(tokens.len(), x, panels, depth, (&mut *sums, stride));
            }
        });
    }
}
