//! Times mistral.rs with the models that peers.py makes. On the command line the model and the cases, each as
//! PHASE:TOKENS:DEPTH; on stdout a JSON object with a speed for each case. peers.py makes a cargo project around it,
//! which depends on mistralrs, and puts a tokenizer beside the model; RAYON_NUM_THREADS sets the threads.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use mistralrs::{GgufModelBuilder, Model, NormalRequest, Request, RequestMessage, Response, SamplingParams};

/// Seconds for a prompt of `n_prompt` tokens and `n` more.
async fn seconds(model: &Model, n_prompt: usize, n: usize) -> Result<f64> {
    let tokens = (0..n_prompt).map(|i| 7919 * (i + 1) as u32 % 32_000).collect();
    let sampling = SamplingParams { max_len: Some(n), ..SamplingParams::deterministic() };
    let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
    let message = RequestMessage::CompletionTokens(tokens);
    let request = NormalRequest::new_simple(message, sampling, sender, 0, None, None);
    let start = Instant::now();
    model.inner().get_sender(None)?.send(Request::Normal(Box::new(request))).await?;
    match receiver.recv().await.context("no answer")? {
        Response::CompletionDone(done) if done.usage.completion_tokens == n => Ok(start.elapsed().as_secs_f64()),
        Response::CompletionDone(done) => bail!("{} tokens instead of {n}", done.usage.completion_tokens),
        Response::InternalError(error) | Response::ValidationError(error) => bail!("{error}"),
        _ => bail!("an answer of another kind"),
    }
}

/// Tokens per second. A prompt's time includes its first token; that of decoding is what the tokens after it take.
async fn speed(model: &Model, phase: &str, tokens: usize, depth: usize) -> Result<f64> {
    if phase == "prefill" {
        return Ok(tokens as f64 / seconds(model, tokens, 1).await?);
    }
    let first = seconds(model, depth.max(1), 1).await?;
    Ok(tokens as f64 / (seconds(model, depth.max(1), tokens + 1).await? - first))
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().context("expected a model")?;
    let path = Path::new(&path);
    let folder = path.parent().context("no folder")?.to_string_lossy().into_owned();
    let file = path.file_name().context("no file")?.to_string_lossy();
    let model = GgufModelBuilder::new(&folder, vec![file])
        .with_tok_model_id(&folder)
        .with_prefix_cache_n(None)
        .with_force_cpu()
        .build()
        .await?;
    seconds(&model, 8, 1).await?;
    let mut speeds = Vec::new();
    for case in arguments {
        let parts: Vec<&str> = case.split(':').collect();
        let [phase, tokens, depth] = parts[..] else { bail!("expected PHASE:TOKENS:DEPTH, found {case}") };
        speeds.push(speed(&model, phase, tokens.parse()?, depth.parse()?).await?);
    }
    println!("{{\"speeds\": {speeds:?}, \"build\": \"target-cpu=native\"}}");
    Ok(())
}
