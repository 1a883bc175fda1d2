//! Causal attention over the blocks of a KV cache.
//!
//! Online softmax (Milakov and Gimelshein, arXiv:1805.02867) over steps of a few blocks, as in FlashAttention
//! (Dao et al., arXiv:2205.14135). A task takes a tile of rows of one sequence and one KV head; all query heads
//! of that head share one pass over its keys and values, so a cache is read once however many heads and rows
//! look at it. Where tiles are too few to keep a machine busy (decoding with a long context), their keys are
//! split as well, and the parts are put together at the end. Whether and where depends on shapes alone.

use super::Isa;
use half::{bf16, f16};

use super::crew::Crew;
use super::isa::LANES;
use super::kv::{BLOCK_TOKENS, KvBlock, KvLayout, KvType, PANEL, Stored};
use super::math::{exp, tanh};
use super::matrix::Element;

/// The facts of one layer's attention.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; a divisor of `n_heads`.
    pub n_kv_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// Factor of a score.
    pub scale: f32,
    /// Scores become c * tanh(score / c).
    pub softcap: Option<f32>,
    /// Key j is visible from position i only if i - j is less.
    pub window: Option<usize>,
}

/// The blocks of one sequence: block i of `blocks` holds tokens from `(first_block + i) * BLOCK_TOKENS` on.
#[derive(Clone, Copy, Debug)]
pub struct BlockTable<'a> {
    /// Blocks of the sequence that lie before the first of `blocks` (a window has passed them).
    pub first_block: usize,
    /// Indices into the pool.
    pub blocks: &'a [u32],
}

/// Whose token a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueryRow {
    /// An index into the tables.
    pub sequence: usize,
    /// The token's position in its sequence.
    pub position: usize,
}

/// Query vectors (rows times heads of a group) that a task aims at: enough that reading and widening a key is
/// shared by many, few enough that their sums stay in the cache.
const TILE_QUERIES: usize = 64;

/// Up to this many queries widen a key or value each time they load it: they are one step of the inner kernel.
const UNWIDENED: usize = 6;

/// Blocks between two rescalings of the sums.
const STEP_BLOCKS: usize = 4;
const STEP: usize = STEP_BLOCKS * BLOCK_TOKENS;

/// Tiles times KV heads from which the keys of a tile are not split, and blocks of a part where they are.
const ENOUGH_TASKS: usize = 32;
const SPLIT_BLOCKS: usize = 32;

const _: () = assert!(BLOCK_TOKENS == LANES && PANEL == LANES, "a block's tokens and values are panels");

impl AttentionShape {
    /// The first key that is visible from `position`.
    fn first_visible(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }
}

/// A tile of rows and the part of their keys that one task sees.
struct Part {
    rows: std::ops::Range<usize>,
    blocks: std::ops::Range<usize>,
}

/// Causal attention of each row over its own sequence's tokens up to and with its own position, less what the
/// window hides. Keys and values of all of them, also those of this batch, are in the cache already.
///
/// `q` is [n_rows, q_stride] with a row's heads in its first n_heads * head_dim values, `out` is
/// [n_rows, n_heads * head_dim]; `layer` counts inside the block. score = scale * q.k, then the soft cap, then
/// the mask. Rows of a sequence that follow each other are computed together.
#[expect(clippy::too_many_arguments, reason = "the batch, the cache and the layer are the caller's three own things")]
pub fn attend(
    crew: &Crew<'_>,
    shape: &AttentionShape,
    layout: &KvLayout,
    layer: usize,
    q: &[f32],
    q_stride: usize,
    rows: &[QueryRow],
    tables: &[BlockTable<'_>],
    pool: &[KvBlock],
    out: &mut [f32],
) {
    let row_len = shape.n_heads * shape.head_dim;
    check(shape, layout, layer, rows, tables, pool);
    assert!(q_stride >= row_len, "rows of q are {q_stride} apart and hold {row_len} values");
    assert_eq!(q.len(), rows.len() * q_stride, "values of q");
    assert_eq!(out.len(), rows.len() * row_len, "values of the output");
    if rows.is_empty() {
        return;
    }
    let tile_rows = (TILE_QUERIES / shape.group()).max(1);
    let (parts, parts_of_row) = split(shape, rows, tile_rows);
    let inner = Inner { isa: crew.isa(), shape, layout, layer, q, q_stride, rows, tables, pool };

    // A part's result for each of its queries: the sums of values, then the largest score and the sum of weights.
    let result_len = layout.padded_head_dim() + 2;
    let part_len = tile_rows * shape.group() * result_len;
    let mut results = vec![0.0; parts.len() * shape.n_kv_heads * part_len];
    crew.rows(&mut results, part_len, |task, results| {
        let (part, kv_head) = (&parts[task / shape.n_kv_heads], task % shape.n_kv_heads);
        match layout.kv_type {
            KvType::F32 => inner.run::<f32>(part, kv_head, results, result_len),
            KvType::F16 => inner.run::<f16>(part, kv_head, results, result_len),
            KvType::Bf16 => inner.run::<bf16>(part, kv_head, results, result_len),
        }
    });
    crew.rows(out, row_len, |row, out| {
        for (head, out) in out.chunks_exact_mut(shape.head_dim).enumerate() {
            let (kv_head, member) = (head / shape.group(), head % shape.group());
            let results = parts_of_row[row].clone().map(|part| {
                let query = (row - parts[part].rows.start) * shape.group() + member;
                let start = (part * shape.n_kv_heads + kv_head) * part_len + query * result_len;
                &results[start..][..result_len]
            });
            combine(results, out);
        }
    });
}

/// The preconditions of [`attend`] on everything but the float slices.
fn check(
    shape: &AttentionShape,
    layout: &KvLayout,
    layer: usize,
    rows: &[QueryRow],
    tables: &[BlockTable<'_>],
    pool: &[KvBlock],
) {
    let AttentionShape { n_heads, n_kv_heads, head_dim, .. } = *shape;
    assert!(head_dim > 0 && n_kv_heads > 0, "{n_kv_heads} KV heads of {head_dim}");
    assert!(n_heads.is_multiple_of(n_kv_heads), "{n_heads} heads share {n_kv_heads} KV heads");
    assert_eq!((layout.n_kv_heads, layout.head_dim), (n_kv_heads, head_dim), "KV heads and head_dim of the cache");
    assert!(layer < layout.n_layers, "layer {layer} of a cache of {} layers", layout.n_layers);
    assert!(shape.window != Some(0), "a window of 0 hides every key");
    for table in tables {
        let known = table.blocks.iter().all(|block| (*block as usize) < pool.len());
        assert!(known, "a block table names a block beyond the pool's {}", pool.len());
    }
    for row in rows {
        let table = &tables[row.sequence];
        let held = table.first_block * BLOCK_TOKENS..(table.first_block + table.blocks.len()) * BLOCK_TOKENS;
        let (first, last) = (shape.first_visible(row.position), row.position);
        assert!(held.contains(&first) && held.contains(&last), "keys {first}..={last} of a cache of {held:?}");
    }
}

/// Cuts rows into tiles of one sequence, and the keys of each tile into parts. Also says which parts hold a
/// row's results.
fn split(shape: &AttentionShape, rows: &[QueryRow], tile_rows: usize) -> (Vec<Part>, Vec<std::ops::Range<usize>>) {
    let tiles = rows.chunk_by(|a, b| a.sequence == b.sequence).flat_map(|rows| rows.chunks(tile_rows));
    let tiles: Vec<&[QueryRow]> = tiles.collect();
    let enough = tiles.len() * shape.n_kv_heads >= ENOUGH_TASKS;
    let (mut parts, mut parts_of_row) = (Vec::new(), Vec::with_capacity(rows.len()));
    let mut start = 0;
    for tile in tiles {
        let first = tile.iter().map(|row| shape.first_visible(row.position)).min().unwrap_or(0) / BLOCK_TOKENS;
        let end = tile.iter().map(|row| row.position).max().unwrap_or(0) / BLOCK_TOKENS + 1;
        let rows = start..start + tile.len();
        let step = if enough { end - first } else { SPLIT_BLOCKS };
        let first_part = parts.len();
        for block in (first..end).step_by(step) {
            parts.push(Part { rows: rows.clone(), blocks: block..end.min(block + step) });
        }
        parts_of_row.resize(rows.end, first_part..parts.len());
        start = rows.end;
    }
    (parts, parts_of_row)
}

/// Puts the parts of one query together: sums and weights brought to one largest score.
fn combine<'a>(results: impl Iterator<Item = &'a [f32]> + Clone, out: &mut [f32]) {
    let tail = |result: &[f32]| (result[result.len() - 2], result[result.len() - 1]);
    let largest = results.clone().map(|result| tail(result).0).fold(f32::NEG_INFINITY, f32::max);
    let mut total = 0.0;
    out.fill(0.0);
    for result in results {
        let (part_largest, part_total) = tail(result);
        if part_largest == f32::NEG_INFINITY && part_total == 0.0 {
            continue; // The window hides the whole part.
        }
        let factor = exp(part_largest - largest);
        total += factor * part_total;
        out.iter_mut().zip(result).for_each(|(out, sum)| *out += factor * sum);
    }
    let inverse = 1.0 / total;
    out.iter_mut().for_each(|out| *out *= inverse);
}

/// What all tasks share.
struct Inner<'a> {
    isa: Isa,
    shape: &'a AttentionShape,
    layout: &'a KvLayout,
    layer: usize,
    q: &'a [f32],
    q_stride: usize,
    rows: &'a [QueryRow],
    tables: &'a [BlockTable<'a>],
    pool: &'a [KvBlock],
}

impl Inner<'_> {
    /// One part for one KV head. `results` are zeros.
    fn run<T: Stored>(&self, part: &Part, kv_head: usize, results: &mut [f32], result_len: usize) {
        let (group, head_dim) = (self.shape.group(), self.shape.head_dim);
        let rows = &self.rows[part.rows.clone()];
        let n = rows.len() * group;
        let results = &mut results[..n * result_len];
        let padded = result_len - 2;
        results.chunks_exact_mut(result_len).for_each(|result| result[padded] = f32::NEG_INFINITY);

        // The group's heads lie side by side in a row of q; here all queries lie one below the other.
        let mut queries = vec![0.0; n * head_dim];
        for (row, queries) in part.rows.clone().zip(queries.chunks_exact_mut(group * head_dim)) {
            queries.copy_from_slice(&self.q[row * self.q_stride + kv_head * group * head_dim..][..queries.len()]);
        }
        let table = &self.tables[rows[0].sequence];
        let last = rows.iter().map(|row| row.position).max().unwrap_or(0);
        let mut scores = vec![0.0; n * STEP];
        let mut wide = vec![0.0; head_dim.max(PANEL) * BLOCK_TOKENS];
        for start in part.blocks.clone().step_by(STEP_BLOCKS) {
            let blocks = start..part.blocks.end.min(start + STEP_BLOCKS);
            scores.fill(0.0);
            for (i, block) in blocks.clone().enumerate() {
                if block + 1 < part.blocks.end {
                    // Heads of one block lie far apart in memory, so the hardware does not guess the next.
                    let (keys, values) = self.head::<T>(table, block + 1, kv_head);
                    self.isa.prefetch(keys);
                    self.isa.prefetch(values);
                }
                let (keys, _) = self.head::<T>(table, block, kv_head);
                let scores = (&mut scores[i * BLOCK_TOKENS..], STEP);
                self.product(n, (&queries, head_dim), keys, &mut wide, scores);
            }
            let first_key = start * BLOCK_TOKENS;
            let pairs = scores.chunks_exact_mut(STEP).zip(results.chunks_exact_mut(result_len));
            for ((scores, result), query) in pairs.zip(0..) {
                self.weigh(rows[query / group].position, first_key, scores, result);
            }
            for (i, block) in blocks.enumerate() {
                // Slots behind the last token may hold anything, even what is not finite: they are not read.
                let used = (last + 1 - block * BLOCK_TOKENS).min(BLOCK_TOKENS);
                let (_, values) = self.head::<T>(table, block, kv_head);
                for (j, panel) in values.chunks_exact(BLOCK_TOKENS * PANEL).enumerate() {
                    let weights = (&scores[i * BLOCK_TOKENS..], STEP);
                    let sums = (&mut results[j * PANEL..], result_len);
                    self.product(n, weights, &panel[..used * PANEL], &mut wide, sums);
                }
            }
        }
    }

    /// The keys and values of one head in one block of a sequence.
    fn head<T: Stored>(&self, table: &BlockTable<'_>, block: usize, kv_head: usize) -> (&[T], &[T]) {
        let block = table.blocks[block - table.first_block] as usize;
        self.pool[block].head(self.layout, self.layer, kv_head)
    }

    /// Turns one query's scores of a step into weights relative to the largest score so far, and brings its sums
    /// to that scale. Weights of hidden keys are 0.
    fn weigh(&self, position: usize, first_key: usize, scores: &mut [f32], result: &mut [f32]) {
        let visible = |key: usize| key.saturating_sub(first_key).min(STEP);
        let range = visible(self.shape.first_visible(position))..visible(position + 1);
        scores[..range.start].fill(0.0);
        scores[range.end..].fill(0.0);
        let scores = &mut scores[range];
        if scores.is_empty() {
            return;
        }
        let scale = self.shape.scale;
        match self.shape.softcap {
            None => scores.iter_mut().for_each(|score| *score *= scale),
            Some(cap) => scores.iter_mut().for_each(|score| *score = cap * tanh(*score * scale / cap)),
        }
        let [sums @ .., largest, total] = result else {
            return;
        };
        let new_largest = scores.iter().copied().fold(*largest, f32::max);
        scores.iter_mut().for_each(|score| *score = exp(*score - new_largest));
        if new_largest != *largest {
            let factor = exp(*largest - new_largest);
            sums.iter_mut().for_each(|sum| *sum *= factor);
            *total *= factor;
            *largest = new_largest;
        }
        *total += scores.iter().sum::<f32>();
    }

    /// The matrix product of the inner kernel, for a panel of any type. Many queries want it widened once.
    fn product<T: Element>(
        &self,
        n: usize,
        x: (&[f32], usize),
        panel: &[T],
        wide: &mut [f32],
        out: (&mut [f32], usize),
    ) {
        if n <= UNWIDENED {
            self.isa.gemm(n, x, panel, out);
        } else {
            let wide = &mut wide[..panel.len()];
            self.isa.widen(panel, wide);
            self.isa.gemm(n, x, wide, out);
        }
    }
}
