//! The speed of matrix products with the shapes of a 1.1B Llama, as shares of what the machine can do: decoding of
//! the read bandwidth, prefill of the multiply-adds. The limits are measured in turn with the work, as they move with
//! the neighbours. `cargo bench -p infer-kernels --bench matmul [threads] [formats]`; INFER_ISA as ever.

use std::time::Instant;

use half::{bf16, f16};
use infer_kernels::cpu::probe::{self, Operation};
use infer_kernels::quant::{int4, int8};
use infer_kernels::{Arithmetic, Dense, Isa, MatrixRef, Projection, Store, Team, matmul};

/// Weights of one measurement: far more than the caches hold, so that decoding reads memory.
const WEIGHT_BYTES: usize = 400 << 20;

const SHAPES: [(usize, usize); 4] = [(2048, 2048), (5632, 2048), (2048, 5632), (32000, 2048)];

const FORMATS: [&str; 5] = ["f32", "f16", "bf16", "int8", "int4"];

/// Rounds of a measurement, of which the median counts.
const ROUNDS: usize = 7;

/// Seconds that `run` takes.
fn seconds(run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

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
            packed: vec![0x21; WEIGHT_BYTES],
        }
    }

    /// As many whole matrices as fit.
    fn matrices(&self, format: &str, rows: usize, cols: usize) -> Vec<MatrixRef<'_>> {
        let n = rows * cols;
        let fits = "the length is that of the shape";
        let packed = self.packed.chunks_exact(bytes(format, rows, cols));
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
fn product(team: &Team, matrices: &[MatrixRef<'_>], n_tokens: usize) -> f64 {
    let (rows, cols) = (matrices[0].rows(), matrices[0].cols());
    let x: Vec<f32> = (0..n_tokens * cols).map(|i| (i % 13) as f32 - 6.0).collect();
    let mut out = vec![0.0; n_tokens * rows];
    let time = seconds(|| {
        team.run(|crew| {
            for weight in matrices {
                let group = [Projection { weight: *weight, bias: None }];
                matmul(crew, &x, n_tokens, &group, Arithmetic::Reduced, Store::Set, &mut out);
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

/// 10^9 operations a second of multiply-adds.
fn peak(team: &Team, operation: Operation) -> f64 {
    let mut operations = 0;
    let time = seconds(|| operations = team.run(|crew| probe::multiply(crew, operation, 400)));
    operations as f64 / time / 1e9
}

fn main() -> Result<(), infer_kernels::KernelError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let threads = arguments.iter().find_map(|argument| argument.parse().ok());
    let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()));
    let chosen = |format: &&str| arguments.iter().any(|argument| argument == format);
    let all = !FORMATS.iter().any(chosen);
    let formats: Vec<&str> = FORMATS.into_iter().filter(|format| all || chosen(format)).collect();
    let team = Team::new(threads, Isa::from_env()?)?;
    let weights = Weights::new();
    println!("{}, {threads} threads; medians of {ROUNDS}, shares of limits measured in turn", team.isa().name());
    println!(
        "format    rows x cols | GB/s read | GB/s and share of 1 token,  2,  4,  8 | peak | Gop/s and share of 16 tokens, 512"
    );
    for format in formats {
        let operation = if format.starts_with("int") { Operation::Int8 } else { Operation::F32 };
        for (rows, cols) in SHAPES {
            let matrices = weights.matrices(format, rows, cols);
            let size = bytes(format, rows, cols) as f64 / 1e9;
            let flops = 2.0 * (rows * cols) as f64 / 1e9;
            let mut columns = [const { Vec::new() }; 8];
            for _ in 0..ROUNDS {
                columns[0].push(bandwidth(&team, &weights.packed));
                for (column, n) in [1, 2, 4, 8].into_iter().enumerate() {
                    columns[1 + column].push(size / product(&team, &matrices, n));
                }
                columns[5].push(peak(&team, operation));
                for (column, n) in [16, 512].into_iter().enumerate() {
                    columns[6 + column].push(flops * n as f64 / product(&team, &matrices[..1], n));
                }
            }
            let [read, one, two, four, eight, peak, sixteen, many] = columns.map(median);
            print!("{format:>6} {rows:>7} x {cols:<5} | {read:>5.1}");
            for speed in [one, two, four, eight] {
                print!(" | {speed:>5.1} {:.2}", speed / read);
            }
            print!(" | {peak:>6.0}");
            for speed in [sixteen, many] {
                print!(" | {speed:>6.0} {:.2}", speed / peak);
            }
            println!();
        }
    }
    Ok(())
}
