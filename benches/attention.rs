//! The speed of attention with the heads of a 1.1B Llama (32 over 4, 64 wide): prefill as a share of the multiply-adds
//! in bf16, or f32 where they are used, decoding as a share of the read bandwidth. The limits are measured in turn with
//! the work, as they move with the neighbours.
//!
//! `cargo bench -p infer-kernels --bench attention [threads] [f32|f16|bf16|q8] [exact] [heads=32,4,64] [layers=22] [cases=0,3]`;
//! INFER_ISA as ever. With `layers=1` all passes read one layer, which lies in a cache: what is left is arithmetic.

mod timing;

use infer_kernels::cpu::probe::{self, Operation};
use infer_kernels::{
    Arithmetic, AttentionShape, BLOCK_TOKENS, BlockTable, CacheSlot, Isa, KvBlocks, KvLayout, KvType, QueryRow, Team,
    attend,
};
use timing::{median, seconds};

/// (sequences, new tokens of each, tokens before them): prefill, its end at 4096, decode, checking a draft, a batch.
const BATCHES: [(usize, usize, usize); 7] =
    [(1, 512, 0), (1, 512, 3584), (1, 1, 512), (1, 1, 4096), (1, 4, 4096), (8, 1, 512), (8, 1, 4096)];

/// Layers of a pass.
const LAYERS: usize = 22;

/// Rounds of a measurement, of which the median counts.
const ROUNDS: usize = 7;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    let threads = arguments.iter().find_map(|argument| argument.parse().ok());
    let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()));
    let arithmetic = if has("exact") { Arithmetic::Exact } else { Arithmetic::Reduced };
    let heads = arguments.iter().find_map(|argument| argument.strip_prefix("heads=")).unwrap_or("32,4,64");
    let heads = heads.split(',').map(str::parse).collect::<Result<Vec<usize>, _>>()?;
    let [n_heads, n_kv_heads, head_dim] = heads[..] else { return Err("heads=QUERY,KV,WIDTH".into()) };
    let n_layers =
        arguments.iter().find_map(|argument| argument.strip_prefix("layers=")).map_or(Ok(LAYERS), str::parse)?;
    let cases = arguments.iter().find_map(|argument| argument.strip_prefix("cases="));
    let chosen = |case: usize| cases.is_none_or(|cases| cases.split(',').any(|name| name == case.to_string()));
    let team = Team::new(threads, Isa::from_env()?)?;
    println!(
        "{}, {threads} threads, {arithmetic:?}, {n_layers} layers of {n_heads} heads over {n_kv_heads}, {head_dim} wide",
        team.isa().name()
    );
    let shape = AttentionShape { n_heads, n_kv_heads, head_dim, scale: 0.125, softcap: None, window: None };
    let memory = vec![1u8; 256 << 20];
    for kv_type in [KvType::F32, KvType::F16, KvType::Bf16, KvType::Int8] {
        let named = [KvType::F32, KvType::F16, KvType::Bf16, KvType::Int8].iter().any(|kv_type| has(kv_type.name()));
        if named && !has(kv_type.name()) {
            continue;
        }
        let layout = KvLayout { n_layers, n_kv_heads, head_dim, kv_type };
        for (_, (n_sequences, n_new, depth)) in BATCHES.into_iter().enumerate().filter(|(case, _)| chosen(*case)) {
            let n_blocks = (depth + n_new).div_ceil(BLOCK_TOKENS);
            let values: Vec<f32> = (0..n_kv_heads * head_dim).map(|i| (i % 13) as f32 / 6.5 - 1.0).collect();
            let mut pool = KvBlocks::new(layout);
            pool.grow(n_sequences * n_blocks)?;
            for block in 0..n_sequences * n_blocks {
                for layer in 0..n_layers {
                    for slot in 0..BLOCK_TOKENS {
                        pool.write(CacheSlot { block, slot }, layer, &values, &values);
                    }
                }
            }
            let ids: Vec<u32> = (0..(n_sequences * n_blocks) as u32).collect();
            let tables: Vec<_> = ids.chunks(n_blocks).map(|blocks| BlockTable { first_block: 0, blocks }).collect();
            let rows: Vec<QueryRow> = (0..n_sequences)
                .flat_map(|sequence| (depth..depth + n_new).map(move |position| QueryRow { sequence, position }))
                .collect();
            let width = n_heads * head_dim;
            let q: Vec<f32> = (0..rows.len() * width).map(|i| (i % 17) as f32 / 8.5 - 1.0).collect();
            let mut out = vec![0.0; rows.len() * width];
            let mut pass = || {
                team.run(|crew| {
                    for layer in 0..LAYERS {
                        attend(crew, &shape, layer % n_layers, &q, width, &rows, &tables, &pool, arithmetic, &mut out);
                    }
                });
            };
            let (mut times, mut read, mut peaks) = (Vec::new(), Vec::new(), Vec::new());
            let operation = if kv_type == KvType::F32 || has("exact") { Operation::F32 } else { Operation::Bf16 };
            for _ in 0..ROUNDS {
                times.push(seconds(&mut pass));
                read.push(
                    memory.len() as f64
                        / seconds(|| _ = std::hint::black_box(team.run(|crew| probe::read(crew, &memory)))),
                );
                let mut operations = 0;
                let time = seconds(|| operations = team.run(|crew| probe::multiply(crew, operation, 400)));
                peaks.push(operations as f64 / time);
            }
            let (time, read, peak) = (median(times), median(read), median(peaks));
            let pairs: usize = rows.iter().map(|row| row.position + 1).sum();
            let operations = (4 * LAYERS * width * pairs) as f64;
            let bytes = (n_sequences * n_blocks * layout.block_bytes() / n_layers * LAYERS) as f64;
            println!(
                "{:>4} {n_sequences} x {n_new:>3} at {depth:>4}: {:>7.3} ms | {:>5.1} of {:>4.1} GB/s, {:.2} | {:>4.0} of {:>4.0} Gop/s, {:.2}",
                kv_type.name(),
                time * 1e3,
                bytes / time / 1e9,
                read / 1e9,
                bytes / time / read,
                operations / time / 1e9,
                peak / 1e9,
                operations / time / peak,
            );
        }
    }
    Ok(())
}
