//! Cutting the work of attention: rows into tiles of one sequence, and the keys of each tile into parts.

use std::cell::Cell;
use std::ops::Range;

use super::{AttentionShape, QueryRow};
use crate::cpu::isa::STEP_BLOCKS;
use crate::cpu::kv::BLOCK_TOKENS;
use crate::cpu::lines::Lines;

/// Query vectors (rows times heads of a group) that a task aims at: enough that bringing a key into form is shared by
/// many, few enough that their sums stay in the cache.
const TILE_QUERIES: usize = 128;

/// Tiles times KV heads from which the keys of a tile are not split, and the most blocks of a part, or nearly, where
/// they are.
const ENOUGH_TASKS: usize = 32;
const SPLIT_BLOCKS: usize = 64;

/// The part of a tile's keys that one task sees.
pub(super) struct Part {
    /// An index into the tiles.
    pub tile: usize,
    /// The blocks of the sequence.
    pub blocks: Range<usize>,
}

/// How the work of one call is cut, in memory that is kept from call to call.
#[derive(Default)]
pub(super) struct Parts {
    /// Rows of one sequence each.
    pub tiles: Vec<Range<usize>>,
    /// The first part of each tile, and the number of parts.
    pub first_part: Vec<usize>,
    /// The parts of the tiles, one tile after the other.
    pub parts: Vec<Part>,
    /// What the tasks have found, where a tile has several parts.
    pub results: Lines,
}

impl Parts {
    /// Cuts the rows and their keys. Depends on shapes and positions alone.
    pub fn cut(&mut self, shape: &AttentionShape, rows: &[QueryRow]) {
        let tile_rows = (TILE_QUERIES / shape.group()).max(1);
        self.tiles.clear();
        self.first_part.clear();
        self.parts.clear();
        let mut start = 0;
        for rows in rows.chunk_by(|a, b| a.sequence == b.sequence) {
            for rows in rows.chunks(tile_rows) {
                self.tiles.push(start..start + rows.len());
                start += rows.len();
            }
        }
        let enough = self.tiles.len() * shape.n_kv_heads >= ENOUGH_TASKS;
        for (tile, range) in self.tiles.iter().enumerate() {
            let rows = &rows[range.clone()];
            let first = rows.iter().map(|row| shape.first_visible(row.position)).min().unwrap_or(0) / BLOCK_TOKENS;
            let end = rows.iter().map(|row| row.position).max().unwrap_or(0) / BLOCK_TOKENS + 1;
            // Parts of one size, in whole steps.
            let n_parts = if enough { 1 } else { (end - first).div_ceil(SPLIT_BLOCKS) };
            let step = (end - first).div_ceil(n_parts).next_multiple_of(STEP_BLOCKS);
            self.first_part.push(self.parts.len());
            let parts = (first..end).step_by(step);
            self.parts.extend(parts.map(|block| Part { tile, blocks: block..end.min(block + step) }));
        }
        self.first_part.push(self.parts.len());
    }
}

/// Calls `run` with this thread's parts.
pub(super) fn with_parts(run: impl FnOnce(&mut Parts)) {
    thread_local!(static PARTS: Cell<Parts> = Cell::default());
    // Taken out meanwhile: should `run` panic, the next call starts with nothing.
    let mut parts = PARTS.take();
    run(&mut parts);
    PARTS.set(parts);
}
