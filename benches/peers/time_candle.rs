//! Times candle's quantized llama with the models that peers.py makes. On the command line the model and the cases, each
//! as PHASE:TOKENS:DEPTH; on stdout a JSON object with a speed for each case. peers.py makes a cargo project around it,
//! which depends on candle-core and candle-transformers; RAYON_NUM_THREADS sets the threads.

use std::fs::File;
use std::io::BufReader;
use std::time::Instant;

use candle_core::quantized::gguf_file::Content;
use candle_core::{Device, Result, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;

/// Gives `n` tokens to the model behind `depth` others, `per_call` at a time, and waits for the logits of the last.
fn feed(model: &mut ModelWeights, depth: usize, n: usize, per_call: usize) -> Result<()> {
    for start in (0..n).step_by(per_call) {
        let count = per_call.min(n - start);
        let tokens: Vec<u32> = (0..count).map(|i| 7919 * (start + i + 1) as u32 % 32_000).collect();
        let tokens = Tensor::new(tokens.as_slice(), &Device::Cpu)?.unsqueeze(0)?;
        let logits = model.forward(&tokens, depth + start)?.flatten_all()?.to_vec1::<f32>()?;
        assert!(logits.iter().all(|logit| logit.is_finite()), "logits are not finite");
    }
    Ok(())
}

/// Tokens per second. A model that is given tokens for position 0 forgets all before; a prompt goes in at once, because
/// a later part of it would be masked as if nothing were before it.
fn speed(model: &mut ModelWeights, phase: &str, tokens: usize, depth: usize) -> Result<f64> {
    feed(model, 0, depth, depth.max(1))?;
    let start = Instant::now();
    feed(model, depth, tokens, if phase == "prefill" { tokens } else { 1 })?;
    Ok(tokens as f64 / start.elapsed().as_secs_f64())
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut file = BufReader::new(File::open(arguments.next().expect("a model"))?);
    let content = Content::read(&mut file)?;
    let mut model = ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?;
    speed(&mut model, "prefill", 8, 0)?;
    let mut speeds = Vec::new();
    for case in arguments {
        let parts: Vec<&str> = case.split(':').collect();
        let number = |i: usize| parts[i].parse().expect("a number");
        speeds.push(speed(&mut model, parts[0], number(1), number(2))?);
    }
    println!("{{\"speeds\": {speeds:?}, \"build\": \"target-cpu=native\"}}");
    Ok(())
}
