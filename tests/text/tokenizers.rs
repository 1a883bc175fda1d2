//! Encoding and decoding: against the reference's vectors where `../shared` is there, and over small tokenizers.

use std::path::{Path, PathBuf};

use infer_runtime::{AddSpecial, Error, Tokenizer, TokenizerFiles};
use serde_json::{Value, json};

use crate::small_tokenizers as small;

/// The folders of real tokenizers; empty, with a line, if they are not there.
fn real_tokenizers() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/tokenizers");
    let Ok(entries) = std::fs::read_dir(&folder) else {
        println!("skipped: {} is not there", folder.display());
        return Vec::new();
    };
    entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.join("tokenizer.json").exists()).collect()
}

fn read_json(path: &Path) -> Option<Value> {
    let bytes = std::fs::read(path).ok()?;
    Some(serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}

fn load(folder: &Path) -> Tokenizer {
    let path = folder.join("tokenizer.json");
    let bytes = std::fs::read(&path).expect("tokenizer.json can be read");
    let companion = |name: &str| read_json(&folder.join(name));
    Tokenizer::from_files(&TokenizerFiles {
        path: &path,
        tokenizer: &bytes,
        config: companion("tokenizer_config.json").as_ref(),
        special_tokens_map: companion("special_tokens_map.json").as_ref(),
        added_tokens: companion("added_tokens.json").as_ref(),
    })
    .expect("a real tokenizer loads")
}

fn ids(row: &Value, key: &str) -> Vec<u32> {
    serde_json::from_value(row[key].clone()).unwrap_or_else(|error| panic!("{key}: {error}"))
}

#[test]
fn every_vector_of_the_reference_is_equal() {
    for folder in real_tokenizers() {
        let tokenizer = load(&folder);
        let Some(Value::Array(rows)) = read_json(&folder.join("expected_encode.json")) else { continue };
        for row in rows {
            let text = row["text"].as_str().expect("a text");
            let name = format!("{}: {text:?}", folder.display());
            let with = tokenizer.encode(text, AddSpecial::Yes).expect("encodes");
            assert_eq!(with, ids(&row, "ids"), "{name}");
            assert_eq!(tokenizer.encode(text, AddSpecial::No).expect("encodes"), ids(&row, "ids_no_special"), "{name}");
            for (key, skip) in [("decode_skip", true), ("decode_keep", false)] {
                assert_eq!(
                    tokenizer.decode(&with, skip).expect("decodes"),
                    row[key].as_str().expect("a text"),
                    "{name}"
                );
            }
        }
    }
}

#[test]
fn a_text_with_very_long_runs_is_split_as_a_shorter_one_is() {
    let tokenizer = small::build(&small::byte_level(), None).expect("loads");
    let id = |token: &str| tokenizer.token_to_id(token).unwrap_or_else(|| panic!("no token {token}"));
    let (four, two, space) = (id("ĠĠĠĠ"), id("ĠĠ"), id("Ġ"));
    // The pattern leaves the last space to the word behind it, except at the end of the text.
    let spaces = |count: usize| {
        let mut ids = vec![four; count / 4];
        ids.extend([two].repeat(count / 2 % 2));
        ids.extend([space].repeat(count % 2));
        ids
    };
    for count in [1_000, 60_001, 1_000_000] {
        let text = format!("x{}world", " ".repeat(count));
        let mut expected = vec![id("x")];
        expected.extend(spaces(count - 1));
        expected.extend([id("Ġw"), id("o"), id("r"), id("l"), id("d")]);
        assert_eq!(tokenizer.encode(&text, AddSpecial::Yes).expect("encodes"), expected, "{count} spaces and a word");
        let text = format!("{}<|end|>{}", " ".repeat(count), " ".repeat(count));
        let expected = [spaces(count), vec![id("<|end|>")], spaces(count)].concat();
        assert_eq!(tokenizer.encode(&text, AddSpecial::Yes).expect("encodes"), expected, "{count} spaces at the end");
    }
    let text = format!("{}\n{}é", " ".repeat(70_000), " ".repeat(60_000));
    let line = tokenizer.token_to_id("Ċ").expect("a line end");
    let expected = [spaces(70_000), vec![line], spaces(59_999), vec![space, id("Ã©")]].concat();
    assert_eq!(tokenizer.encode(&text, AddSpecial::No).expect("encodes"), expected, "two runs in one piece");
    let letters = tokenizer.encode(&"a".repeat(1_000_000), AddSpecial::No).expect("encodes");
    assert_eq!(letters, vec![id("aa"); 500_000], "a million letters");
}

#[test]
fn what_the_pattern_gives_up_on_is_an_error() {
    // Lines of changing white space: no run of one character, and too long for the pattern's lookahead.
    let mut tokenizer = small::byte_level();
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!(r"\p{L}+|(?:\s\s)+(?!\S)|\s+");
    let tokenizer = small::build(&tokenizer, None).expect("loads");
    let text = format!("word{}word another word, {}", " \t".repeat(1_500_000), "and one more ".repeat(20_000));
    match tokenizer.encode(&text, AddSpecial::No) {
        Err(Error::Tokenizer { problem, .. }) => {
            assert!(problem.contains("too long for the tokenizer's pattern"), "{problem}")
        }
        Err(other) => panic!("{other}"),
        Ok(ids) => {
            let pieces = tokenizer.encode(" another word, ", AddSpecial::No).expect("encodes");
            assert!(
                ids.windows(pieces.len()).any(|window| window == pieces),
                "the words behind the run are split as ever"
            );
        }
    }
}

#[test]
fn truncation_and_padding_of_the_file_are_not_applied() {
    let tokenizer = small::build(&small::byte_level(), None).expect("loads");
    assert_eq!(tokenizer.encode("a b c d e f", AddSpecial::Yes).expect("encodes").len(), 11);
    assert_eq!(tokenizer.encode("a", AddSpecial::Yes).expect("encodes").len(), 1);
}

#[test]
fn special_tokens_are_recognised_in_a_text_and_not_in_ordinary_words() {
    for (name, tokenizer) in small::all() {
        for text in ["", "\0", "hello world", "hello  hello"] {
            let ids = tokenizer.encode_ordinary(text).unwrap_or_else(|error| panic!("{name}: {text:?}: {error}"));
            assert_eq!(ids, tokenizer.encode(text, AddSpecial::No).expect("encodes"), "{name}: {text:?}");
        }
    }
    let tokenizer = small::build(&small::sentence_piece(), None).expect("loads");
    let end = tokenizer.token_to_id("</s>").expect("in the vocabulary");
    assert!(tokenizer.encode("he</s>llo", AddSpecial::No).expect("encodes").contains(&end));
    let plain = tokenizer.encode_ordinary("he</s>llo").expect("encodes");
    assert!(!plain.contains(&end));
    assert_eq!(tokenizer.decode(&plain, true).expect("decodes"), "he</s>llo");
    assert_eq!(tokenizer.encode("", AddSpecial::Yes).expect("encodes"), [1], "the begin token alone");
    assert!(tokenizer.is_special(1) && !tokenizer.is_special(300));
}

#[test]
fn companions_name_special_tokens_and_add_what_is_missing() {
    let config = json!({
        "bos_token": {"__type": "AddedToken", "content": "<|im_start|>", "lstrip": false, "normalized": false},
        "eos_token": "<|im_end|>", "pad_token": null, "unk_token": "<new>",
        "model_max_length": 1e30, "add_bos_token": true, "clean_up_tokenization_spaces": true,
        "added_tokens_decoder": {"268": {"content": "<|end|>", "special": false, "rstrip": true}},
    });
    let small = small::build(&small::byte_level(), None).expect("loads");
    let tokenizer = small::build(&small::byte_level(), Some(&config)).expect("loads");
    assert_eq!(tokenizer.bos_token(), Some("<|im_start|>"));
    assert_eq!(tokenizer.eos_id(), small.token_to_id("<|im_end|>"));
    let named: Vec<_> = tokenizer.named_tokens().collect();
    assert_eq!(named, [("bos_token", "<|im_start|>"), ("eos_token", "<|im_end|>"), ("unk_token", "<new>")]);
    assert_eq!(tokenizer.encode("a", AddSpecial::Yes).expect("encodes").len(), 1, "add_bos_token does nothing");
    let end = tokenizer.token_to_id("<|end|>").expect("in the vocabulary");
    assert_eq!(tokenizer.encode("<|end|>  a", AddSpecial::No).expect("encodes"), [end, u32::from(b'a')], "rstrip");
    assert!(small.encode("<|end|>  a", AddSpecial::No).expect("encodes").len() > 2);
    assert_eq!(tokenizer.vocab_size(), small.vocab_size(), "what the config adds needs no row of the embedding");
    assert_eq!(tokenizer.encode("<new>", AddSpecial::No).expect("encodes"), [small.vocab_size() as u32]);
    assert!(tokenizer.is_special(small.vocab_size() as u32));
}

#[test]
fn what_is_no_tokenizer_is_refused_by_name() {
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    let with = |change: fn(&mut Value)| {
        let mut json = small::byte_level();
        change(&mut json);
        json.to_string()
    };
    for (bytes, words) in [
        (String::new(), "the file is empty"),
        ("{".to_owned(), "not JSON"),
        (deep.clone(), "not JSON"),
        (format!("{{\"model\": {deep}}}"), "not JSON"),
        ("[]".to_owned(), "expected a JSON object"),
        ("{}".to_owned(), "the key model is missing"),
        (r#"{"model": 3}"#.to_owned(), "the key model is not an object"),
        (r#"{"version": "1.0", "model": {"type": "BPE"}}"#.to_owned(), "model.vocab is missing"),
        (r#"{"version": "1.0", "model": {"type": "Magic", "vocab": {}}}"#.to_owned(), "Magic"),
        (with(|json| json["model"]["vocab"] = json!({})), "not a tokenizer"),
        (with(|json| json["model"]["merges"] = json!(["no such"])), "not a tokenizer that can be read"),
        (
            with(|json| json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!("(")),
            "not a tokenizer that can be read",
        ),
        (with(|json| json["decoder"] = json!({"type": "None such"})), "not a tokenizer that can be read"),
        (with(|json| json["added_tokens"] = json!([{"id": "x"}])), "not a tokenizer that can be read"),
    ] {
        let files = TokenizerFiles {
            path: Path::new("folder/tokenizer.json"),
            tokenizer: bytes.as_bytes(),
            config: None,
            special_tokens_map: None,
            added_tokens: None,
        };
        match Tokenizer::from_files(&files) {
            Err(error) => {
                let message = error.to_string();
                assert!(
                    message.starts_with("folder/tokenizer.json: ") && message.contains(words),
                    "{words}: {message}"
                );
                assert!(!message.contains('\n') && message.len() < 600, "one line: {message}");
            }
            Ok(_) => panic!("loaded, expected {words:?}: {}", &bytes[..bytes.len().min(200)]),
        }
    }
    for (config, words) in [
        (json!([]), "tokenizer_config.json: expected a JSON object"),
        (json!({"added_tokens_decoder": 3}), "added_tokens_decoder is not an object"),
        (json!({"added_tokens_decoder": {"x": {"content": "a"}}}), "added_tokens_decoder.x"),
        (json!({"added_tokens_decoder": {"1": {}}}), "added_tokens_decoder.1"),
        (json!({"eos_token": 7}), "eos_token is 7"),
    ] {
        let error = small::build(&small::byte_level(), Some(&config)).expect_err("a config that makes no sense");
        assert!(error.to_string().contains(words), "{words}: {error}");
    }
}

#[test]
fn ids_outside_the_vocabulary_have_no_text() {
    for (name, tokenizer) in small::all() {
        assert_eq!(tokenizer.decode(&[], false).expect("decodes"), "", "{name}");
        assert_eq!(tokenizer.decode(&[u32::MAX, 1_000_000], false).expect("decodes"), "", "{name}");
    }
}
