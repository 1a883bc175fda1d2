//! Small tokenizers of every kind, made in memory, for tests that must not depend on large files.

use std::path::Path;

use infer_runtime::{Tokenizer, TokenizerFiles};
use serde_json::{Value, json};

/// GPT-2's pattern, with the lookahead that needs backtracking.
pub const GPT2_PATTERN: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Builds a tokenizer from its JSON.
pub fn build(tokenizer: &Value, config: Option<&Value>) -> infer_runtime::Result<Tokenizer> {
    let bytes = serde_json::to_vec(tokenizer).expect("JSON values can be written");
    Tokenizer::from_files(&TokenizerFiles {
        path: Path::new("tokenizer.json"),
        tokenizer: &bytes,
        config,
        special_tokens_map: None,
        added_tokens: None,
    })
}

fn added(id: usize, content: &str, special: bool) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": special})
}

/// The printable character that stands for a byte in byte-level vocabularies.
pub fn byte_character(byte: u8) -> char {
    let printable = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&b| !printable(b)).count();
    char::from_u32(0x100 + before as u32).expect("U+0100 to U+0143 are characters")
}

/// Byte-level BPE as in GPT-2 and Llama 3: all bytes, a few merges, control tokens `<|im_start|>`, `<|im_end|>`,
/// `<|end|>`, and `<think>`, `</think>`, which are not special.
pub fn byte_level() -> Value {
    let mut vocab: serde_json::Map<String, Value> =
        (0..=255u8).map(|byte| (byte_character(byte).to_string(), json!(usize::from(byte)))).collect();
    let merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "Ġ Ġ", "ĠĠ ĠĠ", "a a", "ð Ł", "Ã ©"];
    for merge in merges {
        vocab.insert(merge.replace(' ', ""), json!(vocab.len()));
    }
    let first = vocab.len();
    let names =
        [("<|im_start|>", true), ("<|im_end|>", true), ("<|end|>", true), ("<think>", false), ("</think>", false)];
    let added: Vec<Value> =
        names.iter().enumerate().map(|(i, (name, special))| added(first + i, name, *special)).collect();
    json!({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "!"},
        "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": GPT2_PATTERN}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
            "merges": merges}
    })
}

/// SentencePiece-like BPE as in Llama 2: `▁` for spaces, bytes as `<0x0A>`, a begin token, merges as pairs.
pub fn sentence_piece() -> Value {
    let mut vocab = serde_json::Map::new();
    for token in ["<unk>", "<s>", "</s>"] {
        vocab.insert(token.to_owned(), json!(vocab.len()));
    }
    for byte in 0..=255 {
        vocab.insert(format!("<0x{byte:02X}>"), json!(vocab.len()));
    }
    for token in ["▁", "a", "b", "e", "h", "l", "o", "w", "é", "�"] {
        vocab.insert(token.to_owned(), json!(vocab.len()));
    }
    let merges = [["h", "e"], ["l", "l"], ["he", "ll"], ["hell", "o"], ["▁", "hello"], ["▁", "w"], ["▁", "▁"]];
    for merge in merges {
        vocab.insert(merge.concat(), json!(vocab.len()));
    }
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(0, "<unk>", true), added(1, "<s>", true), added(2, "</s>", true)],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null,
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab, "merges": merges}
    })
}

/// Unigram with Metaspace, as in T5 and some Gemma-like files.
pub fn unigram() -> Value {
    let pieces = [
        ("<unk>", 0.0),
        ("▁hello", -1.0),
        ("▁", -2.0),
        ("h", -3.0),
        ("e", -3.0),
        ("l", -3.0),
        ("o", -3.0),
        ("w", -3.0),
        ("▁w", -2.5),
    ];
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [added(0, "<unk>", true)],
        "normalizer": null,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
        "post_processor": null,
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
        "model": {"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": false}
    })
}

/// WordPiece as in BERT.
pub fn word_piece() -> Value {
    let tokens = ["[UNK]", "hello", "he", "##llo", "world", "!", "."];
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), json!(id))).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [added(0, "[UNK]", true)],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": null,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocab}
    })
}

/// All of them, by name.
pub fn all() -> Vec<(&'static str, Tokenizer)> {
    [
        ("byte level", byte_level()),
        ("sentence piece", sentence_piece()),
        ("unigram", unigram()),
        ("word piece", word_piece()),
    ]
    .into_iter()
    .map(|(name, json)| (name, build(&json, None).unwrap_or_else(|error| panic!("{name}: {error}"))))
    .collect()
}

/// Repeatable random numbers for property tests.
pub struct Random(pub u64);

impl Random {
    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit.max(1)
    }
}
