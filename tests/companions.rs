//! What lies beside the weights: tokenizer, template, generation_config. What is missing or broken there concerns only
//! those who need it.

mod support;

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use infer_runtime::{AddSpecial, Error, GenerateOptions, LoadOptions, Model, SamplingOptions, TextFiles};
use support::{answer, demo, exact, greedy, root};

type Files = Vec<(String, Cow<'static, [u8]>)>;

fn files(folder: &Path) -> Files {
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
        (name, std::fs::read(&path).expect("a file").into())
    };
    std::fs::read_dir(folder).expect("a folder").map(read).collect()
}

/// The files of `folder` with others put in their place; no content takes a file away.
fn files_with(folder: &Path, changes: &[(&str, Option<&[u8]>)]) -> Files {
    let mut files = files(folder);
    for (name, content) in changes {
        files.retain(|(other, _)| other != name);
        files.extend(content.map(|content| ((*name).to_owned(), Cow::Owned(content.to_vec()))));
    }
    files
}

fn load(files: Files) -> Model {
    Model::from_bytes(files, exact()).unwrap_or_else(|error| panic!("{error}"))
}

fn tiny() -> PathBuf {
    root().join("tests/golden/models/llama-gqa")
}

#[test]
fn a_model_without_a_tokenizer_generates_ids_without_text() {
    let model = load(files(&tiny()));
    let mut session = model.session();
    session.prefill(&[5, 6, 7]).expect("prefill");
    let found = answer(&mut session, greedy(5));
    assert_eq!((found.ids.len(), found.text.as_str()), (5, ""));
    let error = model.tokenizer().expect_err("no tokenizer");
    assert_eq!(error.to_string(), "tokenizer.json: no such file, and text needs it");
    let options = GenerateOptions { stop: vec!["end".to_owned()], ..greedy(5) };
    let error = session.generate(options).expect_err("a stop string needs text");
    assert!(matches!(error, Error::Tokenizer { .. }), "{error}");
}

#[test]
fn a_broken_tokenizer_concerns_only_text() {
    for broken in [&b"{"[..], b"", b"\xff\xfe", b"{\"model\": 3}"] {
        let model = load(files_with(&demo(), &[("tokenizer.json", Some(broken))]));
        let mut session = model.session();
        session.forward(&[300, 301]).expect("logits need no tokenizer");
        for _ in 0..2 {
            let error = model.tokenizer().expect_err("a broken tokenizer");
            assert!(matches!(error, Error::Tokenizer { .. }), "{broken:?}: {error}");
            assert!(error.to_string().starts_with("tokenizer.json: "), "{broken:?}: {error}");
        }
        let error = session.generate(greedy(1)).expect_err("a broken tokenizer");
        assert!(matches!(error, Error::Tokenizer { .. }), "{broken:?}: {error}");
        assert!(model.stop_tokens().contains(1), "config.json names the end token too");
    }
}

#[test]
fn files_that_are_something_else_are_recognised_by_their_first_bytes() {
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    for (bytes, word) in [(&pointer[..], "Git LFS"), (b"<!DOCTYPE html>\n<html>", "HTML"), (b"GGUF\x03\0\0\0", "GGUF")]
    {
        let model = load(files_with(&demo(), &[("tokenizer.json", Some(bytes))]));
        let error = model.tokenizer().expect_err(word).to_string();
        assert!(error.starts_with("tokenizer.json: ") && error.contains(word), "{word}: {error}");
        let model = load(files_with(&demo(), &[("chat_template.jinja", Some(bytes))]));
        let error = model.chat_template().expect_err(word).to_string();
        assert!(error.contains("chat_template.jinja: ") && error.contains(word), "{word}: {error}");
    }
}

#[test]
fn a_broken_template_concerns_only_chats() {
    let model = load(files_with(&demo(), &[("chat_template.jinja", Some(b"{% for %}"))]));
    for _ in 0..2 {
        let error = model.chat_template().expect_err("a broken template");
        assert!(matches!(error, Error::ChatTemplate { .. }), "{error}");
    }
    let text =
        TextFiles::from_bytes(files_with(&demo(), &[("chat_template.jinja", Some(b"\xff"))])).expect("a tokenizer");
    let error = text.chat_template().expect_err("a broken template");
    assert!(matches!(error, Error::ChatTemplate { .. }) && error.to_string().contains("UTF-8"), "{error}");
    let mut session = model.session();
    session.prefill(&[300]).expect("prefill");
    assert_eq!(answer(&mut session, greedy(3)).ids.len(), 3);
}

#[test]
fn a_vocabulary_larger_than_the_embedding_is_refused() {
    let tokenizer = std::fs::read(demo().join("tokenizer.json")).expect("a tokenizer");
    let files = files_with(&tiny(), &[("tokenizer.json", Some(&tokenizer))]);
    let error = Model::from_bytes(files, exact()).expect_err("4096 tokens and 101 rows");
    assert!(matches!(error, Error::Tokenizer { .. }), "{error}");
    let message = error.to_string();
    assert!(message.contains("101") && message.contains("4095"), "{message}");
    // The post-processor may add tokens that are not in the vocabulary.
    let mut json: serde_json::Value = serde_json::from_slice(&tokenizer).expect("JSON");
    json["post_processor"] = serde_json::json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"x": {"id": "x", "ids": [99999], "tokens": ["x"]}},
    });
    let files = files_with(&demo(), &[("tokenizer.json", Some(json.to_string().as_bytes()))]);
    let message = Model::from_bytes(files, exact()).expect_err("a token beyond the embedding").to_string();
    assert!(message.contains("99999") && message.contains("4096"), "{message}");
}

#[test]
fn text_needs_neither_weights_nor_config() {
    let nothing = [("model.safetensors", None), ("config.json", None)];
    let text = TextFiles::from_bytes(files_with(&demo(), &nothing)).expect("a tokenizer");
    let ids = text.tokenizer().encode("Once upon a time there was a", AddSpecial::Yes).expect("ids");
    assert_eq!(ids, [0, 2202, 715, 263, 511, 443, 310, 263]);
    assert!(text.chat_template().expect("a template that parses").is_some());
    for path in [demo(), demo().join("model.safetensors"), demo().join("tokenizer.json")] {
        let opened = TextFiles::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(opened.tokenizer().vocab_size(), 4096, "{}", path.display());
    }
    let error = TextFiles::open(tiny()).expect_err("no tokenizer");
    assert!(matches!(error, Error::Tokenizer { .. }), "{error}");
    let error = TextFiles::open(tiny().join("missing")).expect_err("nothing there");
    assert!(matches!(error, Error::File { .. }), "{error}");
}

#[test]
fn stop_tokens_are_the_union_of_all_files() {
    let template: &[u8] = b"{% for m in messages %}{{ m.content }}<|system|>{% endfor %}";
    let model = load(files_with(
        &demo(),
        &[
            ("generation_config.json", Some(br#"{"eos_token_id": [700, 701]}"#)),
            ("chat_template.jinja", Some(template)),
        ],
    ));
    let end_of_turn = model.tokenizer().expect("a tokenizer").token_to_id("<|system|>").expect("a token");
    // 1 is in config.json and in tokenizer_config.json.
    let mut expected = vec![1, 700, 701, end_of_turn];
    expected.sort_unstable();
    assert_eq!(model.stop_tokens().ids(), expected);
    let error = Model::from_bytes(files_with(&demo(), &[("generation_config.json", Some(b"[1]"))]), exact());
    assert!(error.is_err(), "not an object");
}

#[test]
fn sampling_follows_generation_config_where_it_says_do_sample() {
    let model = Model::load(demo(), LoadOptions::default()).expect("the demo model loads");
    let expected = SamplingOptions { temperature: 0.7, top_p: 0.9, top_k: 50, ..SamplingOptions::plain() };
    assert_eq!(*model.sampling_defaults(), expected);
    let model = load(files_with(&demo(), &[("generation_config.json", None)]));
    assert_eq!(*model.sampling_defaults(), SamplingOptions::default());
}

#[test]
fn logits_that_are_not_finite_are_an_error_at_their_position() {
    let mut weights = std::fs::read(demo().join("model.safetensors")).expect("weights");
    let header_len = u64::from_le_bytes(*weights.first_chunk().expect("a length")) as usize;
    let header: serde_json::Value = serde_json::from_slice(&weights[8..8 + header_len]).expect("a header");
    let offset = header["model.embed_tokens.weight"]["data_offsets"][0].as_u64().expect("an offset") as usize;
    // The embedding is the head too: the logit of token 900 is NaN everywhere.
    let row = 8 + header_len + offset + 900 * 256 * 2;
    weights[row..row + 2].copy_from_slice(&0x7fc0u16.to_le_bytes());
    let model = load(files_with(&demo(), &[("model.safetensors", Some(&weights))]));
    let mut session = model.session();
    let error = session.prefill(&[300, 301, 302]).expect_err("NaN");
    assert!(matches!(error, Error::NotFinite { position: 2, token: 900 }), "{error}");
    assert!(session.tokens().is_empty(), "the chunk that failed is not counted");
    let error = session.forward(&[300, 301]).expect_err("NaN");
    assert!(matches!(error, Error::NotFinite { position: 0, token: 900 }), "{error}");
}
