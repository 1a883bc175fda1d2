//! Tiny random models of every family against the logits of the reference (see golden/README.md).

mod support;

use std::path::{Path, PathBuf};

use infer_runtime::{LoadOptions, Logits, Model, WeightFormat};
use support::{Expected, TOLERANCE, best, difference, difference_of_rows, exact, root};

/// The folders of golden models, sorted.
fn folders() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join("tests/golden/models")).expect("the golden models");
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    folders.retain(|folder| folder.join("config.json").exists());
    folders.sort();
    assert!(folders.len() > 50, "only {} golden models", folders.len());
    folders
}

fn name(folder: &Path) -> &str {
    folder.file_name().and_then(|name| name.to_str()).expect("a name")
}

/// Runs `check` on every golden model and reports all that fail, each with what it said.
fn for_each_model(options: LoadOptions, check: impl Fn(&str, &Model, &Expected) -> Result<(), String>) {
    let mut failures = Vec::new();
    for folder in folders() {
        let name = name(&folder);
        let outcome = match Model::load(&folder, options.clone()) {
            Ok(model) => check(name, &model, &Expected::read(&folder.join("expected.safetensors"))),
            Err(error) => Err(error.to_string()),
        };
        failures.extend(outcome.err().map(|problem| format!("{name}: {problem}")));
    }
    assert!(failures.is_empty(), "{} golden models fail:\n{}", failures.len(), failures.join("\n"));
}

fn prompt(expected: &Expected) -> Vec<u32> {
    expected.ids("tokens").expect("tokens")
}

/// The rows of the prompt whose logits are expected.
fn rows(expected: &Expected) -> Vec<usize> {
    match expected.ids("rows") {
        Some(rows) => rows.into_iter().map(|row| row as usize).collect(),
        None => (0..prompt(expected).len()).collect(),
    }
}

/// All logits of `prompt`, run in pieces of `sizes`, over and over.
fn in_pieces(model: &Model, prompt: &[u32], sizes: &[usize]) -> Vec<f32> {
    let mut session = model.session();
    let mut values = Vec::new();
    let (mut rest, mut sizes) = (prompt, sizes.iter().cycle());
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.len().min(*sizes.next().expect("a size")));
        values.extend(session.forward(piece).expect("a forward pass").into_values());
        rest = after;
    }
    values
}

fn within(what: &str, difference: f32) -> Result<(), String> {
    if difference <= TOLERANCE { Ok(()) } else { Err(format!("{what}: logits are {difference} apart")) }
}

#[test]
fn prompt_logits_greedy_tokens_and_step_logits_are_the_references() {
    for_each_model(exact(), |_, model, expected| {
        let prompt = prompt(expected);
        let mut session = model.session();
        let logits = session.forward(&prompt).map_err(|error| error.to_string())?;
        within("prompt", difference_of_rows(&logits, rows(expected), &expected.floats("logits")))?;

        let (steps, step_logits) = (expected.ids("steps").expect("steps"), expected.floats("step_logits"));
        let mut expected_steps = steps.iter().zip(step_logits.chunks(logits.vocab_size())).peekable();
        let mut last = logits.row(prompt.len() - 1).to_vec();
        for (step, token) in (0u32..).zip(expected.ids("greedy").expect("greedy")) {
            if let Some((_, row)) = expected_steps.next_if(|(kept, _)| **kept == step) {
                within(&format!("step {step}"), difference(&last, row))?;
            }
            if best(&last) != token {
                return Err(format!("step {step}: token {} is chosen, expected {token}", best(&last)));
            }
            last = session.forward(&[token]).map_err(|error| error.to_string())?.into_values();
        }
        Ok(())
    });
}

#[test]
fn token_by_token_and_in_pieces_equal_one_pass() {
    for_each_model(exact(), |name, model, expected| {
        let prompt = prompt(expected);
        let whole = model.session().forward(&prompt).expect("a forward pass");
        let vocab_size = whole.vocab_size();
        // Dynamic NTK beyond its original length keeps the rotation that keys were written with, and longrope has
        // other factors up to its border than beyond: there, pieces are meant to differ (but for the last row of
        // longrope, whose cache is computed anew).
        if name.contains("dynamic-beyond") {
            return Ok(());
        }
        let compared = if name.contains("longrope") { (prompt.len() - 1) * vocab_size.. } else { 0.. };
        for sizes in [&[1][..], &[16], &[5, 1, 17], &[47]] {
            let pieces = in_pieces(model, &prompt, sizes);
            let (pieces, whole) = (&pieces[compared.clone()], &whole.values()[compared.clone()]);
            within(&format!("pieces of {sizes:?}"), difference(pieces, whole))?;
        }
        Ok(())
    });
}

#[test]
fn logits_are_bit_equal_for_any_number_of_threads() {
    let with_threads = |folder: &Path, weights, threads| -> Logits {
        let options = LoadOptions { weights, threads: Some(threads), ..exact() };
        let model = Model::load(folder, options).unwrap_or_else(|error| panic!("{error}"));
        let prompt = prompt(&Expected::read(&folder.join("expected.safetensors")));
        model.session().forward(&prompt).expect("a forward pass")
    };
    for name in ["llama-gqa", "llama-odd", "mixtral-top2", "phi", "gemma2"] {
        let folder = root().join("tests/golden/models").join(name);
        for weights in [WeightFormat::AsStored, WeightFormat::Int8, WeightFormat::Int4] {
            let one = with_threads(&folder, weights, 1);
            for threads in [2, 3] {
                let found = with_threads(&folder, weights, threads);
                let equal = one.values().iter().zip(found.values()).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(equal, "{name}, {weights:?}: {threads} threads give other bits than one");
            }
        }
    }
}

#[test]
fn quantized_weights_run_in_every_family() {
    for weights in [WeightFormat::Int8, WeightFormat::Int4] {
        for_each_model(LoadOptions { weights, ..exact() }, |_, model, expected| {
            let logits = model.session().forward(&prompt(expected)).map_err(|error| error.to_string())?;
            let reference = expected.floats("logits");
            let spread = reference.iter().fold(0f32, |largest, logit| largest.max(logit.abs()));
            let found = difference_of_rows(&logits, rows(expected), &reference);
            // Widths of 20 to 60 leave little to average over, and a flip of an expert moves a logit far; but what is
            // beyond the spread is wrong, not rounded.
            if found <= 2.0 * spread { Ok(()) } else { Err(format!("{weights:?}: {found} apart, spread {spread}")) }
        });
    }
}
