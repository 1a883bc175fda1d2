//! The inside of a block of the KV cache.
//!
//! A block holds a few tokens of every layer of a layer group. Each layer and KV head has the block's keys in one piece
//! and its values in another, both as panels of one kind: sixteen lanes wide, two of the summed index side by side, as
//! `vdpbf16ps` takes them. One inner kernel multiplies with both:
//!
//! ```text
//! keys:    [head_dim / 2][16 tokens][2 values]                  scores of a query = q (1 x head_dim) * keys
//! values:  [head_dim / 16][16 / 2 tokens][16 values][2 tokens]  output += p (1 x 16) * each of these panels
//! ```
//! An odd head_dim is filled up with zeros for the keys, one that is no multiple of 16 for the values.
//!
//! Int8 keys and values have one f32 scale for each token and head: value = scale * code, where scale = max |x| / 127,
//! rounded to 17 significant bits, and code = x / scale, rounded to nearest even. So a value is exact in f32, and
//! storing values that were read back gives the same codes and scale. Where an x is not finite, all are NaN.

mod blocks;
mod panels;

use bytemuck::Pod;
use half::{bf16, f16};

use super::isa::PanelValue;
pub(super) use blocks::HeadOfBlocks;
pub use blocks::{CacheSlot, KvBlocks, append};

/// Tokens in a block.
pub const BLOCK_TOKENS: usize = 16;

/// Values of a head in one panel.
pub(super) const PANEL: usize = 16;

/// A slab is about so large, and holds so many blocks at most: enough that attention reads long runs, little next to a
/// model that has blocks of this size.
const SLAB_BYTES: usize = 8 << 20;
const MOST_SLAB_BLOCKS: usize = 16;

/// The bytes of a cache line.
const LINE: usize = 64;

/// What a cache stores a value as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    /// Exact.
    F32,
    /// IEEE binary16: 11 significant bits, up to 65504.
    F16,
    /// bfloat16: 8 significant bits, the range of f32.
    Bf16,
    /// 8-bit integers with a scale for each token and head.
    Int8,
}

impl KvType {
    /// The name that users give and read: `f32`, `f16`, `bf16` or `q8`.
    pub fn name(self) -> &'static str {
        match self {
            KvType::F32 => "f32",
            KvType::F16 => "f16",
            KvType::Bf16 => "bf16",
            KvType::Int8 => "q8",
        }
    }
}

/// The shape of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvLayout {
    /// Layers that share the block.
    pub n_layers: usize,
    /// Key and value heads of a layer.
    pub n_kv_heads: usize,
    /// Values of one head of one token.
    pub head_dim: usize,
    /// How they are stored.
    pub kv_type: KvType,
}

impl KvLayout {
    /// The bytes of a block; usize::MAX if they overflow, so that any plan of memory refuses them.
    pub fn block_bytes(&self) -> usize {
        self.n_layers.saturating_mul(self.n_kv_heads).saturating_mul(self.head_bytes().all())
    }

    /// The bytes of so many blocks: memory is taken for several at once.
    pub fn memory_bytes(&self, n_blocks: usize) -> usize {
        n_blocks.div_ceil(self.slab_blocks()).saturating_mul(self.slab_bytes())
    }

    /// How many blocks share a slab of memory.
    fn slab_blocks(&self) -> usize {
        1 << (SLAB_BYTES / self.block_bytes().max(1)).clamp(1, MOST_SLAB_BLOCKS).ilog2()
    }

    fn slab_bytes(&self) -> usize {
        self.n_layers.saturating_mul(self.n_kv_heads).saturating_mul(self.region_bytes())
    }

    /// The bytes of one head of one layer in a slab, in whole cache lines.
    fn region_bytes(&self) -> usize {
        self.head_bytes().all().saturating_mul(self.slab_blocks()).div_ceil(LINE).saturating_mul(LINE)
    }

    /// The bytes of one head of one layer in a block.
    fn head_bytes(&self) -> HeadBytes {
        let (bytes, scale_bytes) = match self.kv_type {
            KvType::F32 => (4, 0),
            KvType::F16 | KvType::Bf16 => (2, 0),
            KvType::Int8 => (1, size_of::<f32>()),
        };
        HeadBytes {
            keys: self.key_depth().saturating_mul(BLOCK_TOKENS * bytes),
            values: self.padded_head_dim().saturating_mul(BLOCK_TOKENS * bytes),
            scales: 2 * BLOCK_TOKENS * scale_bytes,
        }
    }

    /// head_dim filled up to whole pairs.
    pub(super) fn key_depth(&self) -> usize {
        self.head_dim.div_ceil(2).saturating_mul(2)
    }

    /// head_dim filled up to whole panels.
    pub(super) fn padded_head_dim(&self) -> usize {
        self.head_dim.div_ceil(PANEL).saturating_mul(PANEL)
    }
}

/// A type that blocks store.
pub(super) trait Stored: PanelValue + Pod {
    const KV_TYPE: KvType;
}

impl Stored for f32 {
    const KV_TYPE: KvType = KvType::F32;
}

impl Stored for f16 {
    const KV_TYPE: KvType = KvType::F16;
}

impl Stored for bf16 {
    const KV_TYPE: KvType = KvType::Bf16;
}

impl Stored for i8 {
    const KV_TYPE: KvType = KvType::Int8;
}

/// What one head of one layer takes in a block.
#[derive(Clone, Copy, Debug)]
struct HeadBytes {
    keys: usize,
    values: usize,
    /// Of each key, then of each value.
    scales: usize,
}

impl HeadBytes {
    fn all(self) -> usize {
        self.keys.saturating_add(self.values).saturating_add(self.scales)
    }
}
