//! Streamed text: the pieces put together are the text of all ids, and no piece ends inside a character.

use std::path::Path;

use crate::small_tokenizers::{self as small, Random};
use infer_runtime::{AddSpecial, Tokenizer, TokenizerFiles};

/// Streams `ids` and compares with decoding them at once; returns the most ids that were held back at a time.
fn check(name: &str, tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) {
    let mut stream = tokenizer.stream(skip_special);
    let mut text = String::new();
    for &id in ids {
        text.push_str(&stream.push(id).unwrap_or_else(|error| panic!("{name}: {ids:?}: {error}")));
    }
    text.push_str(&stream.finish().unwrap_or_else(|error| panic!("{name}: {ids:?}: {error}")));
    let whole = tokenizer.decode(ids, skip_special).unwrap_or_else(|error| panic!("{name}: {ids:?}: {error}"));
    assert_eq!(text, whole, "{name}: ids {ids:?}, skip_special {skip_special}");
}

fn check_random(name: &str, tokenizer: &Tokenizer, random: &mut Random, rounds: usize) {
    let vocabulary = tokenizer.vocab_size() + 2;
    let special: Vec<u32> = (0..vocabulary as u32).filter(|&id| tokenizer.is_special(id)).collect();
    for round in 0..rounds {
        let length = 1 + random.below(24);
        let ids: Vec<u32> = (0..length)
            .map(|_| match random.below(8) {
                // Byte tokens come first in these vocabularies.
                0..3 => random.below(300.min(vocabulary)) as u32,
                3 if !special.is_empty() => special[random.below(special.len())],
                _ => random.below(vocabulary) as u32,
            })
            .collect();
        check(name, tokenizer, &ids, round % 2 == 0);
    }
}

#[test]
fn random_ids_stream_as_they_decode() {
    let mut random = Random(1);
    for (name, tokenizer) in small::all() {
        check_random(name, &tokenizer, &mut random, 2_000);
    }
}

#[test]
fn random_ids_of_real_tokenizers_stream_as_they_decode() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/tokenizers");
    let Ok(entries) = std::fs::read_dir(&folder) else {
        println!("skipped: {} is not there", folder.display());
        return;
    };
    let mut random = Random(2);
    for path in entries.filter_map(|entry| Some(entry.ok()?.path().join("tokenizer.json"))) {
        let bytes = std::fs::read(&path).expect("tokenizer.json can be read");
        let files = TokenizerFiles {
            path: &path,
            tokenizer: &bytes,
            config: None,
            special_tokens_map: None,
            added_tokens: None,
        };
        let tokenizer = Tokenizer::from_files(&files).expect("loads");
        let name = path.display().to_string();
        check_random(&name, &tokenizer, &mut random, 500);
        for text in ["Hello, wörld! 👍🏽 日本語\n\n  two  spaces", " leading", "a\u{fffd}b", "🙂🙂🙂"] {
            let ids = tokenizer.encode(text, AddSpecial::Yes).expect("encodes");
            check(&name, &tokenizer, &ids, true);
            check(&name, &tokenizer, &ids, false);
        }
    }
}

#[test]
fn text_is_given_out_as_soon_as_it_is_certain() {
    let byte_level = small::build(&small::byte_level(), None).expect("loads");
    let sentence_piece = small::build(&small::sentence_piece(), None).expect("loads");
    let id = |tokenizer: &Tokenizer, token: &str| tokenizer.token_to_id(token).unwrap_or_else(|| panic!("no {token}"));
    let bytes = |text: &str| text.bytes().map(|byte| format!("<0x{byte:02X}>")).collect::<Vec<_>>();
    for (name, tokenizer, steps) in [
        (
            "byte level",
            &byte_level,
            vec![("hello", "hello"), ("Ġw", " w"), ("ðŁ", ""), ("Ļ", ""), ("Ĥ", "🙂"), ("Ã", ""), ("a", "\u{fffd}a")],
        ),
        (
            "sentence piece",
            &sentence_piece,
            vec![("▁hello", "hello"), ("▁w", " w"), ("▁", " "), ("▁", " "), ("é", "é")],
        ),
    ] {
        let mut stream = tokenizer.stream(true);
        for (token, shown) in steps {
            assert_eq!(stream.push(id(tokenizer, token)).expect("streams"), shown, "{name}: after {token}");
        }
    }
    // The bytes of a character are held until a token that is no byte, since one wrong byte spoils the whole run.
    let mut stream = sentence_piece.stream(true);
    for token in bytes("🙂") {
        assert_eq!(stream.push(id(&sentence_piece, &token)).expect("streams"), "");
    }
    assert_eq!(stream.push(id(&sentence_piece, "a")).expect("streams"), "🙂a");
    let mut stream = sentence_piece.stream(true);
    for token in bytes("🙂").into_iter().take(3) {
        assert_eq!(stream.push(id(&sentence_piece, &token)).expect("streams"), "");
    }
    assert_eq!(stream.finish().expect("streams"), "\u{fffd}\u{fffd}\u{fffd}");
}

#[test]
fn special_tokens_are_left_out_or_shown_without_losing_spaces() {
    let tokenizer = small::build(&small::sentence_piece(), None).expect("loads");
    let hello = tokenizer.token_to_id("▁hello").expect("in the vocabulary");
    for skip in [true, false] {
        check("sentence piece", &tokenizer, &[1, hello, 2, hello, 1, 1, hello], skip);
        check("sentence piece", &tokenizer, &[1, 1, 2], skip);
    }
}

#[test]
fn long_streams_keep_a_bounded_window() {
    // 40,000 undecided tokens each: quadratic work would not come to an end here.
    for (name, tokenizer, token) in [
        ("byte level", small::build(&small::byte_level(), None).expect("loads"), "Ã"),
        ("sentence piece", small::build(&small::sentence_piece(), None).expect("loads"), "<0xF0>"),
        ("sentence piece", small::build(&small::sentence_piece(), None).expect("loads"), "�"),
        ("unigram", small::build(&small::unigram(), None).expect("loads"), "▁hello"),
    ] {
        let id = tokenizer.token_to_id(token).unwrap_or_else(|| panic!("{name}: no {token}"));
        check(name, &tokenizer, &vec![id; 40_000], true);
    }
}
