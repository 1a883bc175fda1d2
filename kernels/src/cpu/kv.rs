//! The inside of a block of the KV cache.
//!
//! A block holds a few tokens of every layer of a layer group. Within it, each layer and KV head has its keys
//! and then its values in one piece, both as panels of one kind: sixteen lanes wide, two of the summed index side by
//! side, as `vdpbf16ps` takes them. One inner kernel multiplies with both:
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

use bytemuck::Pod;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::crew::Crew;
use super::isa::PanelValue;
use super::lines::Lines;

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
        match self.kv_type {
            KvType::F32 => self.values().saturating_mul(4),
            KvType::F16 | KvType::Bf16 => self.values().saturating_mul(2),
            KvType::Int8 => self.values().saturating_add(self.scales().saturating_mul(4)),
        }
    }

    fn heads(&self) -> usize {
        self.n_layers.saturating_mul(self.n_kv_heads)
    }

    fn values(&self) -> usize {
        self.heads().saturating_mul(self.head_values())
    }

    /// The scales of an int8 block: of each head's keys, then of its values.
    fn scales(&self) -> usize {
        self.heads().saturating_mul(2 * BLOCK_TOKENS)
    }

    /// The values of one head's tokens: keys, then value panels.
    fn head_values(&self) -> usize {
        self.key_values().saturating_add(self.padded_head_dim().saturating_mul(BLOCK_TOKENS))
    }

    fn key_values(&self) -> usize {
        self.key_depth().saturating_mul(BLOCK_TOKENS)
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

/// [`BLOCK_TOKENS`] tokens of all layers of one layer group, keys and values. Starts as zeros.
#[derive(Debug)]
pub struct KvBlock {
    kv_type: KvType,
    values: Lines,
    /// Those of int8 values.
    scales: Box<[f32]>,
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

/// Where a token's keys and values go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSlot {
    /// An index into the pool.
    pub block: usize,
    /// The token's place in the block.
    pub slot: usize,
}

/// Stores the keys and values of a batch's tokens in one layer: row i of `rows` (they start `stride` apart) has its
/// key, and behind it its value, both [n_kv_heads, head_dim], from `offset` on, and goes to `slots[i]`.
#[expect(clippy::too_many_arguments, reason = "the batch, the cache and the layer are the caller's three own things")]
pub fn append(
    crew: &Crew<'_>,
    layout: &KvLayout,
    layer: usize,
    slots: &[CacheSlot],
    rows: &[f32],
    stride: usize,
    offset: usize,
    pool: &mut [KvBlock],
) {
    let width = layout.n_kv_heads * layout.head_dim;
    assert!(offset + 2 * width <= stride, "a key and a value of {width} from {offset} in rows of {stride}");
    assert_eq!(rows.len(), slots.len() * stride, "values of {} rows", slots.len());
    // Tokens of one block are one task's, so that each task has its block for itself.
    let mut order: Vec<usize> = (0..slots.len()).collect();
    order.sort_by_key(|&row| slots[row].block);
    let mut tasks = Vec::new();
    let (mut rest, mut passed) = (pool, 0);
    for rows in order.chunk_by(|&a, &b| slots[a].block == slots[b].block) {
        let block = slots[rows[0]].block;
        let (_, from) = rest.split_at_mut(block - passed);
        let Some((block, after)) = from.split_first_mut() else { panic!("block {block} is not in the pool") };
        passed = slots[rows[0]].block + 1;
        rest = after;
        tasks.push((block, rows));
    }
    crew.rows(&mut tasks, 1, |_, task| {
        for (block, tokens) in task {
            for &row in *tokens {
                let (key, value) = rows[row * stride + offset..][..2 * width].split_at(width);
                block.write(layout, layer, slots[row].slot, key, value);
            }
        }
    });
}

impl KvBlock {
    /// A block of zeros.
    pub fn new(layout: &KvLayout) -> KvBlock {
        let kv_type = layout.kv_type;
        let n_scales = if kv_type == KvType::Int8 { layout.scales() } else { 0 };
        let values = match kv_type {
            KvType::F32 => Lines::zeros::<f32>(layout.values()),
            KvType::F16 | KvType::Bf16 => Lines::zeros::<u16>(layout.values()),
            KvType::Int8 => Lines::zeros::<i8>(layout.values()),
        };
        KvBlock { kv_type, values, scales: vec![0.0; n_scales].into() }
    }

    /// Stores one token of one layer in `slot`, rounded to nearest even. `key` and `value` are [n_kv_heads, head_dim].
    pub fn write(&mut self, layout: &KvLayout, layer: usize, slot: usize, key: &[f32], value: &[f32]) {
        self.check(layout, layer, slot, key.len(), value.len());
        let first = layer * layout.n_kv_heads;
        let heads = key.chunks_exact(layout.head_dim).zip(value.chunks_exact(layout.head_dim));
        for (head, (key, value)) in (first..).zip(heads) {
            let place = (layout, head, slot);
            match self.kv_type {
                KvType::F32 => self.write_head::<f32>(place, key, value, |from, to| to.copy_from_slice(from)),
                KvType::F16 => self.write_head::<f16>(place, key, value, |from, to| to.convert_from_f32_slice(from)),
                KvType::Bf16 => self.write_head::<bf16>(place, key, value, |from, to| to.convert_from_f32_slice(from)),
                KvType::Int8 => {
                    let (key_scale, value_scale) = (Scale::of(key), Scale::of(value));
                    write_key(self.values.all_mut(), place, key, |from, to| key_scale.encode(from, to));
                    write_value(self.values.all_mut(), place, value, |from, to| value_scale.encode(from, to));
                    self.scales[head * 2 * BLOCK_TOKENS + slot] = key_scale.scale;
                    self.scales[(head * 2 + 1) * BLOCK_TOKENS + slot] = value_scale.scale;
                }
            }
        }
    }

    fn write_head<T: Stored>(&mut self, at: Place<'_>, key: &[f32], value: &[f32], narrow: impl Fn(&[f32], &mut [T])) {
        write_key(self.values.all_mut(), at, key, &narrow);
        write_value(self.values.all_mut(), at, value, &narrow);
    }

    /// Reads back what [`KvBlock::write`] stored, as f32: for saving a cache in a plain layout.
    pub fn read(&self, layout: &KvLayout, layer: usize, slot: usize, key: &mut [f32], value: &mut [f32]) {
        self.check(layout, layer, slot, key.len(), value.len());
        let first = layer * layout.n_kv_heads;
        let heads = key.chunks_exact_mut(layout.head_dim).zip(value.chunks_exact_mut(layout.head_dim));
        for (head, (key, value)) in (first..).zip(heads) {
            let place = (layout, head, slot);
            match self.kv_type {
                KvType::F32 => read::<f32>(self.values.all(), place, key, value),
                KvType::F16 => read::<f16>(self.values.all(), place, key, value),
                KvType::Bf16 => read::<bf16>(self.values.all(), place, key, value),
                KvType::Int8 => {
                    read::<i8>(self.values.all(), place, key, value);
                    let scales = &self.scales[head * 2 * BLOCK_TOKENS..];
                    key.iter_mut().for_each(|code| *code *= scales[slot]);
                    value.iter_mut().for_each(|code| *code *= scales[BLOCK_TOKENS + slot]);
                }
            }
        }
    }

    /// Makes this block equal to `other`, which has the same layout.
    pub fn copy_from(&mut self, other: &KvBlock) {
        assert_eq!(self.kv_type, other.kv_type, "the type of a block and of its copy");
        self.values.all_mut::<u8>().copy_from_slice(other.values.all());
        self.scales.copy_from_slice(&other.scales);
    }

    fn check(&self, layout: &KvLayout, layer: usize, slot: usize, key: usize, value: usize) {
        assert_eq!(self.kv_type, layout.kv_type, "the type of a block and of its layout");
        assert!(layer < layout.n_layers, "layer {layer} of a cache of {} layers", layout.n_layers);
        assert!(slot < BLOCK_TOKENS, "slot {slot} of a block of {BLOCK_TOKENS}");
        let expected = layout.n_kv_heads * layout.head_dim;
        assert_eq!((key, value), (expected, expected), "lengths of a key and a value");
    }

    /// The keys and the value panels of one head, for attention.
    pub(super) fn head<T: Stored>(&self, layout: &KvLayout, layer: usize, head: usize) -> (&[T], &[T]) {
        assert_eq!(self.kv_type, T::KV_TYPE, "the type of a block and of its layout");
        let n = layout.head_values();
        self.values.all()[(layer * layout.n_kv_heads + head) * n..][..n].split_at(layout.key_values())
    }

    /// The scales of one head's keys and values, one for each token; none if the values need none.
    pub(super) fn scales(&self, layout: &KvLayout, layer: usize, head: usize) -> Option<(&[f32], &[f32])> {
        if self.scales.is_empty() {
            return None;
        }
        let n = 2 * BLOCK_TOKENS;
        Some(self.scales[(layer * layout.n_kv_heads + head) * n..][..n].split_at(BLOCK_TOKENS))
    }
}

/// The scale of an int8 key or value.
struct Scale {
    scale: f32,
    inverse: f32,
}

impl Scale {
    fn of(x: &[f32]) -> Scale {
        // The order of finite magnitudes is that of their bits; what is not finite comes behind them.
        let largest = x.iter().map(|x| x.to_bits() & 0x7fff_ffff).max().unwrap_or(0);
        // Seven of 24 bits go, half of the last that stays is added before.
        let scale = f32::from_bits(((f32::from_bits(largest) / 127.0).to_bits() + 0x40) & !0x7f);
        if largest >= f32::INFINITY.to_bits() {
            Scale { scale: f32::NAN, inverse: 0.0 }
        } else if scale < f32::MIN_POSITIVE {
            Scale { scale: 0.0, inverse: 0.0 }
        } else {
            Scale { scale, inverse: 1.0 / scale }
        }
    }

    fn encode(&self, x: &[f32], codes: &mut [i8]) {
        const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
        for (x, code) in x.iter().zip(codes) {
            *code = (x * self.inverse + ROUND).to_bits() as i8;
        }
    }
}

/// The layout, a head counted over all layers, and a token's slot.
type Place<'a> = (&'a KvLayout, usize, usize);

/// Where value `d` of a key and of a value lie among all values.
fn places((layout, head, slot): Place<'_>, d: usize) -> (usize, usize) {
    let start = head * layout.head_values();
    let key = (d / 2 * BLOCK_TOKENS + slot) * 2 + d % 2;
    let value = d / PANEL * PANEL * BLOCK_TOKENS + (slot / 2 * PANEL + d % PANEL) * 2 + slot % 2;
    (start + key, start + layout.key_values() + value)
}

fn read<T: PanelValue>(all: &[T], place: Place<'_>, key: &mut [f32], value: &mut [f32]) {
    for (d, (key, value)) in key.iter_mut().zip(value).enumerate() {
        let (key_at, value_at) = places(place, d);
        *key = all[key_at].widen();
        *value = all[value_at].widen();
    }
}

/// Writes one head's key, brought to its type by `narrow`, a panel's width at a time.
fn write_key<T: PanelValue>(all: &mut [T], place: Place<'_>, key: &[f32], narrow: impl Fn(&[f32], &mut [T])) {
    let mut buffer = [T::default(); PANEL];
    for (i, key) in key.chunks(PANEL).enumerate() {
        let buffer = &mut buffer[..key.len()];
        narrow(key, buffer);
        let (start, _) = places(place, i * PANEL);
        for (pair, lanes) in buffer.chunks(2).zip(all[start..].chunks_mut(2 * BLOCK_TOKENS)) {
            lanes[..pair.len()].copy_from_slice(pair);
        }
    }
}

/// Writes one head's value, brought to its type by `narrow`, panel by panel.
fn write_value<T: PanelValue>(all: &mut [T], place: Place<'_>, value: &[f32], narrow: impl Fn(&[f32], &mut [T])) {
    let mut buffer = [T::default(); PANEL];
    for (i, value) in value.chunks(PANEL).enumerate() {
        let buffer = &mut buffer[..value.len()];
        narrow(value, buffer);
        let (_, start) = places(place, i * PANEL);
        for (value, lane) in buffer.iter().zip(all[start..].iter_mut().step_by(2)) {
            *lane = *value;
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
            (KvType::Bf16, 3, 7),
            (KvType::Int8, 2, 6),
            (KvType::Int8, 1, 80),
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
            let rounded = |head: &[f32]| -> Vec<f32> {
                let scale = head.iter().fold(0.0f32, |largest, v| largest.max(v.abs())) / 127.0;
                let scale = f32::from_bits((scale.to_bits() + 64) & !127);
                let rounded = |v: &f32| match kv_type {
                    KvType::F32 => *v,
                    KvType::F16 => f16::from_f32(*v).to_f32(),
                    KvType::Bf16 => bf16::from_f32(*v).to_f32(),
                    KvType::Int8 => (v / scale).round_ties_even() * scale,
                };
                head.iter().map(rounded).collect()
            };
            for (layer, slot) in all() {
                let (mut key, mut value) = (vec![0.0; n], vec![0.0; n]);
                copy.read(&layout, layer, slot, &mut key, &mut value);
                let expected = |part| token(layer, slot, part).chunks(head_dim).flat_map(rounded).collect::<Vec<_>>();
                assert_eq!((&key, &value), (&expected(0), &expected(1)), "{layout:?} layer {layer} slot {slot}");
                block.write(&layout, layer, slot, &key, &value);
            }
            // A saved cache is the same again.
            assert_eq!(format!("{block:?}"), format!("{copy:?}"), "{layout:?}: what was read, written again");
        }
    }

    /// What comes back of one key of two values.
    fn stored(kv_type: KvType, key: [f32; 2]) -> [f32; 2] {
        let layout = KvLayout { n_layers: 1, n_kv_heads: 1, head_dim: 2, kv_type };
        let mut block = KvBlock::new(&layout);
        block.write(&layout, 0, 5, &key, &key);
        let (mut key, mut value) = ([0.0; 2], [0.0; 2]);
        block.read(&layout, 0, 5, &mut key, &mut value);
        assert_eq!(key.map(f32::to_bits), value.map(f32::to_bits), "{kv_type:?}: key and value");
        key
    }

    #[test]
    fn ties_go_to_the_even_neighbour_and_what_is_not_finite_stays_so() {
        use KvType::*;
        for (kv_type, given, expected) in [
            (Bf16, [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0], [1.0, 1.0 + 4.0 / 256.0]),
            (F16, [1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0], [1.0, 1.0 + 4.0 / 2048.0]),
            (Int8, [127.0, 2.5], [127.0, 2.0]),
            (Int8, [-127.0, -3.5], [-127.0, -4.0]),
            (Int8, [0.0, 0.0], [0.0, 0.0]),
            (Int8, [1e-44, 0.0], [0.0, 0.0]),
            (F16, [f32::INFINITY, 1e6], [f32::INFINITY; 2]),
        ] {
            assert_eq!(stored(kv_type, given), expected, "{kv_type:?}: {given:?}");
        }
        for kv_type in [F32, F16, Bf16, Int8] {
            assert!(stored(kv_type, [f32::NAN, 1.0])[0].is_nan(), "{kv_type:?}: NaN");
        }
        assert!(stored(Int8, [f32::INFINITY, 1.0]).iter().all(|x| x.is_nan()), "a scale is not finite");
    }

    #[test]
    fn appended_tokens_are_those_written_one_by_one() {
        let team = crate::Team::new(2, crate::Isa::best()).expect("two threads");
        for kv_type in [KvType::F32, KvType::F16, KvType::Bf16, KvType::Int8] {
            let layout = KvLayout { n_layers: 2, n_kv_heads: 3, head_dim: 10, kv_type };
            let (width, stride, offset) = (30, 70, 7);
            // Blocks out of order, one twice with others between.
            let slots = [(2, 15), (0, 0), (2, 3), (1, 7), (0, 1)].map(|(block, slot)| CacheSlot { block, slot });
            let rows: Vec<f32> = (0..slots.len() * stride).map(|i| (i as f32 * 0.37).cos()).collect();
            let blocks = || -> Vec<KvBlock> { (0..4).map(|_| KvBlock::new(&layout)).collect() };
            let (mut one_by_one, mut together) = (blocks(), blocks());
            for (at, row) in slots.iter().zip(rows.chunks_exact(stride)) {
                let (key, value) = row[offset..][..2 * width].split_at(width);
                one_by_one[at.block].write(&layout, 1, at.slot, key, value);
            }
            team.run(|crew| append(crew, &layout, 1, &slots, &rows, stride, offset, &mut together));
            assert_eq!(format!("{together:?}"), format!("{one_by_one:?}"), "{kv_type:?}");
        }
    }
}
