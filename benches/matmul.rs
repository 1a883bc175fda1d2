//! The speed of matrix products with the shapes of a 1.1B Llama, as shares of what the machine can do. Reading the
//! weights or multiplying is the limit (m or c), whichever takes longer. Both are measured in turn with the work, as
//! they move with the neighbours.
//!
//! `cargo bench -p infer-kernels --bench matmul [threads] [formats] [tokens=1,3,17] [exact]`; INFER_ISA as ever.

mod timing;

use half::{bf16, f16};
use infer_kernels::cpu::probe::{self, Operation};
use infer_kernels::quant::{int4, int8};
use infer_kernels::{Arithmetic, Dense, Isa, MatrixRef, Projection, Store, Team, matmul};
use timing::{median, seconds};

/// Weights of one measurement: far more than the caches hold, so that decoding reads memory.
const WEIGHT_BYTES: usize = 400 << 20;

/// Bytes of a cache line.
const LINE: usize = 64;

const SHAPES: [(usize, usize); 4] = [(2048, 2048), (5632, 2048), (2048, 5632), (32000, 2048)];

/// Numbers of tokens, unless others are asked for. What the others are compared with is first.
const TOKENS: [usize; 7] = [1, 2, 4, 8, 16, 64, 512];

/// Products with at least so many tokens are bound by arithmetic: one matrix of a shape is enough.
const MANY: usize = 16;

const FORMATS: [&str; 5] = ["f32", "f16", "bf16", "int8", "int4"];

/// Rounds of a measurement, of which the median counts.
const ROUNDS: usize = 7;

struct Weights {
    f32: Vec<f32>,
    f16: Vec<f16>,
    bf16: Vec<bf16>,
    packed: Vec<u8>,
}

impl Weights {
    /// `WEIGHT_BYTES` of each format. Their values do not matter, but must not be denormal.
    fn new() -> Weights {
        Weights {
            f32: (0..WEIGHT_BYTES / 4).map(|i| (i % 251) as f32 / 251.0).collect(),
            f16: (0..WEIGHT_BYTES / 2).map(|i| f16::from_f32((i % 251) as f32 / 251.0)).collect(),
            bf16: (0..WEIGHT_BYTES / 2).map(|i| bf16::from_f32((i % 251) as f32 / 251.0)).collect(),
            packed: vec![0x21; WEIGHT_BYTES + LINE],
        }
    }

    /// All of a format, as it lies in memory: how fast it can be read depends on its pages.
    fn bytes(&self, format: &str) -> &[u8] {
        match format {
            "f32" => bytemuck::cast_slice(&self.f32),
            "f16" => bytemuck::cast_slice(&self.f16),
            "bf16" => bytemuck::cast_slice(&self.bf16),
            // As in a mapped file, packed weights start with a cache line.
            _ => &self.packed[self.packed.as_ptr().align_offset(LINE)..][..WEIGHT_BYTES],
        }
    }

    /// As many whole matrices as fit.
    fn matrices(&self, format: &str, rows: usize, cols: usize) -> Vec<MatrixRef<'_>> {
        let n = rows * cols;
        let fits = "the length is that of the shape";
        let packed = self.bytes("int4").chunks_exact(bytes(format, rows, cols));
        match format {
            "f32" => self.f32.chunks_exact(n).map(|w| MatrixRef::F32(Dense::new(w, rows, cols).expect(fits))).collect(),
            "f16" => self.f16.chunks_exact(n).map(|w| MatrixRef::F16(Dense::new(w, rows, cols).expect(fits))).collect(),
            "bf16" => {
                self.bf16.chunks_exact(n).map(|w| MatrixRef::Bf16(Dense::new(w, rows, cols).expect(fits))).collect()
            }
            "int8" => packed.map(|w| MatrixRef::int8(w, rows, cols).expect(fits)).collect(),
            _ => packed.map(|w| MatrixRef::int4(w, rows, cols).expect(fits)).collect(),
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
fn product(team: &Team, matrices: &[MatrixRef<'_>], n_tokens: usize, arithmetic: Arithmetic) -> f64 {
    let (rows, cols) = (matrices[0].rows(), matrices[0].cols());
    let x: Vec<f32> = (0..n_tokens * cols).map(|i| (i % 13) as f32 - 6.0).collect();
    // Not zeros, which would be pages that the first product touches.
    let mut out = vec![1.0; n_tokens * rows];
    let time = seconds(|| {
        team.run(|crew| {
            for weight in matrices {
                let group = [Projection { weight: *weight, bias: None }];
                matmul(crew, &x, n_tokens, &group, arithmetic, Store::Set, &mut out);
            }
        });
    });
    time / matrices.len() as f64
}

/// GB/s of reading memory.
fn bandwidth(team: &Team, data: &[u8]) -> f64 {
    let time = seconds(|| {
        std::hint::black_box(team.run(|crew| probe::read(crew, data)));
    });
    data.len() as f64 / time / 1e9
}

/// 10^9 operations a second of multiply-adds, in f32 where the tier has no instruction for others.
fn peak(team: &Team, operation: Operation) -> f64 {
    let mut operations = 0;
    let time = seconds(|| operations = team.run(|crew| probe::multiply(crew, operation, 400)));
    if operations == 0 { peak(team, Operation::F32) } else { operations as f64 / time / 1e9 }
}

/// What multiplies a format's weights fastest.
fn operation(format: &str, arithmetic: Arithmetic) -> Operation {
    match format {
        _ if arithmetic == Arithmetic::Exact => Operation::F32,
        "int8" | "int4" => Operation::Int8,
        "bf16" => Operation::Bf16,
        _ => Operation::F32,
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    let threads = arguments.iter().find_map(|argument| argument.parse().ok());
    let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()));
    let tokens: Vec<usize> = match arguments.iter().find_map(|argument| argument.strip_prefix("tokens=")) {
        Some(list) => list.split(',').map(str::parse).collect::<Result<_, _>>()?,
        None => TOKENS.to_vec(),
    };
    let all = !FORMATS.iter().any(|format| has(format));
    let arithmetic = if has("exact") { Arithmetic::Exact } else { Arithmetic::Reduced };
    let team = Team::new(threads, Isa::from_env()?)?;
    let weights = Weights::new();
    println!("{}, {threads} threads, {arithmetic:?}; medians of {ROUNDS}", team.isa().name());
    println!("tokens: share of memory (m) or compute (c), and tokens a second against the first");
    for format in FORMATS.into_iter().filter(|format| all || has(format)) {
        for (rows, cols) in SHAPES {
            let matrices = weights.matrices(format, rows, cols);
            let size = bytes(format, rows, cols) as f64 / 1e9;
            let flops = 2.0 * (rows * cols) as f64 / 1e9;
            let (mut read, mut peaks) = (Vec::new(), Vec::new());
            let mut times = vec![Vec::new(); tokens.len()];
            for _ in 0..ROUNDS {
                read.push(bandwidth(&team, weights.bytes(format)));
                peaks.push(peak(&team, operation(format, arithmetic)));
                for (times, n) in times.iter_mut().zip(&tokens) {
                    let matrices = if *n > MANY { &matrices[..1] } else { &matrices };
                    times.push(product(&team, matrices, *n, arithmetic));
                }
            }
            let (read, peak) = (median(read), median(peaks));
            print!("{format:>4} {rows:>5} x {cols:<4} {read:>5.1} GB/s {peak:>4.0} Gop/s");
            let mut first = None;
            for (times, n) in times.into_iter().zip(&tokens) {
                let time = median(times);
                let (memory, compute) = (size / read / time, flops * *n as f64 / peak / time);
                let (share, limit) = if memory >= compute { (memory, 'm') } else { (compute, 'c') };
                let speed = *n as f64 / time;
                print!(" | {n}: {share:.2}{limit} x{:.1}", speed / *first.get_or_insert(speed));
            }
            println!();
        }
    }
    Ok(())
}
