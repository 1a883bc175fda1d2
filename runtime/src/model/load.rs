//! From files to a model, in the order in which things are validated: options, files and their headers, config,
//! tensors, vocabulary, memory. Nothing large is allocated before the last of them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use infer_kernels::{Isa, KernelError, Team};

use super::engine::Engine;
use super::outline::Outline;
use super::weights::Weights;
use super::{Inner, Model};
use crate::backend::Backend;
use crate::backend::cpu::CpuBackend;
use crate::checksum::Checksum;
use crate::error::{Error, Result};
use crate::generation_config;
use crate::kv_cache::{KvPool, group_layers};
use crate::load::{Checkpoint, LARGEST_CONFIG, ModelFiles, default_threads};
use crate::options::{LoadOptions, Notice, Progress};
use crate::quantize::cache::Request;
use crate::quantize::keeping::Keeping;
use crate::quantize::{PackedCache, QuantPlan};
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
    if let Some(tokenizer) = outline.tokenizer.usable() {
        end_tokens.extend(tokenizer.eos_id());
        end_tokens.extend(outline.chat_template.usable().and_then(|template| template.end_of_turn(tokenizer)));
    }

    let threads = outline.options.threads.unwrap_or_else(default_threads);
    let (groups, slots) = group_layers(&outline.spec, kv);
    // Before the weights, which take longer: the system may not give so many threads.
    let team = Team::new(threads, Isa::from_env()?)?;
    let (weights, keeping) = load_weights(&outline, threads)?;
    let Outline { files, options, spec, checkpoint, unused_tensors, quant_plan, tokenizer, chat_template } = outline;
    let backend = Backend::Cpu(CpuBackend::new(Arc::clone(&spec), weights, slots.clone(), team, options.compute));
    let room = |available: u64| available.saturating_sub(memory_plan.weights).saturating_sub(memory_plan.scratch);
    let pool = KvPool::new(groups, memory_plan.available.map_or(u64::MAX, room));
    Ok(Model(Arc::new(Inner {
        memory_plan,
        prefill_chunk,
        engine: Engine::new(spec, backend, pool, slots, keeping),
        tokenizer,
        tokenizer_path: files.path(TOKENIZER),
        chat_template,
        sampling_defaults,
        stop_tokens: StopTokens::new(end_tokens),
        fingerprint: fingerprint(&files, &checkpoint, &quant_plan)?,
        unused_tensors,
    })))
}

/// Loads the weights. Those that are to be quantized come from the cache, if there is one, and are perhaps still on
/// their way to its disk.
fn load_weights(outline: &Outline, threads: usize) -> Result<(Weights, Option<Keeping>)> {
    let Outline { files, options, spec, checkpoint, quant_plan: plan, .. } = outline;
    let start = Instant::now();
    let pool = quantizing_pool(threads)?;
    let notify = |notice| {
        if let Some(notices) = &options.notices {
            notices(notice);
        }
    };
    let quantizes = plan.quantizes() && checkpoint.packed().is_none();
    let source_bytes = checkpoint.total_bytes();
    reporting(options, source_bytes, |progress| {
        let kept = match &options.cache {
            Some(folder) if quantizes && (files.are_in_folder() || checkpoint.is_random()) => {
                let request = Request { spec, checkpoint, plan, pool: &pool, progress, notices: &notify };
                PackedCache::new(folder).open(&request)?
            }
            _ => None,
        };
        let packed = kept.as_ref().map_or(checkpoint, |kept| &kept.checkpoint);
        let weights = Weights::load(spec, packed, plan, &pool, progress)?;
        if quantizes && kept.is_none() {
            let (packed_bytes, elapsed) = (plan.memory_bytes(), start.elapsed());
            notify(Notice::Quantized { source_bytes, packed_bytes, elapsed, path: None });
        }
        Ok((weights, kept.and_then(|kept| kept.keeping)))
    })
}

/// Reports progress in order, whatever threads it comes from: `work` is given a function to call with numbers of bytes.
pub(crate) fn reporting<R>(
    options: &LoadOptions,
    total: u64,
    work: impl FnOnce(&(dyn Fn(u64) + Sync)) -> Result<R>,
) -> Result<R> {
    let done = Mutex::new(0);
    let report = |progress| {
        if let Some(report) = &options.progress {
            report(progress);
        }
    };
    let result = work(&|n_bytes| {
        // Held while reporting, so that reports come one at a time and never go back.
        let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
        *done = total.min(*done + n_bytes);
        report(Progress { done: *done, total });
    })?;
    report(Progress { done: total, total });
    Ok(result)
}

/// Threads that quantize.
pub(crate) fn quantizing_pool(threads: usize) -> Result<rayon::ThreadPool> {
    let threads = threads.min(default_threads());
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|index| format!("load {index}"));
    Ok(pool.build().map_err(|error| KernelError::Threads { threads, reason: error.to_string() })?)
}

/// Tells models apart: config.json, the names, types and shapes of all tensors, a few bytes of some, and the format
/// that the weights are computed in.
fn fingerprint(files: &ModelFiles, checkpoint: &Checkpoint, plan: &QuantPlan) -> Result<String> {
    /// Bytes are taken from so many tensors at most: each may cost a read from the disk.
    const SAMPLED_TENSORS: usize = 256;
    const SAMPLED_BYTES: usize = 64;
    fn middle(bytes: &[u8]) -> &[u8] {
        let middle = bytes.len() / 2;
        bytes.get(middle..bytes.len().min(middle + SAMPLED_BYTES)).unwrap_or_default()
    }
    let mut checksum = Checksum::new();
    if let Some(file) = files.read("config.json", LARGEST_CONFIG)? {
        checksum.update(&file.bytes);
    }
    checksum.update(plan.summary().as_bytes());
    // Those of a packed file come from it, and from nowhere else.
    let packed = checkpoint.packed().map(|packed| packed.matrices.values()).into_iter().flatten();
    for matrix in packed.take(SAMPLED_TENSORS) {
        checksum.update(middle(&matrix.bytes));
    }
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
            checksum.update(middle(&tensor.bytes));
            // A look at a large page of a file makes all of it resident.
            if plan.quantizes() {
                tensor.bytes.release(0..tensor.bytes.len());
            }
        }
    }
    Ok(checksum.finish())
}
