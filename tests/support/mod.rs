//! What the tests of whole models share: where the models lie, what is expected of them, how logits are compared.

// Each test binary uses a part of this.
#![allow(dead_code)]

use std::path::{Path, PathBuf};

use infer_runtime::{
    AddSpecial, Compute, Event, GenerateOptions, LoadOptions, Logits, Model, SamplingOptions, Session, StopReason,
    StopTokens,
};
use safetensors::{Dtype, SafeTensors};

/// How far logits may be from the reference's, in f32.
pub const TOLERANCE: f32 = 1e-4;

/// The root of the workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The demo model, which is always there.
pub fn demo() -> PathBuf {
    root().join("cli/demo")
}

/// Exact arithmetic on two threads.
pub fn exact() -> LoadOptions {
    LoadOptions { compute: Compute::F32, threads: Some(2), ..LoadOptions::default() }
}

/// The demo model with exact arithmetic.
pub fn exact_demo() -> Model {
    Model::load(demo(), exact()).expect("the demo model loads")
}

/// Greedy decoding of `n` tokens that no token ends.
pub fn greedy(n: usize) -> GenerateOptions {
    GenerateOptions {
        max_tokens: Some(n),
        sampling: Some(SamplingOptions::greedy()),
        stop_tokens: Some(StopTokens::default()),
        ..GenerateOptions::default()
    }
}

/// An answer: its ids, its text, and why it ended.
#[derive(Debug, PartialEq)]
pub struct Answer {
    pub ids: Vec<u32>,
    pub text: String,
    pub reason: StopReason,
}

/// Runs a generation to its end.
pub fn answer(session: &mut Session, options: GenerateOptions) -> Answer {
    let (mut ids, mut text) = (Vec::new(), String::new());
    for event in session.generate(options).expect("generation begins") {
        let event = event.expect("a token");
        text.push_str(event.text());
        match event {
            Event::Token { id, .. } => ids.push(id),
            Event::Done { reason, .. } => return Answer { ids, text, reason },
            other => panic!("unknown event {other:?}"),
        }
    }
    panic!("the generation has no last event")
}

/// The ids of a text.
pub fn encode(model: &Model, text: &str) -> Vec<u32> {
    model.tokenizer().and_then(|tokenizer| tokenizer.encode(text, AddSpecial::Yes)).expect("ids")
}

/// A session that has read a text.
pub fn session_with(model: &Model, text: &str) -> Session {
    let mut session = model.session();
    session.prefill(&encode(model, text)).expect("prefill");
    session
}

/// The bits of logits, for comparing them exactly.
pub fn bits(logits: Option<&[f32]>) -> Vec<u32> {
    logits.expect("logits are known").iter().map(|logit| logit.to_bits()).collect()
}

/// A file of expected tensors.
pub struct Expected(Vec<u8>);

impl Expected {
    pub fn read(path: &Path) -> Expected {
        Expected(std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    }

    fn data(&self, name: &str, dtype: Dtype) -> Option<Vec<u8>> {
        let file = SafeTensors::deserialize(&self.0).expect("a safetensors file");
        let tensor = file.tensor(name).ok()?;
        assert_eq!(tensor.dtype(), dtype, "{name}");
        Some(tensor.data().to_vec())
    }

    pub fn ids(&self, name: &str) -> Option<Vec<u32>> {
        let data = self.data(name, Dtype::I64)?;
        Some(data.as_chunks().0.iter().map(|&id| u32::try_from(i64::from_le_bytes(id)).expect("an id")).collect())
    }

    pub fn floats(&self, name: &str) -> Vec<f32> {
        let data = self.data(name, Dtype::F32).unwrap_or_else(|| panic!("{name} is missing"));
        data.as_chunks().0.iter().map(|&value| f32::from_le_bytes(value)).collect()
    }
}

/// The largest difference between two rows of logits; infinite if they have different lengths or one is NaN.
pub fn difference(found: &[f32], expected: &[f32]) -> f32 {
    if found.len() != expected.len() {
        return f32::INFINITY;
    }
    let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, |largest, d| if d.is_nan() { f32::INFINITY } else { largest.max(d) })
}

/// The largest difference between the rows `rows` of `found` and the rows of `expected`, which are those.
pub fn difference_of_rows(found: &Logits, rows: impl IntoIterator<Item = usize>, expected: &[f32]) -> f32 {
    let expected = expected.chunks(found.vocab_size());
    rows.into_iter().zip(expected).map(|(row, expected)| difference(found.row(row), expected)).fold(0.0, f32::max)
}

/// The lowest id among the largest logits.
pub fn best(logits: &[f32]) -> u32 {
    let best = logits.iter().zip(0..).fold(
        (f32::NEG_INFINITY, 0),
        |best, (&logit, id)| {
            if logit > best.0 { (logit, id) } else { best }
        },
    );
    best.1
}

/// The trained models that are here, with the names of their expectations: the demo always, others where `../shared` has
/// them.
pub fn trained_models() -> Vec<(&'static str, PathBuf)> {
    let mut models = vec![("fairy-llama", demo())];
    for name in ["fairy-mixtral", "fairy-phi", "stories260k"] {
        let folder = root().join("../shared/models").join(name);
        if folder.exists() {
            models.push((name, folder));
        } else {
            println!("skipped: {} is not here", folder.display());
        }
    }
    models
}

/// The logarithms of the probabilities that logits stand for.
pub fn log_probabilities(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    logits.iter().map(|&logit| f64::from(logit - max) - sum.ln()).collect()
}

/// The mean Kullback-Leibler divergence of the predictions `q` from `p`, which are logarithms of probabilities.
pub fn mean_divergence(p: &[Vec<f64>], q: &[Vec<f64>]) -> f64 {
    let of_row = |(p, q): (&Vec<f64>, &Vec<f64>)| p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
    p.iter().zip(q).map(of_row).sum::<f64>() / p.len() as f64
}
