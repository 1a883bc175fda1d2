//! What the blocks of a cache keep, and where their memory ends.

use half::{bf16, f16};

use super::*;
use crate::cpu::kv::{KvType, SLAB_BYTES};
use crate::{Arithmetic, AttentionShape, BlockTable, Isa, QueryRow, Team, attend};

/// Whether two blocks hold the same bytes.
fn same(blocks: &KvBlocks, a: usize, b: usize) -> bool {
    let KvLayout { n_layers, n_kv_heads, .. } = blocks.layout;
    (0..n_layers * n_kv_heads).all(|head| {
        let [a, b] = [a, b].map(|block| blocks.head(head / n_kv_heads, head % n_kv_heads).of(block));
        (a.keys, a.values, a.scales) == (b.keys, b.values, b.scales)
    })
}

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
        let mut blocks = KvBlocks::new(layout);
        // One block in the first slab, one beside it, one in the next.
        let (block, beside, beyond) = (1, 0, 1 + layout.slab_blocks());
        blocks.grow(beyond + 1).unwrap();
        let at = |block: usize, slot: usize| CacheSlot { block, slot };
        let token = |layer: usize, slot: usize, part: usize| -> Vec<f32> {
            (0..n).map(|i| number(((layer * 16 + slot) * 2 + part) * n + i)).collect()
        };
        let all = || (0..2).flat_map(|layer| (0..BLOCK_TOKENS).map(move |slot| (layer, slot)));
        for (layer, slot) in all() {
            blocks.write(at(block, slot), layer, &token(layer, slot, 0), &token(layer, slot, 1));
        }
        blocks.copy(block, beyond);
        blocks.copy(beyond, beside);
        blocks.copy(beside, beside);
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
            blocks.read(at(beside, slot), layer, &mut key, &mut value);
            let expected = |part| token(layer, slot, part).chunks(head_dim).flat_map(rounded).collect::<Vec<_>>();
            assert_eq!((&key, &value), (&expected(0), &expected(1)), "{layout:?} layer {layer} slot {slot}");
            blocks.write(at(block, slot), layer, &key, &value);
        }
        // A saved cache is the same again.
        assert!(same(&blocks, block, beyond), "{layout:?}: what was read, written again");
    }
}

/// What comes back of one key of two values.
fn stored(kv_type: KvType, key: [f32; 2]) -> [f32; 2] {
    let layout = KvLayout { n_layers: 1, n_kv_heads: 1, head_dim: 2, kv_type };
    let mut blocks = KvBlocks::new(layout);
    blocks.grow(1).unwrap();
    let at = CacheSlot { block: 0, slot: 5 };
    blocks.write(at, 0, &key, &key);
    let (mut key, mut value) = ([0.0; 2], [0.0; 2]);
    blocks.read(at, 0, &mut key, &mut value);
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
        // Blocks out of order and in several slabs, one twice with others between.
        let slots = [(90, 15), (0, 0), (90, 3), (1, 7), (0, 1)].map(|(block, slot)| CacheSlot { block, slot });
        let rows: Vec<f32> = (0..slots.len() * stride).map(|i| (i as f32 * 0.37).cos()).collect();
        let (mut one_by_one, mut together) = (KvBlocks::new(layout), KvBlocks::new(layout));
        one_by_one.grow(91).unwrap();
        together.grow(91).unwrap();
        for (at, row) in slots.iter().zip(rows.chunks_exact(stride)) {
            let (key, value) = row[offset..][..2 * width].split_at(width);
            one_by_one.write(*at, 1, key, value);
        }
        team.run(|crew| append(crew, 1, &slots, &rows, stride, offset, &mut together));
        let slabs = together.slabs.iter().zip(&one_by_one.slabs);
        assert!(slabs.len() > 1 && slabs.clone().all(|(a, b)| a.bytes() == b.bytes()), "{kv_type:?}");
    }
}

#[test]
fn memory_is_taken_in_slabs_and_what_the_system_refuses_is_an_error() {
    for (head_dim, n_kv_heads, n_layers) in [(2, 1, 1), (64, 4, 22), (96, 32, 32), (128, 8, 80)] {
        let layout = KvLayout { n_layers, n_kv_heads, head_dim, kv_type: KvType::Bf16 };
        let mut blocks = KvBlocks::new(layout);
        assert_eq!((blocks.len(), layout.memory_bytes(0)), (0, 0), "{layout:?}: nothing before it is asked for");
        blocks.grow(3).unwrap();
        let held: usize = blocks.slabs.iter().map(|slab| slab.bytes().len()).sum();
        assert!(blocks.len() >= 3 && held >= layout.memory_bytes(3), "{layout:?}: {} blocks", blocks.len());
        let most = (3 * layout.block_bytes()).max(SLAB_BYTES) + blocks.slabs.len() * HUGE_PAGE;
        assert!(held <= most, "{layout:?}: {held} bytes for three blocks");
    }
    for n_layers in [usize::MAX, usize::MAX >> 12, 1 << 40] {
        let layout = KvLayout { n_layers, n_kv_heads: 8, head_dim: 64, kv_type: KvType::F16 };
        let mut blocks = KvBlocks::new(layout);
        let error = blocks.grow(1).unwrap_err();
        assert!(matches!(error, KernelError::Memory { .. }) && blocks.is_empty(), "{n_layers} layers: {error}");
    }
}

/// Memory that ends where nothing is mapped: the last page of a file, and a mapping that is longer.
#[cfg(target_os = "linux")]
struct Guarded(MmapMut, Range<usize>);

#[cfg(target_os = "linux")]
impl Guarded {
    fn new(bytes: usize) -> Guarded {
        const PAGE: usize = 4096;
        let end = bytes.next_multiple_of(PAGE);
        let file = tempfile::tempfile().unwrap();
        file.set_len(end as u64).unwrap();
        // SAFETY: nobody else has the file, and what lies behind its end is not touched.
        let map = unsafe { memmap2::MmapOptions::new().len(end + PAGE).map_mut(&file) }.unwrap();
        Guarded(map, end - bytes..end)
    }

    fn floats(values: &[f32]) -> Guarded {
        let mut guarded = Guarded::new(size_of_val(values));
        guarded.as_floats().copy_from_slice(values);
        guarded
    }

    fn as_floats(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.0[self.1.clone()])
    }
}

#[test]
#[cfg(target_os = "linux")]
fn nothing_is_read_or_written_behind_the_end_of_a_cache_and_its_place_does_not_matter() {
    let shapes = [(1, 1, 1), (8, 1, 64), (10, 2, 7), (3, 1, 80), (16, 2, 18), (2, 2, 256)];
    for (n_heads, n_kv_heads, head_dim) in shapes {
        for kv_type in [KvType::F32, KvType::F16, KvType::Bf16, KvType::Int8] {
            let layout = KvLayout { n_layers: 1, n_kv_heads, head_dim, kv_type };
            let context: usize = 333 + 40;
            let (mut usual, mut guarded) = (KvBlocks::new(layout), KvBlocks::new(layout));
            usual.grow(context.div_ceil(BLOCK_TOKENS)).unwrap();
            for _ in &usual.slabs {
                let Guarded(memory, range) = Guarded::new(layout.slab_bytes());
                guarded.slabs.push(Slab { memory, start: range.start });
            }
            // From the last block down, so that the first tokens end every region of the last slab.
            let table: Vec<u32> = (0..usual.len() as u32).rev().collect();
            let table = &table[..context.div_ceil(BLOCK_TOKENS)];
            let at = |position: usize| CacheSlot {
                block: table[position / BLOCK_TOKENS] as usize,
                slot: position % BLOCK_TOKENS,
            };
            let slots: Vec<CacheSlot> = (0..context).map(at).collect();
            let (stride, width) = (2 * n_kv_heads * head_dim, n_heads * head_dim);
            let numbers = |n: usize, step: f32| -> Vec<f32> { (0..n).map(|i| (i as f32 * step).sin()).collect() };
            let mut rows = Guarded::floats(&numbers(context * stride, 0.37));
            let shape = AttentionShape { n_heads, n_kv_heads, head_dim, scale: 0.3, softcap: None, window: None };
            for isa in Isa::available() {
                let team = Team::new(2, isa).unwrap();
                for blocks in [&mut usual, &mut guarded] {
                    team.run(|crew| append(crew, 0, &slots, rows.as_floats(), stride, 0, blocks));
                }
                for n in [1, 2, 4, 8, 13, 40] {
                    let tables = [BlockTable { first_block: 0, blocks: table }];
                    let queries: Vec<_> = (333..333 + n).map(|position| QueryRow { sequence: 0, position }).collect();
                    let mut q = Guarded::floats(&numbers(n * width, 0.91));
                    for arithmetic in [Arithmetic::Exact, Arithmetic::Reduced] {
                        let [expected, found] = [&usual, &guarded].map(|blocks| {
                            let (q, mut out) = (q.as_floats(), Guarded::floats(&vec![f32::NAN; n * width]));
                            let run = |out| {
                                team.run(|crew| {
                                    attend(crew, &shape, 0, q, width, &queries, &tables, blocks, arithmetic, out)
                                })
                            };
                            run(out.as_floats());
                            out.as_floats().to_vec()
                        });
                        let label = format!("{layout:?}, {n} rows, {arithmetic:?}, {}", isa.name());
                        assert!(expected.iter().all(|value| value.is_finite()), "{label}: not finite");
                        assert_eq!(expected, found, "{label}: what lies beside a cache moves its results");
                    }
                }
            }
        }
    }
}
