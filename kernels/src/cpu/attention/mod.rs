//! Causal attention over the blocks of a KV cache.
//!
//! Online softmax over steps of a few blocks, as in FlashAttention (Dao et al., arXiv:2205.14135). A task takes a
//! tile of rows of one sequence and one KV head; all query heads of that head share one pass over its keys and values,
//! so a cache is read once however many heads and rows look at it. Where tiles are too few to keep a machine busy
//! (decoding with a long context), their keys are split as well, and the parts are put together at the end. Whether
//! and where depends on shapes alone.

mod panels;
mod parts;
pub(super) mod softmax;
mod tile;

use super::crew::Crew;
use super::kv::{BLOCK_TOKENS, KvBlocks};
use super::matmul::Arithmetic;
use parts::{Parts, with_parts};
use tile::{Inner, with_scratch};

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

impl AttentionShape {
    /// The first key that is visible from `position`.
    fn first_visible(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }
}

/// Causal attention of each row over its own sequence's tokens up to and with its own position, less what the
/// window hides. Keys and values of all of them, also those of this batch, are in the cache already.
///
/// `q` is [n_rows, q_stride] with a row's heads in its first n_heads * head_dim values, `out` is
/// [n_rows, n_heads * head_dim]; `layer` counts inside the block. score = scale * q.k, then the soft cap, then
/// the mask. Rows of a sequence that follow each other are computed together. [`Arithmetic::Reduced`] rounds queries,
/// weights and values of large tiles to bf16 where the CPU has products of it, unless the cache is f32; with an f16 cache
/// queries are not rounded.
#[expect(clippy::too_many_arguments, reason = "the batch, the cache and the layer are the caller's three own things")]
pub fn attend(
    crew: &Crew<'_>,
    shape: &AttentionShape,
    layer: usize,
    q: &[f32],
    q_stride: usize,
    rows: &[QueryRow],
    tables: &[BlockTable<'_>],
    pool: &KvBlocks,
    arithmetic: Arithmetic,
    out: &mut [f32],
) {
    let (group, head_dim, row_len) = (shape.group(), shape.head_dim, shape.n_heads * shape.head_dim);
    check(shape, layer, rows, tables, pool);
    assert!(q_stride >= row_len, "rows of q are {q_stride} apart and hold {row_len} values");
    assert_eq!(q.len(), rows.len() * q_stride, "values of q");
    assert_eq!(out.len(), rows.len() * row_len, "values of the output");
    if rows.is_empty() {
        return;
    }
    let inner = Inner { isa: crew.isa(), arithmetic, shape, layer, q, q_stride, rows, tables, pool };
    let result_len = inner.result_len();
    with_parts(|parts| {
        parts.cut(shape, rows);
        let Parts { tiles, first_part, parts, results } = parts;
        if parts.len() == tiles.len() {
            crew.row_ranges(out, row_len, group * head_dim, tiles, |tile, mut out| {
                with_scratch(|scratch| {
                    let mut kept = std::mem::take(&mut scratch.results);
                    let results = kept.room(out.rows.len() * group * result_len);
                    inner.run(out.rows.clone(), &parts[tile].blocks, out.segment, scratch, results);
                    for (i, results) in results.chunks_exact(group * result_len).enumerate() {
                        let heads = out.row(i).chunks_exact_mut(head_dim);
                        for (result, out) in results.chunks_exact(result_len).zip(heads) {
                            softmax::finish(result, out);
                        }
                    }
                    scratch.results = kept;
                });
            });
            return;
        }
        let tile_rows = tiles.iter().map(|rows| rows.len()).max().unwrap_or(0);
        let part_len = tile_rows * group * result_len;
        let results: &mut [f32] = results.room(parts.len() * shape.n_kv_heads * part_len);
        crew.rows(results, part_len, |task, results| {
            // One head's parts follow each other, as its keys do in memory.
            let (part, kv_head) = (&parts[task % parts.len()], task / parts.len());
            let rows = tiles[part.tile].clone();
            let results = &mut results[..rows.len() * group * result_len];
            with_scratch(|scratch| inner.run(rows, &part.blocks, kv_head, scratch, results));
        });
        crew.row_ranges(out, row_len, group * head_dim, tiles, |tile, mut out| {
            for i in 0..out.rows.len() {
                let kv_head = out.segment;
                for (member, out) in out.row(i).chunks_exact_mut(head_dim).enumerate() {
                    let of_part = |part: usize| {
                        let start = (kv_head * parts.len() + part) * part_len + (i * group + member) * result_len;
                        &results[start..][..result_len]
                    };
                    softmax::combine((first_part[tile]..first_part[tile + 1]).map(of_part), out);
                }
            }
        });
    });
}

/// The preconditions of [`attend`] on everything but the float slices.
fn check(shape: &AttentionShape, layer: usize, rows: &[QueryRow], tables: &[BlockTable<'_>], pool: &KvBlocks) {
    let layout = pool.layout();
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
