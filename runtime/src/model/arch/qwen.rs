//! Qwen 2, 2.5 and 3 (dense): Llama with biases on q, k and v, or with norms of q and k per head.

use crate::error::Result;
use crate::load::{Checkpoint, Config};
use crate::model::arch::parts::{Names, Sizes, activation, decoder, sequential, sliding_layers, window};
use crate::model::arch::rope::{RopeFacts, rope};
use crate::model::spec::{Attention, Mlp, Spec};

const DEFAULTS: Sizes = Sizes {
    vocab: 151_936,
    hidden: 4096,
    intermediate: 22_016,
    n_layers: 32,
    n_heads: 32,
    n_kv_heads: 32,
    head_dim: 0,
    max_position: 32_768,
};

pub(super) fn qwen2(config: &Config, checkpoint: &Checkpoint) -> Result<Spec> {
    let sizes = Sizes::read(config, checkpoint, DEFAULTS)?;
    spec("Qwen2ForCausalLM", config, checkpoint, &sizes, Biases { qkv: true, output: false }, false)
}

pub(super) fn qwen3(config: &Config, checkpoint: &Checkpoint) -> Result<Spec> {
    let sizes = Sizes::read(config, checkpoint, Sizes { head_dim: 128, ..DEFAULTS })?;
    let bias = config.flag("attention_bias", false)?;
    spec("Qwen3ForCausalLM", config, checkpoint, &sizes, Biases { qkv: bias, output: bias }, true)
}

/// Which projections of attention have a bias.
struct Biases {
    qkv: bool,
    output: bool,
}

fn spec(
    architecture: &str,
    config: &Config,
    checkpoint: &Checkpoint,
    sizes: &Sizes,
    biases: Biases,
    qk_norm: bool,
) -> Result<Spec> {
    let eps = config.positive("rms_norm_eps", 1e-6)?;
    let activation = activation(config, "hidden_act", "silu")?;
    // The window is there in every config and used only on request, from one layer on.
    let window = if config.flag("use_sliding_window", false)? { window(config, Some(4096))? } else { None };
    let max_window_layers = config.count("max_window_layers", 28)?;
    let slides = sliding_layers(config, sizes.n_layers, |i| i >= max_window_layers)?;
    let rope = rope(config, &RopeFacts::new(sizes.head_dim, 10_000.0, sizes.max_position))?;
    let names = Names::new(config, checkpoint, &["model.", ""], "embed_tokens.weight");
    let layer = |(i, slides): (usize, bool)| {
        let name = format!("layers.{i}");
        let norm = |kind: &str| names.rms_norm(&format!("{name}.self_attn.{kind}"), sizes.head_dim, eps);
        let attention = Attention {
            window: window.filter(|_| slides),
            query_norm: qk_norm.then(|| norm("q_norm")),
            key_norm: qk_norm.then(|| norm("k_norm")),
            ..names.attention(&format!("{name}.self_attn"), "o_proj", sizes, biases.qkv, biases.output)
        };
        sequential(
            names.rms_norm(&format!("{name}.input_layernorm"), sizes.hidden, eps),
            attention,
            names.rms_norm(&format!("{name}.post_attention_layernorm"), sizes.hidden, eps),
            Mlp::dense(names.gated(&format!("{name}.mlp"), sizes, activation, false)),
        )
    };
    let layers = slides.into_iter().enumerate().map(layer).collect();
    let embedding = names.embedding("embed_tokens", sizes.vocab, sizes.hidden);
    let head = names.head("lm_head.weight", &embedding, config.flag("tie_word_embeddings", false)?, None);
    let final_norm = names.rms_norm("norm", sizes.hidden, eps);
    Ok(decoder(architecture, sizes, embedding, head, vec![rope], layers, final_norm))
}
