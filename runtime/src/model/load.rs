//! From files to a model, in the order in which things are validated: options, files and their headers, config,
//! tensors, vocabulary, memory. Nothing large is allocated before the last of them.

use std::num::NonZero;
use std::sync::{Arc, Mutex, PoisonError};

use infer_kernels::cpu::matrix::ElementType;
use infer_kernels::{Isa, KernelError, Team};

use super::arch::spec_from;
use super::engine::{Engine, MAX_ROWS};
use super::spec::{FeedForward, Linear, Mlp, Spec};
use super::weights::Weights;
use super::{Inner, Model};
use crate::backend::Backend;
use crate::backend::cpu::CpuBackend;
use crate::checksum::Checksum;
use crate::error::{Error, Result};
use crate::generation_config;
use crate::kv_cache::{KvPool, group_layers};
use crate::load::{Checkpoint, Config, Dtype, ModelFiles, PlanOptions, available_memory, check_tensors, plan_memory};
use crate::options::{LoadOptions, Progress, WeightFormat};
use crate::stop::StopTokens;
use crate::text_files::{Companion, TOKENIZER};

/// Multiply-adds of a chunk of prefill: about a second of work for a small machine, which is how long a cancelled
/// prefill may go on.
const CHUNK_WORK: usize = 100_000_000_000;
/// The least tokens of a chunk: with fewer, reading the weights would take longer than computing with them.
const LEAST_CHUNK: usize = 32;

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

pub(super) fn load(files: &ModelFiles, options: &LoadOptions) -> Result<Model> {
    let checkpoint = Checkpoint::open(files)?;
    let config = Config::read(files)?;
    let spec = Arc::new(spec_from(&config, &checkpoint)?);
    let checked = check_tensors(&spec, &checkpoint)?;

    let tokenizer = Companion::tokenizer(files);
    let chat_template = Companion::chat_template(files);
    if let Some(tokenizer) = tokenizer.usable()
        && tokenizer.vocab_size() > spec.vocab_size
    {
        let (found, expected) = (tokenizer.vocab_size(), spec.vocab_size);
        let problem = format!("expected ids below {expected}, the rows of the embedding, found id {}", found - 1);
        return Err(Error::Tokenizer { path: tokenizer.path().to_owned(), problem });
    }
    let (mut end_tokens, sampling_defaults) = generation_config::read(files)?;
    if let Some(tokenizer) = tokenizer.usable() {
        end_tokens.extend(tokenizer.eos_id());
        end_tokens.extend(chat_template.usable().and_then(|template| template.end_of_turn(tokenizer)));
    }

    let threads = options.threads.unwrap_or_else(usable_threads);
    let kv = options.kv_type(stored_bf16(&spec, &checkpoint));
    let prefill_chunk = prefill_chunk(&spec);
    // Weights that stay where they are mapped are taken already.
    let mapped = if options.weights == WeightFormat::AsStored { checkpoint.total_bytes() } else { 0 };
    let memory_plan = plan_memory(
        &spec,
        &checkpoint,
        &PlanOptions {
            weights: options.weights,
            kv,
            context: options.context,
            beyond_context: options.beyond_context,
            chunk: prefill_chunk,
            available: options.memory.or_else(|| available_memory(mapped)),
        },
    )?;
    let (groups, slots) = group_layers(&spec, kv);
    // Before the weights, which take longer: the system may not give so many threads.
    let team = Team::new(threads, Isa::from_env()?)?;
    let weights = load_weights(&spec, &checkpoint, options, threads)?;
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
        fingerprint: fingerprint(files, &checkpoint, options)?,
        unused_tensors: checked.unused,
    })))
}

/// Whether the embedding is stored in bf16, and so, as a rule, everything.
fn stored_bf16(spec: &Spec, checkpoint: &Checkpoint) -> bool {
    let dtype = checkpoint.dtype(&spec.embedding.weight.tensor);
    dtype.and_then(Dtype::element_type) == Some(ElementType::Bf16)
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

/// Tokens of a chunk of prefill: a matter of the model alone, so that the same prompt gives the same bits anywhere.
fn prefill_chunk(spec: &Spec) -> usize {
    let linear = |linear: &Linear| linear.weight.rows.saturating_mul(linear.weight.cols);
    let network = |network: &FeedForward| {
        let gate = network.gate.as_ref().map_or(0, linear);
        gate.saturating_add(linear(&network.up)).saturating_add(linear(&network.down))
    };
    let layers = spec.layers.iter().map(|layer| {
        let attention = &layer.attention;
        let projections = [&attention.query, &attention.key, &attention.value, &attention.output].map(linear);
        let mlp = match &layer.mlp {
            Mlp::Dense(dense) => network(dense),
            Mlp::Experts { routing, experts, .. } => {
                experts.first().map_or(0, network).saturating_mul(routing.n_chosen())
            }
        };
        projections.into_iter().fold(mlp, usize::saturating_add)
    });
    let work = layers.fold(0, usize::saturating_add);
    (CHUNK_WORK / work.max(1) / 16 * 16).clamp(LEAST_CHUNK, MAX_ROWS)
}

/// Tells models apart: config.json, the names, types and shapes of all tensors, a few bytes of some, and the format
/// that the weights are computed in.
fn fingerprint(files: &ModelFiles, checkpoint: &Checkpoint, options: &LoadOptions) -> Result<String> {
    /// Bytes are taken from so many tensors at most: each may cost a read from the disk.
    const SAMPLED_TENSORS: usize = 256;
    const SAMPLED_BYTES: usize = 64;
    let mut checksum = Checksum::new();
    if let Some(file) = files.read("config.json", generation_config::LARGEST_CONFIG)? {
        checksum.update(&file.bytes);
    }
    checksum.update(format!("{:?}", options.weights).as_bytes());
    let step = checkpoint.len() / SAMPLED_TENSORS + 1;
    for (index, name) in checkpoint.names().enumerate() {
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
