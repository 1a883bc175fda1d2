//! `infer show`: what a model is.

use super::*;

#[test]
fn the_demo_is_described_for_people() {
    let shown = run(&["show"], b"");
    assert_eq!(shown.code, Some(0), "{}", shown.stderr);
    for words in ["LlamaForCausalLM", "5.6 M", "4096", "512", "bf16", "MB", "KV cache", "chat template"] {
        assert!(shown.stdout.contains(words), "expected {words:?} in {}", shown.stdout);
    }
    assert!(!shown.stdout.contains("model.embed_tokens.weight"), "tensors are listed only when asked for");
    for line in shown.stdout.lines() {
        assert!(line.chars().count() <= 80, "too wide: {line:?}");
    }
    let tensors = run(&["show", "--tensors"], b"");
    assert!(tensors.stdout.contains("model.embed_tokens.weight"), "{}", tensors.stdout);
}

#[test]
fn the_demo_is_described_for_programs() {
    let object = json(&["show", "--json", "--tensors"], b"");
    assert_eq!(object["architecture"], "LlamaForCausalLM", "{object}");
    assert_eq!(object["layers"], 6);
    assert_eq!(object["hidden_size"], 256);
    assert_eq!(object["heads"], 8);
    assert_eq!(object["kv_heads"], 2);
    assert_eq!(object["vocab_size"], 4096);
    assert_eq!(object["context_length"], 512);
    assert_eq!(object["chat_template"], true);
    assert_eq!(object["tokenizer"], true);
    let tensors = object["tensors"].as_array().expect("a list of tensors");
    let parameters: u64 = tensors
        .iter()
        .map(|tensor| {
            let shape = tensor["shape"].as_array().expect("a shape");
            shape.iter().map(|size| size.as_u64().expect("a size")).product::<u64>()
        })
        .sum();
    assert_eq!(object["parameters"].as_u64(), Some(parameters), "all of the demo's tensors are used");
    assert!(object["memory"]["weights"].as_u64().is_some_and(|bytes| bytes >= 2 * parameters), "{}", object["memory"]);
    assert!(json(&["show", "--json"], b"").get("tensors").is_none(), "tensors are listed only when asked for");
}

#[test]
fn the_memory_follows_the_options() {
    let memory = |args: &[&str]| json(&[&["show", "--json"], args].concat(), b"")["memory"].clone();
    let number =
        |memory: &serde_json::Value, key: &str| memory[key].as_u64().unwrap_or_else(|| panic!("{key}: {memory}"));
    let plain = memory(&[]);
    let small = memory(&["--q4", "--ctx", "64"]);
    assert_eq!(number(&small, "context"), 64, "{small}");
    assert!(number(&small, "weights") < number(&plain, "weights"), "{small} {plain}");
    assert!(number(&small, "kv_cache") < number(&plain, "kv_cache"), "{small} {plain}");
    // A byte for two, and a scale of four bytes for each token's 32 values of a head.
    let of_cache = |kv: &str| number(&memory(&["--kv", kv, "--ctx", "64"]), "kv_cache");
    assert_eq!(of_cache("q8") * 16, of_cache("bf16") * 9);
    assert_eq!(of_cache("f32"), of_cache("f16") * 2);
}

#[test]
fn a_model_without_a_tokenizer_is_shown() {
    let folder = demo_files(&["config.json", "model.safetensors"]);
    let object = json(&["show", "--json", "--model", text(folder.path())], b"");
    assert_eq!((&object["tokenizer"], &object["chat_template"]), (&false.into(), &false.into()));
}
