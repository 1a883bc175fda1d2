//! Opens the model that the flags name, with the options that they set.

use std::ops::Deref;
use std::sync::Arc;

use anyhow::Result;
use infer_kernels::Isa;
use infer_runtime::{Compute, KvType, LoadOptions, Model, Notice, Outline, PackedCache, WeightFormat};

use crate::args::{ComputeArg, KvArg, ModelArgs};
use crate::demo;
use crate::exit::{self, wrong_use};
use crate::terminal::{self, Unit};

/// The library's options for these flags; `compute` is the arithmetic without `--compute`.
pub fn options(args: &ModelArgs, compute: Compute) -> Result<LoadOptions> {
    let weights = match (args.q8, args.q4) {
        (false, false) => WeightFormat::AsStored,
        (true, false) => WeightFormat::Int8,
        (false, true) => WeightFormat::Int4,
        // clap refuses this on one side of a subcommand's name, but not across it.
        (true, true) => return Err(wrong_use("--q4 and --q8 cannot be used together")),
    };
    Ok(LoadOptions {
        weights,
        overrides: args.overrides.clone(),
        cache: if args.no_cache { None } else { PackedCache::default_folder() },
        context: args.ctx,
        threads: match args.threads.as_ref().map(|list| list.0.as_slice()) {
            None => None,
            Some([threads]) => Some(*threads),
            Some(_) => return Err(wrong_use("--threads: expected one number; only bench takes a list")),
        },
        compute: match args.compute {
            None => compute,
            Some(ComputeArg::Auto) => Compute::Auto,
            Some(ComputeArg::F32) => Compute::F32,
        },
        kv: args.kv.map(|kv| match kv {
            KvArg::F32 => KvType::F32,
            KvArg::F16 => KvType::F16,
            KvArg::Bf16 => KvType::Bf16,
            KvArg::Q8 => KvType::Int8,
        }),
        memory: args.memory,
        ..LoadOptions::default()
    })
}

/// Reads and checks all but the weights. Loading them draws a progress bar on a terminal.
pub fn outline(args: &ModelArgs, mut options: LoadOptions) -> Result<Outline> {
    let quantizes = options.weights != WeightFormat::AsStored || !options.overrides.is_empty();
    let what = if quantizes { "quantizing" } else { "loading" };
    // A terminal has seen the bar; the model inside the program is quantized in no time.
    listen(&mut options, what, args.verbose || (args.model.is_some() && !terminal::stderr_is_interactive()));
    Ok(match &args.model {
        Some(path) => Outline::open(path, options)?,
        None => Outline::from_bytes(demo::files(), options)?,
    })
}

/// Shows how loading goes on: a bar on a terminal, and a line for what a person has to know. Whether that weights were
/// quantized is such a thing, `tells_success` says.
pub fn listen(options: &mut LoadOptions, what: &'static str, tells_success: bool) {
    // Cleared when the options are dropped, which is when the weights are loaded.
    let bar = terminal::progress_bar(what, &Unit::Bytes);
    let drawn = bar.clone();
    options.progress = Some(Arc::new(move |progress| terminal::advance(&drawn, progress)));
    options.notices = Some(Arc::new(move |notice| {
        if tells_success || !matches!(notice, Notice::Quantized { .. }) {
            bar.suspend(|| terminal::note(&format!("infer: {}", terminal::escape_controls(&notice.to_string()))));
        }
    }));
}

/// The outline of a model for text. Says so if it is the one inside the program.
pub fn for_text(args: &ModelArgs) -> Result<Outline> {
    if args.model.is_none() {
        terminal::note(demo::NOTICE);
    }
    outline(args, options(args, Compute::Auto)?)
}

/// Loads the weights.
pub fn weights(outline: Outline, verbose: bool) -> Result<Loaded> {
    let model = Loaded(outline.load()?);
    if verbose {
        describe(&model)?;
    }
    Ok(model)
}

/// A model. At its end it waits until quantized weights are on the disk, and a person is told why the program does not
/// end.
pub struct Loaded(Model);

impl Deref for Loaded {
    type Target = Model;

    fn deref(&self) -> &Model {
        &self.0
    }
}

impl Loaded {
    /// Waits until quantized weights are on the disk; what goes wrong with that is a line.
    pub fn wait_until_kept(&self) {
        if self.is_being_kept() && terminal::stderr_is_interactive() {
            terminal::note("infer: the quantized weights go to the disk; Ctrl-C ends without keeping them");
        }
        if let Err(error) = self.0.wait_until_kept() {
            terminal::note(&format!("infer: {}", exit::line(&error.into())));
        }
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        self.wait_until_kept();
    }
}

/// What `-v` says of a model.
fn describe(model: &Model) -> Result<()> {
    terminal::note(&format!("architecture: {}", model.spec().architecture));
    terminal::note(&format!("memory: {}", model.memory_plan()));
    terminal::note(&format!("CPU instructions: {}", Isa::from_env()?.name()));
    let unused = model.unused_tensors();
    if !unused.is_empty() {
        terminal::note(&format!("ignored tensors: {}", terminal::escape_controls(&unused.join(", "))));
    }
    terminal::note(&format!("stop tokens: {:?}", model.stop_tokens().ids()));
    Ok(())
}
