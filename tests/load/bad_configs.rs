//! Values that no model can have, named by their key and value; and checkpoints that do not fit their config.

use std::borrow::Cow;
use std::collections::BTreeMap;

use infer_runtime::load::{Checked, Checkpoint, Config, ModelFiles, check_tensors};
use infer_runtime::model::arch::spec_from;
use infer_runtime::{Error, Result};

use crate::{assert_refused, golden, safetensors};

/// A golden model whose config has other values, given as JSON; an empty text removes the key.
fn load_with(model: &str, values: &[(&str, &str)]) -> Result<Checked> {
    let folder = golden(model);
    let config = std::fs::read(folder.join("config.json")).unwrap();
    let config: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&config).unwrap();
    let mut config: BTreeMap<String, String> =
        config.into_iter().map(|(key, value)| (key, value.to_string())).collect();
    for (key, value) in values {
        config.insert((*key).to_owned(), (*value).to_owned());
    }
    let entries: Vec<String> =
        config.iter().filter(|(_, value)| !value.is_empty()).map(|(key, value)| format!("\"{key}\":{value}")).collect();
    let weights = std::fs::read(folder.join("model.safetensors")).unwrap();
    let config = format!("{{{}}}", entries.join(","));
    let files = ModelFiles::from_bytes(vec![
        ("model.safetensors".to_owned(), Cow::Owned(weights)),
        ("config.json".to_owned(), Cow::Owned(config.into_bytes())),
    ]);
    let checkpoint = Checkpoint::open(&files)?;
    check_tensors(&spec_from(&Config::read(&files)?, &checkpoint)?, &checkpoint)
}

const SIZES: [(&str, &[&str]); 5] = [
    (
        "llama-gqa",
        &[
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
        ],
    ),
    ("mixtral-top2", &["num_local_experts", "num_experts_per_tok"]),
    ("mistral-window", &["sliding_window"]),
    ("gpt2", &["n_embd", "n_head", "n_layer", "n_positions", "n_inner", "vocab_size"]),
    ("opt", &["ffn_dim", "word_embed_proj_dim", "max_position_embeddings"]),
];

#[test]
fn sizes_that_no_model_has_are_named_by_key_and_value() {
    for (model, keys) in SIZES {
        for key in keys {
            for value in ["0", "-4", "\"4\"", "1.5", "1000000000000", "1e30", "NaN", "[4]", "true"] {
                let case = format!("{model} {key} {value}");
                let found = load_with(model, &[(key, value)]);
                assert_refused(found, &format!("config.json: {key} is "), &case);
                let found = load_with(model, &[(key, value)]).unwrap_err();
                assert!(matches!(found, Error::Config { .. }), "{case}: {found:?}");
            }
            // Large, but a number of the right kind: the tensors tell.
            assert!(
                load_with(model, &[(key, "2147483646")]).is_err() || key.contains("max") || *key == "sliding_window"
            );
        }
    }
}

#[test]
fn numbers_that_no_model_has_are_named_by_key_and_value() {
    /// Key, key as messages spell it, and the key's JSON for a value.
    type Case = (&'static str, &'static str, fn(&str) -> String);
    let cases: [Case; 9] = [
        ("rms_norm_eps", "rms_norm_eps", str::to_owned),
        ("rope_theta", "rope_theta", str::to_owned),
        ("rope_parameters", "rope_parameters.rope_theta", |value| format!(r#"{{"rope_theta":{value}}}"#)),
        ("rope_scaling", "rope_scaling.factor", |value| format!(r#"{{"type":"linear","factor":{value}}}"#)),
        ("rope_scaling", "rope_scaling.factor", |value| format!(r#"{{"rope_type":"dynamic","factor":{value}}}"#)),
        ("rope_scaling", "rope_scaling.factor", |value| format!(r#"{{"rope_type":"yarn","factor":{value}}}"#)),
        ("rope_scaling", "rope_scaling.beta_fast", |value| {
            format!(r#"{{"rope_type":"yarn","factor":2,"beta_fast":{}}}"#, if value == "0" { "-1" } else { value })
        }),
        ("rope_scaling", "rope_scaling.attention_factor", |value| {
            format!(r#"{{"rope_type":"yarn","factor":2,"attention_factor":{value}}}"#)
        }),
        ("rope_scaling", "rope_scaling.high_freq_factor", |value| {
            format!(r#"{{"rope_type":"llama3","factor":2,"low_freq_factor":1,"high_freq_factor":{value}}}"#)
        }),
    ];
    for (key, spelt, json) in cases {
        for value in ["0", "-1.5", "NaN", "Infinity", "-Infinity", "1e999", "\"x\"", "[]"] {
            let (case, json) = (format!("{spelt} {value}"), json(value));
            // The newer writing of the golden model comes second where an older one is tried.
            let values = [("rope_parameters", ""), (key, json.as_str())];
            assert_refused(load_with("llama-gqa", &values), &format!("config.json: {spelt} is "), &case);
        }
    }
}

#[test]
fn facts_that_contradict_each_other_are_refused() {
    let llama3 = |fields: &str| format!(r#"{{"rope_type":"llama3",{fields}}}"#);
    let longrope = |short: &str| format!(r#"{{"type":"longrope","short_factor":{short},"long_factor":[1,1,1,1]}}"#);
    let quantized = |config: &str| format!("{{{config}}}");
    let cases: Vec<(&str, &str, String, &str)> = vec![
        ("llama-gqa", "num_attention_heads", "3".into(), "num_attention_heads is 3, expected a divisor of the hidden"),
        ("llama-gqa", "num_key_value_heads", "3".into(), "num_key_value_heads is 3, expected a divisor of the 4"),
        ("llama-mqa-headdim", "head_dim", "15".into(), "head_dim is 15, expected heads of even size"),
        ("llama-gqa", "hidden_act", "\"mish\"".into(), "hidden_act is \"mish\", expected one of silu, gelu"),
        ("llama-gqa", "hidden_act", "3".into(), "hidden_act is 3, expected a text"),
        ("llama-gqa", "tie_word_embeddings", "1".into(), "tie_word_embeddings is 1, expected true or false"),
        ("llama-gqa", "rope_scaling", "\"linear\"".into(), "rope_scaling is \"linear\", expected an object"),
        (
            "llama-gqa",
            "rope_scaling",
            r#"{"type":"ntk"}"#.into(),
            "rope_scaling.type is \"ntk\", expected one of default",
        ),
        ("llama-gqa", "rope_scaling", r#"{"rope_type":7}"#.into(), "rope_scaling.rope_type is 7, expected a text"),
        ("llama-gqa", "rope_scaling", r#"{"type":"linear"}"#.into(), "rope_scaling.factor is missing, expected"),
        ("llama-gqa", "rope_scaling", llama3(r#""low_freq_factor":1"#), "rope_scaling.factor is missing"),
        ("llama-gqa", "rope_scaling", llama3(r#""factor":8,"high_freq_factor":4"#), "low_freq_factor is missing"),
        ("llama-gqa", "rope_scaling", llama3(r#""factor":8,"low_freq_factor":1"#), "high_freq_factor is missing"),
        (
            "llama-gqa",
            "rope_scaling",
            llama3(r#""factor":8,"low_freq_factor":4,"high_freq_factor":4"#),
            "high_freq_factor is 4, expected more than low_freq_factor, which is 4",
        ),
        ("phi3", "rope_scaling", longrope("[1,1,1]"), "rope_scaling.short_factor is [1,1,1], expected a list of 4"),
        ("phi3", "rope_scaling", longrope("[1,1,1,0]"), "short_factor is [1,1,1,0], expected a list of finite"),
        ("phi3", "rope_scaling", longrope("\"x\""), "short_factor is \"x\", expected a list of finite numbers"),
        ("phi3", "rope_scaling", r#"{"type":"su","short_factor":[1,1,1,1]}"#.into(), "long_factor is missing"),
        ("phimoe", "rope_scaling", longrope("[1,1,1,1]"), "rope_scaling.short_mscale is missing"),
        ("phi", "partial_rotary_factor", "1.5".into(), "partial_rotary_factor is 1.5, expected a share of head_dim"),
        ("phi", "partial_rotary_factor", "0.01".into(), "expected a share of head_dim"),
        ("mixtral-top2", "num_experts_per_tok", "5".into(), "num_experts_per_tok is 5, expected at most the 4 experts"),
        ("mixtral-fused", "num_local_experts", "3".into(), "expected num_local_experts 3 as the first dimension"),
        ("phimoe", "num_experts_per_tok", "1".into(), "num_experts_per_tok is 1, expected 2"),
        ("phimoe", "num_local_experts", "1".into(), "num_local_experts is 1, expected at least the 2"),
        ("qwen3-bias-tied", "layer_types", r#"["full_attention"]"#.into(), "expected 2 entries, one a layer"),
        ("qwen3-bias-tied", "layer_types", r#"["linear","linear"]"#.into(), "expected full_attention or sliding_att"),
        ("gemma2", "attn_logit_softcapping", "0".into(), "attn_logit_softcapping is 0, expected a finite number"),
        ("llama-gqa", "architectures", "[]".into(), "hidden_size"),
        ("llama-gqa", "architectures", "\"x\"".into(), "architectures is \"x\", expected a list of texts"),
        (
            "llama-gqa",
            "architectures",
            r#"["BertModel"]"#.into(),
            "unsupported architecture BertModel; supported are Ll",
        ),
        ("llama-gqa", "quantization_config", quantized(r#""quant_method":"gptq""#), "unsupported checkpoint: it is al"),
        ("llama-gqa", "quantization_config", quantized(r#""quant_method":"awq""#), "already quantized with awq;"),
        ("llama-gqa", "quantization_config", quantized(r#""load_in_4bit":true"#), "quantized with bitsandbytes;"),
        ("llama-gqa", "quantization_config", "7".into(), "quantization_config is 7, expected an object"),
    ];
    for (model, key, value, words) in cases {
        let case = format!("{model} {key} {value}");
        if words == "hidden_size" {
            // Without a class, `model_type` tells.
            assert!(load_with(model, &[(key, &value)]).is_ok(), "{case}");
            continue;
        }
        assert_refused(load_with(model, &[(key, &value)]), words, &case);
    }
    let nameless = load_with("llama-gqa", &[("architectures", ""), ("model_type", "")]);
    assert_refused(nameless, "architectures is missing, expected the name of the model's class", "no name");
    let unknown = load_with("llama-gqa", &[("architectures", ""), ("model_type", "\"mamba\"")]);
    assert_refused(unknown, "unsupported architecture mamba; supported are", "unknown model_type");
}

#[test]
fn tensors_that_do_not_fit_the_config_are_refused() {
    let cases = [
        (
            "vocab_size",
            "100",
            "tensor model.embed_tokens.weight: expected shape [100, 32] by config.json, found shape [101, 32]",
        ),
        ("intermediate_size", "57", "tensor model.layers.0.mlp.gate_proj.weight: expected shape [57, 32]"),
        ("num_hidden_layers", "3", "9 tensors are missing: model.layers.2."),
        (
            "num_hidden_layers",
            "1000",
            "num_hidden_layers is 1000, expected no more layers than the checkpoint has tensors",
        ),
        ("attention_bias", "true", "8 tensors are missing: model.layers.0.self_attn.q_proj.bias, "),
    ];
    for (key, value, words) in cases {
        assert_refused(load_with("llama-gqa", &[(key, value)]), words, &format!("{key} {value}"));
    }
    let one = load_with("phimoe", &[("lm_head_bias", "true"), ("tie_word_embeddings", "true")]);
    assert!(one.is_ok(), "the golden model has a bias on its head");
}

#[test]
fn types_that_cannot_be_computed_with_are_refused() {
    let names = ["weight"];
    let entry = |dtype: &str, bytes: usize| {
        format!(r#"{{"wte.{}":{{"dtype":"{dtype}","shape":[3,2],"data_offsets":[0,{bytes}]}}}}"#, names[0])
    };
    for (dtype, bytes) in [("I8", 6), ("F8_E4M3", 6), ("I32", 24), ("F64", 48), ("BOOL", 6)] {
        let files = ModelFiles::from_bytes(vec![(
            "model.safetensors".to_owned(),
            Cow::Owned(safetensors(&entry(dtype, bytes), bytes)),
        )]);
        let checkpoint = Checkpoint::open(&files).unwrap();
        let found = checkpoint.dtype("wte.weight").unwrap();
        assert!(found.element_type().is_none(), "{dtype} must not be computed with");
        assert_eq!(found.to_string(), dtype);
    }
}
