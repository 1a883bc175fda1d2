//! `infer bench`: how fast a model is, and how much of what the machine can do that is.

mod limits;
mod measure;
mod report;

use anyhow::Result;
use infer_kernels::Isa;
use infer_kernels::cpu::probe::Operation;
use infer_runtime::{Compute, Cost, LoadOptions, Outline, WeightFormat};

use crate::args::{BenchArgs, ModelArgs};
use crate::exit::wrong_use;
use crate::load::{self, Loaded};
use crate::terminal::{self, Unit};
use limits::Limits;
use measure::{Bench, Case, Phase};
use report::{Report, Style};

/// What is measured, for the head of a table and the rows of a file.
struct Subject {
    model: String,
    /// `int4`, `int8`, or the type of the stored weights.
    format: String,
    kv: &'static str,
    isa: &'static str,
    cost: Cost,
}

/// Measures and prints.
pub fn run(args: &BenchArgs, model_args: &ModelArgs) -> Result<()> {
    if args.shape.is_some() && model_args.model.is_some() {
        return Err(wrong_use("--shape and --model cannot be used together"));
    }
    let cases = cases(args)?;
    let mut options = load::options(&ModelArgs { threads: None, ..model_args.clone() }, Compute::Auto)?;
    let needed = cases.iter().map(|case| case.depth + case.tokens).max().unwrap_or(1);
    if let Some(context) = options.context.filter(|&context| context < needed) {
        return Err(wrong_use(format!("--ctx: the measurements need a context of {needed}, found {context}")));
    }
    // Only the speed matters, so a model may go beyond the context that it was made for.
    options.context = Some(options.context.unwrap_or(needed));
    options.beyond_context = true;
    let threads = match &model_args.threads {
        Some(list) => list.0.clone(),
        None => vec![infer_runtime::default_threads()],
    };
    // Before the weights, so that the plan of the memory knows of it.
    let mut limits = Limits::new(Isa::from_env()?)?;
    let (model, subject) = open(args, model_args, options)?;
    let compute = arithmetic(&subject.format, model_args);
    let bench = Bench { model: &model, cost: &subject.cost, compute, repetitions: args.repetitions };
    let style = match (args.json, args.markdown) {
        (true, _) => Style::Json,
        (false, true) => Style::Markdown,
        (false, false) => Style::Text,
    };
    let mut report = Report::new(style, args.profile, subject_line(&subject))?;
    let bar = terminal::progress_bar("measuring", &Unit::Runs);
    bar.set_length((cases.len() * threads.len() * args.repetitions) as u64);
    // By batch, then threads: a reader of the first lines sees the speed of one sequence.
    for batch in &args.batch.0 {
        for &threads in &threads {
            model.set_threads(threads)?;
            limits.set_threads(threads)?;
            for case in cases.iter().filter(|case| case.batch == *batch) {
                let measured = bench.measure(case, &mut limits, args.profile, &|| bar.inc(1))?;
                bar.suspend(|| report.add(&subject, threads, &measured))?;
            }
        }
    }
    drop(bar);
    report.finish()
}

/// Every combination, in the order of the table.
fn cases(args: &BenchArgs) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for &batch in &args.batch.0 {
        for &depth in &args.depth.0 {
            let lists = [(Phase::Prefill, &args.prefill), (Phase::Decode, &args.decode)];
            for (phase, tokens) in lists.into_iter().flat_map(|(phase, list)| list.0.iter().map(move |&n| (phase, n))) {
                if tokens > 0 {
                    cases.push(Case { phase, batch, depth, tokens });
                }
            }
        }
    }
    if cases.is_empty() {
        return Err(wrong_use("-p and -n: expected something to measure, found 0 tokens for both"));
    }
    Ok(cases)
}

fn open(args: &BenchArgs, model_args: &ModelArgs, options: LoadOptions) -> Result<(Loaded, Subject)> {
    let (name, outline) = match &args.shape {
        Some(shape) => {
            let mut options = options;
            // Who asked for a shape may not know that gigabytes are kept.
            load::listen(&mut options, "making weights", true);
            (shape.name().to_owned(), Outline::of_shape(shape, options)?)
        }
        None => {
            let name = model_args.model.as_deref().map_or("demo".to_owned(), |path| {
                path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
            });
            (name, load::outline(model_args, options)?)
        }
    };
    let format = format(&outline);
    let model = load::weights(outline, model_args.verbose)?;
    // The disk's work would be measured with ours.
    model.wait_until_kept();
    let kv = model.kv_type().name();
    let cost = model.cost();
    Ok((model, Subject { model: name, format, kv, isa: Isa::from_env()?.name(), cost }))
}

/// What most weights become.
fn format(outline: &Outline) -> String {
    let weights = |format: WeightFormat| {
        let classes = outline.quant_plan().classes();
        classes.iter().filter(|class| class.format == format).map(|class| class.weights).sum::<u64>()
    };
    let [stored, int8, int4] = [WeightFormat::AsStored, WeightFormat::Int8, WeightFormat::Int4].map(weights);
    if int4 > int8.max(stored) {
        return "int4".to_owned();
    } else if int8 > stored {
        return "int8".to_owned();
    }
    let dtype = outline.checkpoint().dtype(&outline.spec().embedding.weight.tensor);
    dtype.map_or("unknown".to_owned(), |dtype| dtype.to_string().to_lowercase())
}

/// The fastest arithmetic that the machine may use for these weights: what the kernels are compared with, whether they
/// use it or not.
fn arithmetic(format: &str, model_args: &ModelArgs) -> Operation {
    match format {
        _ if model_args.compute == Some(crate::args::ComputeArg::F32) => Operation::F32,
        "int4" | "int8" => Operation::Int8,
        "bf16" => Operation::Bf16,
        _ => Operation::F32,
    }
}

fn subject_line(subject: &Subject) -> String {
    let Subject { model, format, kv, isa, cost } = subject;
    format!("{model}, {format} weights of {:.2} bits, {kv} cache, {isa}", cost.bits_per_weight())
}
