//! The time that choosing a token from the logits of a vocabulary of 128,256 takes, with one thread.
//! `cargo bench -p infer-runtime --bench sampling`; INFER_ISA as ever.

mod timing;

use infer_runtime::{Sampler, SamplingOptions};
use timing::{median, seconds};

const VOCABULARY: usize = 128_256;

/// Draws of a measurement, of which the median counts.
const DRAWS: usize = 301;

/// About normal, the same in every run, times `spread`.
fn logits(spread: f32) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..VOCABULARY).map(|_| spread * (0..12).map(|_| uniform()).sum::<f32>()).collect()
}

fn main() -> infer_runtime::Result<()> {
    let plain = SamplingOptions { seed: Some(1), ..SamplingOptions::plain() };
    let cases = [
        ("greedy", SamplingOptions { temperature: 0.0, ..plain.clone() }),
        ("temperature", SamplingOptions { temperature: 0.8, ..plain.clone() }),
        ("temperature, top-p 0.95", SamplingOptions { temperature: 0.8, top_p: 0.95, ..plain.clone() }),
        ("top-k 40", SamplingOptions { top_k: 40, ..plain.clone() }),
        ("top-k 40, top-p 0.95, min-p 0.05", SamplingOptions { top_k: 40, top_p: 0.95, min_p: 0.05, ..plain.clone() }),
        (
            "repetition penalty over 4096 tokens",
            SamplingOptions { repetition_penalty: 1.1, top_k: 40, ..plain.clone() },
        ),
    ];
    let tokens: Vec<u32> = (0..4096u32).map(|i| i.wrapping_mul(2_654_435_761) % VOCABULARY as u32).collect();
    println!("{VOCABULARY} logits; median of {DRAWS} draws in microseconds: flat logits, spread ones, peaked ones");
    for (name, options) in cases {
        print!("{name:>36}");
        for spread in [0.5, 2.0, 5.0] {
            let logits = logits(spread);
            let mut sampler = Sampler::new(options.clone())?;
            let mut times = Vec::new();
            for _ in 0..DRAWS {
                let mut logits = logits.clone();
                let mut drawn = Ok(0);
                times.push(seconds(|| drawn = sampler.sample(&mut logits, &tokens, 0)));
                std::hint::black_box(drawn?);
            }
            print!(" {:>8.1}", 1e6 * median(times));
        }
        println!();
    }
    Ok(())
}
