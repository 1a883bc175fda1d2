//! The speed of matrix products with the shapes of a 1.1B Llama: decoding as a share of the measured read
//! bandwidth, prefill in GFLOP/s. `cargo bench -p infer-kernels --bench matmul [threads]`; INFER_ISA as ever.

use std::time::{Duration, Instant};

use half::{bf16, f16};
use infer_kernels::quant::{int4, int8};
use infer_kernels::{Crew, Dense, Isa, MatrixRef, Projection, Store, Team, matmul};

/// Weights of one measurement: far more than the caches hold, so that decoding reads memory.
const WEIGHT_BYTES: usize = 400 << 20;

const SHAPES: [(usize, usize); 4] = [(2048, 2048), (5632, 2048), (2048, 5632), (32000, 2048)];

/// The shortest of several runs, as neighbours on the machine only ever slow a run down.
fn best_of(runs: usize, mut run: impl FnMut()) -> Duration {
    let time = |_| {
        let start = Instant::now();
        run();
        start.elapsed()
    };
    (0..runs).map(time).min().unwrap_or_default()
}

/// GB/s of reading memory front to back, each worker its own range.
fn read_bandwidth(team: &Team, data: &[u64]) -> f64 {
    const CHUNK: usize = 1 << 15;
    let sums = |crew: &Crew<'_>| {
        let mut sums = vec![0u64; data.len().div_ceil(CHUNK)];
        crew.rows(&mut sums, 1, |i, sum| {
            let chunk = &data[i * CHUNK..data.len().min((i + 1) * CHUNK)];
            // In 32 lanes, so that the sum does not wait for itself.
            let mut lanes = [0; 32];
            for values in chunk.as_chunks::<32>().0 {
                lanes.iter_mut().zip(values).for_each(|(lane, v)| *lane ^= v);
            }
            sum[0] = lanes.iter().fold(0, |sum, v| sum ^ v);
        });
        sums
    };
    let time = best_of(7, || drop(std::hint::black_box(team.run(sums))));
    size_of_val(data) as f64 / time.as_secs_f64() / 1e9
}

struct Weights {
    f32: Vec<f32>,
    f16: Vec<f16>,
    bf16: Vec<bf16>,
    int8: Vec<u8>,
    int4: Vec<u8>,
}

impl Weights {
    /// `WEIGHT_BYTES` of each format. Their values do not matter, but must not be denormal.
    fn new() -> Weights {
        Weights {
            f32: (0..WEIGHT_BYTES / 4).map(|i| (i % 251) as f32 / 251.0).collect(),
            f16: (0..WEIGHT_BYTES / 2).map(|i| f16::from_f32((i % 251) as f32 / 251.0)).collect(),
            bf16: (0..WEIGHT_BYTES / 2).map(|i| bf16::from_f32((i % 251) as f32 / 251.0)).collect(),
            int8: vec![0x11; WEIGHT_BYTES],
            int4: vec![0x21; WEIGHT_BYTES],
        }
    }

    /// As many whole matrices as fit.
    fn matrices(&self, format: &str, rows: usize, cols: usize) -> Vec<MatrixRef<'_>> {
        let n = rows * cols;
        let dense = "the length is that of the shape";
        match format {
            "f32" => {
                self.f32.chunks_exact(n).map(|w| MatrixRef::F32(Dense::new(w, rows, cols).expect(dense))).collect()
            }
            "f16" => {
                self.f16.chunks_exact(n).map(|w| MatrixRef::F16(Dense::new(w, rows, cols).expect(dense))).collect()
            }
            "bf16" => {
                self.bf16.chunks_exact(n).map(|w| MatrixRef::Bf16(Dense::new(w, rows, cols).expect(dense))).collect()
            }
            "int8" => {
                let n = int8::packed_bytes(rows, cols).expect("it fits");
                self.int8.chunks_exact(n).map(|w| MatrixRef::int8(w, rows, cols).expect(dense)).collect()
            }
            _ => {
                let n = int4::packed_bytes(rows, cols).expect("it fits");
                self.int4.chunks_exact(n).map(|w| MatrixRef::int4(w, rows, cols).expect(dense)).collect()
            }
        }
    }
}

fn bytes(format: &str, rows: usize, cols: usize) -> usize {
    match format {
        "f32" => 4 * rows * cols,
        "f16" | "bf16" => 2 * rows * cols,
        "int8" => int8::packed_bytes(rows, cols).unwrap_or(0),
        _ => int4::packed_bytes(rows, cols).unwrap_or(0),
    }
}

/// Seconds of a product with one matrix, all matrices in turn.
fn time(team: &Team, matrices: &[MatrixRef<'_>], n_tokens: usize, runs: usize) -> f64 {
    let (rows, cols) = (matrices[0].rows(), matrices[0].cols());
    let x: Vec<f32> = (0..n_tokens * cols).map(|i| (i % 13) as f32 - 6.0).collect();
    let mut out = vec![0.0; n_tokens * rows];
    let time = best_of(runs, || {
        team.run(|crew| {
            for weight in matrices {
                let group = [Projection { weight: *weight, bias: None }];
                matmul(crew, &x, n_tokens, &group, Store::Set, &mut out);
            }
        });
    });
    time.as_secs_f64() / matrices.len() as f64
}

fn main() -> Result<(), infer_kernels::KernelError> {
    let threads = std::env::args().filter_map(|argument| argument.parse().ok()).next();
    let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()));
    let team = Team::new(threads, Isa::from_env()?)?;
    let data = vec![1u64; WEIGHT_BYTES / 8];
    let weights = Weights::new();
    let before = read_bandwidth(&team, &data);
    println!("{}, {threads} threads; memory read at {before:.1} GB/s", team.isa().name());
    println!("format    rows x cols | GB/s for 1 token  2 tokens  4 tokens | GFLOP/s for 8 tokens  512 tokens");
    for format in ["f32", "f16", "bf16", "int8", "int4"] {
        for (rows, cols) in SHAPES {
            let matrices = weights.matrices(format, rows, cols);
            let size = bytes(format, rows, cols) as f64;
            let speed = |n: usize| size / time(&team, &matrices, n, 5) / 1e9;
            let flops = |n: usize| 2.0 * (n * rows * cols) as f64 / time(&team, &matrices[..1], n, 5) / 1e9;
            let one = speed(1);
            print!("{format:>6} {rows:>7} x {cols:<5} | {one:>6.1} ({:>3.0} %)", 100.0 * one / before);
            print!("{:>10.1}{:>10.1}", speed(2), speed(4));
            println!(" | {:>21.1}{:>12.1}", flops(8), flops(512));
        }
    }
    println!("memory read at {:.1} GB/s afterwards", read_bandwidth(&team, &data));
    Ok(())
}
