//! From files to a model, in the order in which things are validated: options, files and their headers, config,
//! tensors, vocabulary, memory. Nothing large is allocated before the last of them.

use std::num::NonZero;
use std::sync::{Arc, Mutex, PoisonError};

use infer_kernels::{Isa, KernelError, Team};

use super::engine::Engine;
use super::outline::Outline;
use super::spec::Spec;
use super::weights::Weights;
use super::{Inner, Model};
use crate::backend::Backend;
use crate::backend::cpu::CpuBackend;
use crate::checksum::Checksum;
use crate::error::{Error, Result};
use crate::generation_config;
use crate::kv_cache::{KvPool, group_layers};
use crate::load::{Checkpoint, LARGEST_CONFIG, ModelFiles};
use crate::options::{LoadOptions, Progress};
use crate::stop::StopTokens;
use crate::text_files::TOKENIZER;

/// Options that are wrong for every model.
pub(super) fn check_options(options: &LoadOptions) -> Result<()> {
    for (option, value) in [("threads", options.threads), ("context", options.context)] {
        if value == Some(0) {
            return Err(Error::InvalidOption { option, expected: "1 or more".to_owned(), found: "0".to_owned() });
        }
    }
    Isa::from_env()?;
    Ok(())
}

pub(super) fn load(outline: Outline) -> Result<Model> {
    let (prefill_chunk, kv) = (outline.prefill_chunk(), outline.kv_type());
    let (mut end_tokens, sampling_defaults) = generation_config::read(&outline.files)?;
    let memory_plan = outline.memory_plan()?;
    let Outline { files, options, spec, checkpoint, unused_tensors, tokenizer, chat_template } = outline;
    if let Some(tokenizer) = tokenizer.usable() {
        end_tokens.extend(tokenizer.eos_id());
        end_tokens.extend(chat_template.usable().and_then(|template| template.end_of_turn(tokenizer)));
    }

    let threads = options.threads.unwrap_or_else(usable_threads);
    let (groups, slots) = group_layers(&spec, kv);
    // Before the weights, which take longer: the system may not give so many threads.
    let team = Team::new(threads, Isa::from_env()?)?;
    let weights = load_weights(&spec, &checkpoint, &options, threads)?;
    let backend = Backend::Cpu(CpuBackend::new(Arc::clone(&spec), weights, slots.clone(), team));
    let room = |available: u64| available.saturating_sub(memory_plan.weights).saturating_sub(memory_plan.scratch);
    let pool = KvPool::new(groups, memory_plan.available.map_or(u64::MAX, room));
    Ok(Model(Arc::new(Inner {
        memory_plan,
        prefill_chunk,
        engine: Engine::new(spec, backend, pool, slots),
        tokenizer,
        tokenizer_path: files.path(TOKENIZER),
        chat_template,
        sampling_defaults,
        stop_tokens: StopTokens::new(end_tokens),
        fingerprint: fingerprint(&files, &checkpoint, &options)?,
        unused_tensors,
    })))
}

/// What the process may use of the machine, by its affinity and its cgroup's quota.
fn usable_threads() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

/// Loads the weights and reports progress in order, whatever threads it comes from.
fn load_weights(spec: &Spec, checkpoint: &Checkpoint, options: &LoadOptions, threads: usize) -> Result<Weights> {
    let threads = threads.min(usable_threads());
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("load {index}"))
        .build()
        .map_err(|error| KernelError::Threads { threads, reason: error.to_string() })?;
    let total = checkpoint.total_bytes();
    let done = Mutex::new(0);
    let report = |progress| {
        if let Some(report) = &options.progress {
            report(progress);
        }
    };
    let weights = Weights::load(spec, checkpoint, options.weights, &pool, &|n_bytes| {
        // Held while reporting, so that reports come one at a time and never go back.
        let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
        *done = total.min(*done + n_bytes);
        report(Progress { done: *done, total });
    })?;
    report(Progress { done: total, total });
    Ok(weights)
}

/// Tells models apart: config.json, the names, types and shapes of all tensors, a few bytes of some, and the format
/// that the weights are computed in.
fn fingerprint(files: &ModelFiles, checkpoint: &Checkpoint, options: &LoadOptions) -> Result<String> {
    /// Bytes are taken from so many tensors at most: each may cost a read from the disk.
    const SAMPLED_TENSORS: usize = 256;
    const SAMPLED_BYTES: usize = 64;
    let mut checksum = Checksum::new();
    if let Some(file) = files.read("config.json", LARGEST_CONFIG)? {
        checksum.update(&file.bytes);
    }
    checksum.update(format!("{:?}", options.weights).as_bytes());
    let step = checkpoint.len() / SAMPLED_TENSORS + 1;
    for (index, name) in checkpoint.names().enumerate() {
        // The name and the shape of random weights say all about them.
        if checkpoint.is_random() {
            checksum.update(format!("random {name} {:?}", checkpoint.shape(name)).as_bytes());
            continue;
        }
        let Some(tensor) = checkpoint.tensor(name) else { continue };
        checksum.update(format!("{name} {} {:?}", tensor.dtype, tensor.shape).as_bytes());
        if index % step == 0 {
            let middle = tensor.bytes.len() / 2;
            let end = tensor.bytes.len().min(middle + SAMPLED_BYTES);
            checksum.update(tensor.bytes.get(middle..end).unwrap_or_default());
        }
    }
    Ok(checksum.finish())
}
