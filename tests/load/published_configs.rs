//! The facts of published models, read from their configs (shortened to the keys that matter).

use std::borrow::Cow;
use std::path::Path;

use infer_runtime::load::{Checkpoint, Config, ModelFiles, check_tensors};
use infer_runtime::model::arch::spec_from;
use infer_runtime::model::spec::{Block, Layer, Mlp, RopeScaling, Spec};

use crate::{assert_refused, file_of};

/// A checkpoint of a thousand tensors that belong to no model.
fn checkpoint() -> Checkpoint {
    let names: Vec<String> = (0..1000).map(|i| format!("t{i}")).collect();
    let bytes = file_of(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let files = ModelFiles::from_bytes(vec![("model.safetensors".to_owned(), Cow::Owned(bytes))]);
    Checkpoint::open(&files).unwrap()
}

fn spec(config: &str) -> Spec {
    let config = Config::parse(Path::new("config.json"), config.as_bytes()).unwrap();
    spec_from(&config, &checkpoint()).unwrap_or_else(|error| panic!("{error}"))
}

/// Heads, heads of keys, their size, window, of a layer.
fn attention(layer: &Layer) -> (usize, usize, usize, Option<usize>) {
    let attention = &layer.attention;
    (attention.n_heads, attention.n_kv_heads, attention.head_dim, attention.window)
}

#[test]
fn llama_3_1_8b() {
    let spec = spec(
        r#"{"architectures":["LlamaForCausalLM"],"hidden_size":4096,"intermediate_size":14336,"num_attention_heads":32,
        "num_hidden_layers":32,"num_key_value_heads":8,"vocab_size":128256,"max_position_embeddings":131072,
        "rms_norm_eps":1e-05,"rope_theta":500000.0,"tie_word_embeddings":false,"attention_bias":false,
        "rope_scaling":{"factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,
        "original_max_position_embeddings":8192,"rope_type":"llama3"}}"#,
    );
    assert_eq!((spec.layers.len(), spec.vocab_size, spec.context_length), (32, 128_256, Some(131_072)));
    assert_eq!(attention(&spec.layers[31]), (32, 8, 128, None));
    assert_eq!(spec.head.weight.tensor, "lm_head.weight");
    let RopeScaling::Fixed { inv_freq, attention_factor } = &spec.ropes[0].scaling else { panic!("llama3 is fixed") };
    assert_eq!((inv_freq.len(), inv_freq[0], *attention_factor), (64, 1.0, 1.0));
    let slowest = 500_000f32.powf(-126.0 / 128.0) / 8.0;
    assert!((inv_freq[63] / slowest - 1.0).abs() < 1e-5, "{} is not {slowest}", inv_freq[63]);
}

#[test]
fn mixtral_8x7b_and_what_is_missing_of_it() {
    let spec = spec(
        r#"{"architectures":["MixtralForCausalLM"],"hidden_size":4096,"intermediate_size":14336,
        "num_attention_heads":32,"num_hidden_layers":32,"num_key_value_heads":8,"num_local_experts":8,
        "num_experts_per_tok":2,"rms_norm_eps":1e-05,"rope_theta":1000000.0,"sliding_window":null,"vocab_size":32000,
        "max_position_embeddings":32768,"tie_word_embeddings":false,"router_aux_loss_coef":0.02}"#,
    );
    assert_eq!(attention(&spec.layers[0]), (32, 8, 128, None));
    let Mlp::Experts { routing, experts, .. } = &spec.layers[31].mlp else { panic!("expected experts") };
    assert_eq!((experts.len(), routing.n_chosen()), (8, 2));
    let gate = experts[7].gate.as_ref().map(|gate| gate.weight.tensor.as_str());
    assert_eq!(gate, Some("model.layers.31.block_sparse_moe.experts.7.w1.weight"));
    // 995 tensors in all, of which none is there.
    let words = "995 tensors are missing: model.embed_tokens.weight, model.layers.0.input_layernorm.weight, model.";
    assert_refused(check_tensors(&spec, &checkpoint()), words, "Mixtral without tensors");
}

#[test]
fn phi_2() {
    let spec = spec(
        r#"{"architectures":["PhiForCausalLM"],"hidden_act":"gelu_new","hidden_size":2560,"intermediate_size":10240,
        "layer_norm_eps":1e-05,"max_position_embeddings":2048,"num_attention_heads":32,"num_hidden_layers":32,
        "num_key_value_heads":32,"partial_rotary_factor":0.4,"qk_layernorm":false,"rope_scaling":null,
        "rope_theta":10000.0,"tie_word_embeddings":false,"vocab_size":51200}"#,
    );
    assert_eq!(attention(&spec.layers[0]), (32, 32, 80, None));
    assert_eq!((spec.layers[0].block, spec.ropes[0].rotary_dim), (Block::Parallel, 32));
    assert_eq!(spec.head.bias.as_ref().map(|bias| bias.tensors[0].as_str()), Some("lm_head.bias"));
}

#[test]
fn phi_4_mini() {
    let factors = |factor: f32| vec![factor.to_string(); 48].join(",");
    let spec = spec(&format!(
        r#"{{"architectures":["Phi3ForCausalLM"],"hidden_size":3072,"intermediate_size":8192,"num_attention_heads":24,
        "num_hidden_layers":32,"num_key_value_heads":8,"partial_rotary_factor":0.75,"rms_norm_eps":1e-05,
        "max_position_embeddings":131072,"original_max_position_embeddings":4096,"rope_theta":10000.0,
        "rope_scaling":{{"type":"longrope","short_factor":[{}],"long_factor":[{}]}},
        "sliding_window":262144,"tie_word_embeddings":true,"vocab_size":200064}}"#,
        factors(1.0),
        factors(2.0)
    ));
    assert_eq!(attention(&spec.layers[0]), (24, 8, 128, Some(262_144)));
    assert_eq!((spec.ropes[0].rotary_dim, spec.context_length), (96, Some(131_072)));
    let RopeScaling::LongRope { original_context, long_attention_factor, .. } = spec.ropes[0].scaling else {
        panic!("expected longrope, found {:?}", spec.ropes[0])
    };
    assert_eq!(original_context, 4096);
    // sqrt(1 + ln 32 / ln 4096)
    assert!((long_attention_factor - 1.190_238).abs() < 1e-5, "{long_attention_factor}");
    assert_eq!(spec.head.weight.tensor, "model.embed_tokens.weight", "a tied head is the embedding");
}

#[test]
fn qwen_2_5_0_5b_does_not_use_its_window() {
    let spec = spec(
        r#"{"architectures":["Qwen2ForCausalLM"],"hidden_act":"silu","hidden_size":896,"intermediate_size":4864,
        "max_position_embeddings":32768,"max_window_layers":24,"num_attention_heads":14,"num_hidden_layers":24,
        "num_key_value_heads":2,"rms_norm_eps":1e-06,"rope_theta":1000000.0,"sliding_window":32768,
        "tie_word_embeddings":true,"use_mrope":false,"use_sliding_window":false,"vocab_size":151936}"#,
    );
    assert_eq!(attention(&spec.layers[23]), (14, 2, 64, None));
    let biases =
        [&spec.layers[0].attention.query, &spec.layers[0].attention.output].map(|linear| linear.bias.is_some());
    assert_eq!(biases, [true, false]);
}

#[test]
fn gemma_3_4b_has_its_text_model_inside() {
    let spec = spec(
        r#"{"architectures":["Gemma3ForConditionalGeneration"],"model_type":"gemma3","vision_config":{"hidden_size":9},
        "text_config":{"hidden_size":2560,"intermediate_size":10240,"model_type":"gemma3_text","num_hidden_layers":34,
        "rope_scaling":{"factor":8.0,"rope_type":"linear"},"sliding_window":1024}}"#,
    );
    assert_eq!((spec.vocab_size, spec.hidden_size, spec.layers.len()), (262_208, 2560, 34));
    let window = |i: usize| attention(&spec.layers[i]);
    assert_eq!(
        [window(0), window(4), window(5), window(33)].map(|facts| facts.3),
        [Some(1024), Some(1024), None, Some(1024)]
    );
    assert_eq!((window(5).0, window(5).1, window(5).2), (8, 4, 256));
    let rope = |i: usize| &spec.ropes[spec.layers[i].attention.rope.unwrap()];
    assert!(rope(0).theta == 1e4 && matches!(rope(0).scaling, RopeScaling::Default), "local layers: {:?}", rope(0));
    assert!(rope(5).theta == 1e6 && matches!(rope(5).scaling, RopeScaling::Linear { factor: 8.0 }), "{:?}", rope(5));
}

#[test]
fn gpt_2_is_all_defaults() {
    let spec = spec(r#"{"model_type":"gpt2","n_ctx":1024}"#);
    assert_eq!((spec.vocab_size, spec.hidden_size, spec.context_length), (50_257, 768, Some(1024)));
    assert_eq!(attention(&spec.layers[11]), (12, 12, 64, None));
    assert!(spec.ropes.is_empty() && spec.embedding.positions.is_some());
}
