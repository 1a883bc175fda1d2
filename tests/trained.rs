//! Small trained models against what the reference says about them (see golden/README.md): logits, greedy answers, text,
//! likelihood. The demo model is always there; others are tried where `../shared` has them.

mod support;

use std::path::Path;

use infer_runtime::{AddSpecial, ChatInput, GenerateOptions, LoadOptions, Model, SamplingOptions, StopReason};
use serde_json::Value;
use support::{
    Expected, TOLERANCE, answer, difference, difference_of_rows, exact, greedy, log_probabilities, root, trained_models,
};

fn load(folder: &Path, options: LoadOptions) -> Model {
    Model::load(folder, options).unwrap_or_else(|error| panic!("{error}"))
}

fn json(path: &Path) -> Value {
    let text = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn expected_json(name: &str) -> Value {
    json(&root().join(format!("tests/golden/trained/{name}.json")))
}

fn ids(value: &Value) -> Vec<u32> {
    let ids = value.as_array().unwrap_or_else(|| panic!("a list of ids, not {value}"));
    ids.iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

#[test]
fn logits_are_the_references() {
    for (name, folder) in trained_models() {
        let expected = Expected::read(&root().join(format!("tests/golden/trained/{name}.safetensors")));
        let tokens = expected.ids("tokens").expect("tokens");
        let rows = expected.ids("rows").expect("rows").into_iter().map(|row| row as usize);
        let logits = load(&folder, exact()).session().forward(&tokens).expect("a forward pass");
        let difference = difference_of_rows(&logits, rows, &expected.floats("logits"));
        assert!(difference <= TOLERANCE, "{name}: logits are {difference} apart");
    }
}

#[test]
fn prompts_answers_and_texts_are_the_references() {
    for (name, folder) in trained_models() {
        let model = load(&folder, exact());
        let tokenizer = model.tokenizer().expect("a tokenizer");
        let all = expected_json(name);
        for kind in ["text", "chat"] {
            let expected = &all[kind];
            if expected.is_null() {
                continue;
            }
            let prompt = if kind == "text" {
                let text = expected["prompt"].as_str().expect("a prompt");
                tokenizer.encode(text, AddSpecial::Yes).expect("ids")
            } else {
                let template = model.chat_template().expect("a template that parses").expect("a template");
                let input = ChatInput::new(expected["messages"].clone());
                let (text, ids) = template.render_and_encode(&input, tokenizer).expect("a rendered chat");
                assert_eq!(text, expected["rendered"], "{name}, {kind}");
                ids
            };
            assert_eq!(prompt, ids(&expected["prompt_ids"]), "{name}, {kind}: ids of the prompt");

            let mut session = model.session();
            session.prefill(&prompt).expect("prefill");
            let mut stopping = session.fork();
            let greedy_ids = ids(&expected["greedy_ids"]);
            let whole = answer(&mut session, greedy(greedy_ids.len()));
            assert_eq!(whole.ids, greedy_ids, "{name}, {kind}: greedy ids");
            assert_eq!(whole.reason, StopReason::MaxTokens, "{name}, {kind}");

            let stopped_after = expected["stopped_after"].as_u64().expect("a count") as usize;
            let options = GenerateOptions {
                max_tokens: Some(greedy_ids.len()),
                sampling: Some(SamplingOptions::greedy()),
                ..GenerateOptions::default()
            };
            let stopped = answer(&mut stopping, options);
            assert_eq!(stopped.ids, greedy_ids[..stopped_after], "{name}, {kind}: ids before the end token");
            assert_eq!(stopped.text, expected["text"], "{name}, {kind}: text of the answer");
            match greedy_ids.get(stopped_after) {
                Some(&end) => assert_eq!(stopped.reason, StopReason::EndToken(end), "{name}, {kind}"),
                None => assert_eq!(stopped.reason, StopReason::MaxTokens, "{name}, {kind}"),
            }
        }
    }
}

/// -ln p of each token but the first, in one pass.
fn negative_log_likelihoods(model: &Model, tokens: &[u32]) -> Vec<f64> {
    let logits = model.session().forward(tokens).expect("a forward pass");
    let scored = tokens.iter().skip(1).enumerate();
    scored.map(|(row, &token)| -log_probabilities(logits.row(row))[token as usize]).collect()
}

#[test]
fn perplexities_are_the_references_to_four_digits() {
    for (name, folder) in trained_models() {
        let expected = &expected_json(name)["likelihood"];
        let Some(file) = expected["file"].as_str() else { continue };
        let path = root().join("../shared").join(file);
        let Ok(text) = std::fs::read_to_string(&path) else {
            println!("skipped: {} is not here", path.display());
            continue;
        };
        let model = load(&folder, exact());
        let tokenizer = model.tokenizer().expect("a tokenizer");
        let tokens = tokenizer.encode(&text, AddSpecial::No).expect("ids");
        assert_eq!(tokens.len() as u64, expected["file_tokens"], "{name}: tokens of {file}");
        let begin = tokenizer.bos_token().and_then(|token| tokenizer.token_to_id(token)).expect("a begin token");
        let (mut sum, mut n) = (0.0, 0);
        for (index, window) in tokens.chunks(511).take(8).enumerate() {
            let mut input = vec![begin];
            input.extend_from_slice(window);
            let losses = negative_log_likelihoods(&model, &input);
            let (found, expected) = (losses.iter().sum::<f64>(), expected["nll_sums"][index].as_f64().expect("a sum"));
            assert!((found - expected).abs() < 0.01, "{name}, window {index}: {found} nats, expected {expected}");
            sum += found;
            n += losses.len();
        }
        let (found, expected) = ((sum / n as f64).exp(), expected["perplexity"].as_f64().expect("a perplexity"));
        let relative = (found / expected - 1.0).abs();
        assert!(relative < 5e-5, "{name}: perplexity {found}, expected {expected}");
    }
}

#[test]
fn stories_of_the_shared_expectations_are_equal() {
    let folder = root().join("../shared/models/stories260k");
    if !folder.exists() {
        println!("skipped: {} is not here", folder.display());
        return;
    }
    let model = load(&folder, exact());
    let logits = Expected::read(&folder.join("expected.safetensors"));
    let cases = json(&folder.join("expected.json"));
    for (index, case) in cases.as_array().expect("a list").iter().enumerate() {
        let prompt = ids(&case["input_ids"]);
        let text = case["prompt"].as_str().expect("a prompt");
        let encoded = model.tokenizer().and_then(|tokenizer| tokenizer.encode(text, AddSpecial::Yes)).expect("ids");
        assert_eq!(encoded, prompt, "prompt {index}");
        let mut session = model.session();
        let found = session.forward(&prompt).expect("a forward pass");
        let difference = difference(found.values(), &logits.floats(&format!("prompt{index}.logits")));
        assert!(difference <= TOLERANCE, "prompt {index}: logits are {difference} apart");
        let expected = ids(&case["greedy_ids"]);
        assert_eq!(answer(&mut session, greedy(expected.len())).ids, expected, "prompt {index}");
    }
}
