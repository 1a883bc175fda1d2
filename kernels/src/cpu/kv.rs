//! The inside of a block of the KV cache.
//!
//! A block holds a few tokens of every layer of a layer group. Within it, each layer and KV head has its keys
//! and then its values in one piece, both as panels of the matrix kernel, so that attention runs on the same
//! inner kernel as projections:
//!
//! ```text
//! keys:    [head_dim][16 tokens]                       scores of a query = q (1 x head_dim) * keys
//! values:  [head_dim / 16][16 tokens][16 values]       output += p (1 x 16) * each of these panels
//! ```
//! A head_dim that is not a multiple of 16 has its last panel of values filled up with zeros.

use half::{bf16, f16};

use super::matrix::Element;

/// Tokens in a block.
pub const BLOCK_TOKENS: usize = 16;

/// Values of a head in one panel.
pub(super) const PANEL: usize = 16;

/// What a cache stores a value as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    /// Exact.
    F32,
    /// IEEE binary16: 11 significant bits, up to 65504.
    F16,
    /// bfloat16: 8 significant bits, the range of f32.
    Bf16,
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
        let size = match self.kv_type {
            KvType::F32 => 4,
            KvType::F16 | KvType::Bf16 => 2,
        };
        self.values().saturating_mul(size)
    }

    fn values(&self) -> usize {
        self.n_layers.saturating_mul(self.n_kv_heads).saturating_mul(self.head_values())
    }

    /// The values of one head's tokens: keys, then value panels.
    fn head_values(&self) -> usize {
        self.key_values().saturating_add(self.padded_head_dim().saturating_mul(BLOCK_TOKENS))
    }

    fn key_values(&self) -> usize {
        self.head_dim.saturating_mul(BLOCK_TOKENS)
    }

    /// head_dim filled up to whole panels.
    pub(super) fn padded_head_dim(&self) -> usize {
        self.head_dim.div_ceil(PANEL).saturating_mul(PANEL)
    }
}

/// [`BLOCK_TOKENS`] tokens of all layers of one layer group, keys and values. Starts as zeros.
#[derive(Debug)]
pub struct KvBlock(Storage);

#[derive(Debug)]
enum Storage {
    F32(Box<[f32]>),
    F16(Box<[f16]>),
    Bf16(Box<[bf16]>),
}

/// A type that blocks store.
pub(super) trait Stored: Element {
    /// All values of a block, which must be of this type.
    fn all(block: &KvBlock) -> &[Self];
}

/// A block was made for another layout than it is used with.
const OTHER_TYPE: &str = "a cache block holds another type than its layout says";

impl Stored for f32 {
    fn all(block: &KvBlock) -> &[f32] {
        match &block.0 {
            Storage::F32(all) => all,
            _ => panic!("{OTHER_TYPE}"),
        }
    }
}

impl Stored for f16 {
    fn all(block: &KvBlock) -> &[f16] {
        match &block.0 {
            Storage::F16(all) => all,
            _ => panic!("{OTHER_TYPE}"),
        }
    }
}

impl Stored for bf16 {
    fn all(block: &KvBlock) -> &[bf16] {
        match &block.0 {
            Storage::Bf16(all) => all,
            _ => panic!("{OTHER_TYPE}"),
        }
    }
}

impl KvBlock {
    /// A block of zeros.
    pub fn new(layout: &KvLayout) -> KvBlock {
        let n = layout.values();
        KvBlock(match layout.kv_type {
            KvType::F32 => Storage::F32(vec![0.0; n].into()),
            KvType::F16 => Storage::F16(vec![f16::ZERO; n].into()),
            KvType::Bf16 => Storage::Bf16(vec![bf16::ZERO; n].into()),
        })
    }

    /// Stores one token of one layer in `slot`, rounded to nearest even. `key` and `value` are [n_kv_heads, head_dim].
    pub fn write(&mut self, layout: &KvLayout, layer: usize, slot: usize, key: &[f32], value: &[f32]) {
        self.check(layout, layer, slot, key.len(), value.len());
        match &mut self.0 {
            Storage::F32(all) => write(all, layout, layer, slot, key, value),
            Storage::F16(all) => write(all, layout, layer, slot, key, value),
            Storage::Bf16(all) => write(all, layout, layer, slot, key, value),
        }
    }

    /// Reads back what [`KvBlock::write`] stored, as f32: for saving a cache in a plain layout.
    pub fn read(&self, layout: &KvLayout, layer: usize, slot: usize, key: &mut [f32], value: &mut [f32]) {
        self.check(layout, layer, slot, key.len(), value.len());
        match &self.0 {
            Storage::F32(all) => read(all, layout, layer, slot, key, value),
            Storage::F16(all) => read(all, layout, layer, slot, key, value),
            Storage::Bf16(all) => read(all, layout, layer, slot, key, value),
        }
    }

    /// Makes this block equal to `other`, which has the same layout.
    pub fn copy_from(&mut self, other: &KvBlock) {
        match (&mut self.0, &other.0) {
            (Storage::F32(to), Storage::F32(from)) => to.copy_from_slice(from),
            (Storage::F16(to), Storage::F16(from)) => to.copy_from_slice(from),
            (Storage::Bf16(to), Storage::Bf16(from)) => to.copy_from_slice(from),
            _ => panic!("{OTHER_TYPE}"),
        }
    }

    fn check(&self, layout: &KvLayout, layer: usize, slot: usize, key: usize, value: usize) {
        assert!(layer < layout.n_layers, "layer {layer} of a cache of {} layers", layout.n_layers);
        assert!(slot < BLOCK_TOKENS, "slot {slot} of a block of {BLOCK_TOKENS}");
        let expected = layout.n_kv_heads * layout.head_dim;
        assert_eq!((key, value), (expected, expected), "lengths of a key and a value");
    }

    /// The keys and the value panels of one head, for attention.
    pub(super) fn head<T: Stored>(&self, layout: &KvLayout, layer: usize, head: usize) -> (&[T], &[T]) {
        let n = layout.head_values();
        T::all(self)[(layer * layout.n_kv_heads + head) * n..][..n].split_at(layout.key_values())
    }
}

/// Where value `d` of a key and of a value lie among the values of a head.
fn places(layout: &KvLayout, slot: usize, d: usize) -> (usize, usize) {
    let value = d / PANEL * PANEL * BLOCK_TOKENS + slot * PANEL + d % PANEL;
    (d * BLOCK_TOKENS + slot, layout.key_values() + value)
}

fn write<T: Element>(all: &mut [T], layout: &KvLayout, layer: usize, slot: usize, key: &[f32], value: &[f32]) {
    let n = layout.head_values();
    let heads = all[layer * layout.n_kv_heads * n..].chunks_exact_mut(n);
    let inputs = key.chunks_exact(layout.head_dim).zip(value.chunks_exact(layout.head_dim));
    for (head, (key, value)) in heads.zip(inputs) {
        for (d, (key, value)) in key.iter().zip(value).enumerate() {
            let (key_at, value_at) = places(layout, slot, d);
            head[key_at] = T::narrow(*key);
            head[value_at] = T::narrow(*value);
        }
    }
}

fn read<T: Element>(all: &[T], layout: &KvLayout, layer: usize, slot: usize, key: &mut [f32], value: &mut [f32]) {
    let n = layout.head_values();
    let heads = all[layer * layout.n_kv_heads * n..].chunks_exact(n);
    let outputs = key.chunks_exact_mut(layout.head_dim).zip(value.chunks_exact_mut(layout.head_dim));
    for (head, (key, value)) in heads.zip(outputs) {
        for (d, (key, value)) in key.iter_mut().zip(value).enumerate() {
            let (key_at, value_at) = places(layout, slot, d);
            *key = head[key_at].widen();
            *value = head[value_at].widen();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_back_rounded_to_nearest_even() {
        for (kv_type, n_kv_heads, head_dim) in [
            (KvType::F32, 1, 2),
            (KvType::F16, 3, 6),
            (KvType::Bf16, 2, 16),
            (KvType::F32, 2, 20),
            (KvType::F16, 1, 128),
        ] {
            let layout = KvLayout { n_layers: 2, n_kv_heads, head_dim, kv_type };
            let n = n_kv_heads * head_dim;
            let number = |seed: usize| (seed as f32 * 0.7).sin() * 3.0;
            let (mut block, mut copy) = (KvBlock::new(&layout), KvBlock::new(&layout));
            let token = |layer: usize, slot: usize, part: usize| -> Vec<f32> {
                (0..n).map(|i| number(((layer * 16 + slot) * 2 + part) * n + i)).collect()
            };
            let all = || (0..2).flat_map(|layer| (0..BLOCK_TOKENS).map(move |slot| (layer, slot)));
            for (layer, slot) in all() {
                block.write(&layout, layer, slot, &token(layer, slot, 0), &token(layer, slot, 1));
            }
            copy.copy_from(&block);
            let rounded = |v: f32| match kv_type {
                KvType::F32 => v,
                KvType::F16 => f16::from_f32(v).to_f32(),
                KvType::Bf16 => bf16::from_f32(v).to_f32(),
            };
            for (layer, slot) in all() {
                let (mut key, mut value) = (vec![0.0; n], vec![0.0; n]);
                copy.read(&layout, layer, slot, &mut key, &mut value);
                let expected = |part| token(layer, slot, part).into_iter().map(rounded).collect::<Vec<_>>();
                assert_eq!((key, value), (expected(0), expected(1)), "{layout:?} layer {layer} slot {slot}");
            }
        }
        // A tie goes to the even neighbour.
        assert_eq!(bf16::narrow(1.0 + 1.0 / 256.0), bf16::from_f32(1.0));
        assert_eq!(bf16::narrow(1.0 + 3.0 / 256.0), bf16::from_f32(1.0 + 4.0 / 256.0));
        assert_eq!(f16::narrow(1.0 + 1.0 / 2048.0), f16::from_f32(1.0));
        assert_eq!(f16::narrow(1.0 + 3.0 / 2048.0), f16::from_f32(1.0 + 4.0 / 2048.0));
    }
}
