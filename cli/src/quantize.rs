//! `infer quantize`: a folder with packed weights, for `--model`.

use std::time::Instant;

use anyhow::Result;
use infer_runtime::Compute;

use crate::args::{ModelArgs, QuantizeArgs};
use crate::exit::wrong_use;
use crate::interrupt::Interrupts;
use crate::load;
use crate::out_folder::OutFolder;
use crate::terminal;

/// Quantizes and writes.
pub fn run(args: &QuantizeArgs, model_args: &ModelArgs, interrupts: &Interrupts) -> Result<()> {
    if !model_args.q4 && !model_args.q8 && model_args.overrides.is_empty() {
        return Err(wrong_use("quantize: expected --q4, --q8 or --override, found none of them"));
    }
    let out = OutFolder::create(&args.out, args.force, model_args.model.as_deref(), interrupts)?;
    let outline = load::outline(model_args, load::options(model_args, Compute::Auto)?)?;
    let start = Instant::now();
    let written = outline.write_packed(out.temporary())?;
    out.finish()?;
    let source = outline.checkpoint().total_bytes();
    let seconds = start.elapsed().as_secs_f64();
    terminal::note(&format!(
        "infer: quantized {} to {} in {seconds:.1} s, {:.2} GB/s; {:.2} bits per weight",
        terminal::bytes(source),
        terminal::bytes(written),
        source as f64 / 1e9 / seconds.max(1e-9),
        outline.quant_plan().bits_per_weight(),
    ));
    Ok(())
}
