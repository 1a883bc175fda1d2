//! The speed of quantizing bf16 weights in memory, for each format and tier, as it is done on load: 16 rows to a task,
//! from stored weights to f32 and from there to packed ones. `cargo bench -p infer-kernels --bench quantize [threads]`;
//! without it, one thread and all.

mod timing;

use half::bf16;
use infer_kernels::cpu::matrix::ElementType;
use infer_kernels::quant::{PANEL_ROWS, int4, int8};
use infer_kernels::{Isa, KernelError};
use timing::{median, seconds};

const COLS: usize = 4096;

/// Rows of a measurement: with int4, a quarter of a second or so for one thread.
const ROWS: usize = 4096;

/// Rounds of a measurement, of which the median counts.
const ROUNDS: usize = 5;

type Quantize = fn(Isa, &[f32], usize, &mut [u8]);

/// Quantizes `source`, [ROWS, COLS] in bf16, a part on each thread.
fn quantize_all(isa: Isa, quantize: Quantize, threads: usize, source: &[u8], packed: &mut [u8]) {
    let panels = ROWS / PANEL_ROWS;
    let (source_bytes, packed_bytes) = (source.len() / panels, packed.len() / panels);
    let share = panels.div_ceil(threads);
    std::thread::scope(|scope| {
        for (source, packed) in source.chunks(share * source_bytes).zip(packed.chunks_mut(share * packed_bytes)) {
            scope.spawn(move || {
                let mut values = vec![0.0; PANEL_ROWS * COLS];
                for (source, packed) in source.chunks(source_bytes).zip(packed.chunks_mut(packed_bytes)) {
                    isa.to_f32(ElementType::Bf16, source, &mut values);
                    quantize(isa, &values, COLS, packed);
                }
            });
        }
    });
}

fn main() -> Result<(), KernelError> {
    let threads: Option<usize> = std::env::args().find_map(|argument| argument.parse().ok());
    let all = std::thread::available_parallelism().map_or(1, |n| n.get());
    let threads = threads.map_or(vec![1, all], |n| vec![n]);
    // Sums of uniform numbers, nearly normal.
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let weights = (0..ROWS * COLS).map(|_| bf16::from_f32(0.1 * (uniform() + uniform() + uniform() + uniform())));
    let source: Vec<u8> = weights.flat_map(bf16::to_le_bytes).collect();
    println!("{ROWS} x {COLS} weights in bf16; medians of {ROUNDS}");
    println!("  tier    | format | threads | 10^6 weights/s | GB/s of source | seconds for 8 x 10^9 weights");
    let formats: [(&str, Option<usize>, Quantize); 2] = [
        ("int4", int4::packed_bytes(ROWS, COLS), Isa::quantize_int4),
        ("int8", int8::packed_bytes(ROWS, COLS), Isa::quantize_int8),
    ];
    for isa in Isa::available() {
        for (name, bytes, quantize) in formats {
            let mut packed = vec![0; bytes.unwrap_or(0)];
            for threads in &threads {
                let mut round = || seconds(|| quantize_all(isa, quantize, *threads, &source, &mut packed));
                let speed = (ROWS * COLS) as f64 / median((0..ROUNDS).map(|_| round()).collect());
                let (millions, gb_s, eight) = (speed / 1e6, 2.0 * speed / 1e9, 8e9 / speed);
                println!(
                    "{:>9} | {name:>6} | {threads:>7} | {millions:>14.0} | {gb_s:>14.2} | {eight:>10.1}",
                    isa.name()
                );
            }
        }
    }
    Ok(())
}
