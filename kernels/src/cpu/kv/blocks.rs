//! The blocks of a cache, in slabs of memory.
//!
//! Attention goes through one head of one layer of many blocks. Within a slab these lie side by side:
//!
//! ```text
//! slab:  [layer][KV head] [keys of each block][values of each block][scales of each block]
//! ```
//! So blocks whose numbers follow each other are one stream of keys and one of values, which the hardware reads ahead,
//! and slabs lie in huge pages where the system has them. Slabs are taken from the system one by one.

use std::ops::Range;

use memmap2::MmapMut;

use super::panels::Head;
use super::{BLOCK_TOKENS, HeadBytes, KvLayout, Stored};
use crate::cpu::crew::Crew;
use crate::error::KernelError;

/// A huge page. Smaller slabs lie in pages of the usual kind.
const HUGE_PAGE: usize = 2 << 20;

/// Blocks of one layout, numbered from 0.
#[derive(Debug)]
pub struct KvBlocks {
    layout: KvLayout,
    map: SlabMap,
    slabs: Vec<Slab>,
}

/// Where a token's keys and values go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSlot {
    /// The block's number.
    pub block: usize,
    /// The token's place in the block.
    pub slot: usize,
}

/// Where things lie in a slab.
#[derive(Clone, Copy, Debug)]
struct SlabMap {
    /// Blocks of a slab: 2^shift.
    shift: u32,
    /// What a head takes in each block.
    head: HeadBytes,
    /// What a head takes in a slab.
    region: usize,
}

impl SlabMap {
    /// The slab of a block, and the block's place in it.
    fn place(&self, block: usize) -> (usize, usize) {
        (block >> self.shift, block & ((1 << self.shift) - 1))
    }

    /// The pieces of a region that belong to block `index` of the slab: its keys, values and scales.
    fn pieces(&self, index: usize) -> [Range<usize>; 3] {
        let HeadBytes { keys, values, scales } = self.head;
        let mut start = 0;
        [keys, values, scales].map(|bytes| {
            let piece = start + index * bytes;
            start += bytes << self.shift;
            piece..piece + bytes
        })
    }
}

/// One head of one layer in all blocks.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct HeadOfBlocks<'a> {
    blocks: &'a KvBlocks,
    /// Its first byte in each slab.
    start: usize,
}

impl<'a> HeadOfBlocks<'a> {
    fn of(self, block: usize) -> Head<&'a [u8]> {
        let map = &self.blocks.map;
        let (slab, index) = map.place(block);
        let region = &self.blocks.slabs[slab].bytes()[self.start..][..map.region];
        let [keys, values, scales] = map.pieces(index).map(|piece| &region[piece]);
        Head { keys, values, scales }
    }

    /// The key panel and the value panels of a block.
    pub fn panels<T: Stored>(self, block: usize) -> (&'a [T], &'a [T]) {
        assert_eq!(self.blocks.layout.kv_type, T::KV_TYPE, "the type of the cache");
        let head = self.of(block);
        (bytemuck::cast_slice(head.keys), bytemuck::cast_slice(head.values))
    }

    /// The scales of a block's keys and values, one for each token, if they need some.
    pub fn scales(self, block: usize) -> (&'a [f32], &'a [f32]) {
        bytemuck::cast_slice(self.of(block).scales).split_at(BLOCK_TOKENS)
    }
}

impl KvBlocks {
    /// No blocks yet.
    pub fn new(layout: KvLayout) -> KvBlocks {
        let map =
            SlabMap { shift: layout.slab_blocks().ilog2(), head: layout.head_bytes(), region: layout.region_bytes() };
        KvBlocks { layout, map, slabs: Vec::new() }
    }

    /// What they hold.
    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// How many there is memory for.
    pub fn len(&self) -> usize {
        self.slabs.len() << self.map.shift
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.slabs.is_empty()
    }

    /// Makes them at least `n`. New ones hold zeros.
    ///
    /// # Errors
    /// [`KernelError::Memory`] if the system does not give it; the blocks stay as they are.
    pub fn grow(&mut self, n: usize) -> Result<(), KernelError> {
        while self.len() < n {
            self.slabs.push(Slab::new(self.layout.slab_bytes())?);
        }
        Ok(())
    }

    /// Stores one token of one layer, rounded to nearest even. `key` and `value` are [n_kv_heads, head_dim].
    pub fn write(&mut self, at: CacheSlot, layer: usize, key: &[f32], value: &[f32]) {
        self.check(at, layer, key.len(), value.len());
        let (map, KvLayout { head_dim, kv_type, .. }) = (self.map, self.layout);
        let (start, (slab, index)) = (self.region(layer, 0), map.place(at.block));
        let slab = &mut self.slabs[slab].bytes_mut()[start..];
        let heads = key.chunks_exact(head_dim).zip(value.chunks_exact(head_dim));
        for (region, (key, value)) in slab.chunks_exact_mut(map.region).zip(heads) {
            write_head(&map, region, index, |mut head| head.write(kv_type, at.slot, key, value));
        }
    }

    /// Reads back what was stored, as f32: for saving a cache in a plain layout.
    pub fn read(&self, at: CacheSlot, layer: usize, key: &mut [f32], value: &mut [f32]) {
        self.check(at, layer, key.len(), value.len());
        let KvLayout { head_dim, kv_type, .. } = self.layout;
        let heads = key.chunks_exact_mut(head_dim).zip(value.chunks_exact_mut(head_dim));
        for (head, (key, value)) in heads.enumerate() {
            self.head(layer, head).of(at.block).read(kv_type, at.slot, key, value);
        }
    }

    /// Makes block `to` equal to block `from`.
    pub fn copy(&mut self, from: usize, to: usize) {
        assert!(from < self.len() && to < self.len(), "blocks {from} and {to} of {}", self.len());
        let map = self.map;
        let ((from_slab, from), (to_slab, to)) = (map.place(from), map.place(to));
        for region in 0..self.layout.n_layers * self.layout.n_kv_heads {
            let start = region * map.region;
            for (from, to) in map.pieces(from).into_iter().zip(map.pieces(to)) {
                let (from, to) = (start + from.start..start + from.end, start + to.start..start + to.end);
                match self.slabs.get_disjoint_mut([from_slab, to_slab]) {
                    Ok([from_slab, to_slab]) => to_slab.bytes_mut()[to].copy_from_slice(&from_slab.bytes()[from]),
                    Err(_) => self.slabs[to_slab].bytes_mut().copy_within(from, to.start),
                }
            }
        }
    }

    fn check(&self, at: CacheSlot, layer: usize, key: usize, value: usize) {
        let KvLayout { n_layers, n_kv_heads, head_dim, .. } = self.layout;
        assert!(at.block < self.len(), "block {} of {}", at.block, self.len());
        assert!(layer < n_layers, "layer {layer} of a cache of {n_layers} layers");
        assert!(at.slot < BLOCK_TOKENS, "slot {} of a block of {BLOCK_TOKENS}", at.slot);
        let expected = n_kv_heads * head_dim;
        assert_eq!((key, value), (expected, expected), "lengths of a key and a value");
    }

    /// Where one head of one layer begins in a slab.
    fn region(&self, layer: usize, head: usize) -> usize {
        (layer * self.layout.n_kv_heads + head) * self.map.region
    }

    /// One head of one layer, for attention.
    pub(in crate::cpu) fn head(&self, layer: usize, head: usize) -> HeadOfBlocks<'_> {
        HeadOfBlocks { blocks: self, start: self.region(layer, head) }
    }
}

/// Calls `write` with the pieces of a region that belong to one of its blocks.
fn write_head(map: &SlabMap, region: &mut [u8], index: usize, write: impl FnOnce(Head<&mut [u8]>)) {
    match region.get_disjoint_mut(map.pieces(index)) {
        Ok([keys, values, scales]) => write(Head { keys, values, scales }),
        Err(error) => panic!("block {index} of a slab of {}: {error}", 1 << map.shift),
    }
}

/// Stores the keys and values of a batch's tokens in one layer: row i of `rows` (they start `stride` apart) has its
/// key, and behind it its value, both [n_kv_heads, head_dim], from `offset` on, and goes to `slots[i]`.
pub fn append(
    crew: &Crew<'_>,
    layer: usize,
    slots: &[CacheSlot],
    rows: &[f32],
    stride: usize,
    offset: usize,
    blocks: &mut KvBlocks,
) {
    let KvLayout { n_layers, n_kv_heads, head_dim, kv_type } = blocks.layout;
    let width = n_kv_heads * head_dim;
    assert!(offset + 2 * width <= stride, "a key and a value of {width} from {offset} in rows of {stride}");
    assert_eq!(rows.len(), slots.len() * stride, "values of {} rows", slots.len());
    assert!(layer < n_layers, "layer {layer} of a cache of {n_layers} layers");
    let (map, first, len) = (blocks.map, blocks.region(layer, 0), blocks.len());
    let outside = slots.iter().find(|at| at.block >= len || at.slot >= BLOCK_TOKENS);
    assert!(outside.is_none(), "{outside:?} of {len} blocks");
    // One head of one slab is one task's, so that each task has its bytes for itself.
    let mut order: Vec<usize> = (0..slots.len()).collect();
    order.sort_by_key(|&row| slots[row].block);
    let slab_of = |row: &usize| map.place(slots[*row].block).0;
    let mut tasks = Vec::new();
    let mut slabs = blocks.slabs.iter_mut().enumerate();
    for rows in order.chunk_by(|a, b| slab_of(a) == slab_of(b)) {
        let Some((_, slab)) = slabs.find(|(slab, _)| *slab == slab_of(&rows[0])) else { continue };
        let regions = slab.bytes_mut()[first..].chunks_exact_mut(map.region).take(n_kv_heads);
        tasks.extend(regions.enumerate().map(|(head, region)| (head, region, rows)));
    }
    crew.rows(&mut tasks, 1, |_, task| {
        for (head, region, tokens) in task {
            for &row in *tokens {
                let (keys, values) = rows[row * stride + offset..][..2 * width].split_at(width);
                let (key, value) = (&keys[*head * head_dim..][..head_dim], &values[*head * head_dim..][..head_dim]);
                let at = slots[row];
                write_head(&map, region, map.place(at.block).1, |mut head| head.write(kv_type, at.slot, key, value));
            }
        }
    });
}

/// Memory of some blocks.
#[derive(Debug)]
struct Slab {
    memory: MmapMut,
    /// Where the first block begins.
    start: usize,
}

impl Slab {
    fn new(bytes: usize) -> Result<Slab, KernelError> {
        let is_huge = bytes >= HUGE_PAGE;
        let memory = MmapMut::map_anon(bytes.saturating_add(if is_huge { HUGE_PAGE } else { 0 }))
            .map_err(|error| KernelError::Memory { bytes, reason: error.to_string() })?;
        if !is_huge {
            return Ok(Slab { memory, start: 0 });
        }
        // Advice that is not taken gives small pages.
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::HugePage);
        let start = memory.as_ptr().align_offset(HUGE_PAGE);
        Ok(Slab { memory, start })
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..]
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
