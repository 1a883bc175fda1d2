//! Mistral 7B and its successors with the same class: Llama without biases and with a sliding window.

use crate::error::Result;
use crate::load::{Checkpoint, Config};
use crate::model::arch::parts::{Names, Sizes, activation, decoder, sequential, window};
use crate::model::arch::rope::{RopeFacts, rope};
use crate::model::spec::{Attention, Mlp, Spec};

const DEFAULTS: Sizes = Sizes {
    vocab: 32_000,
    hidden: 4096,
    intermediate: 14_336,
    n_layers: 32,
    n_heads: 32,
    n_kv_heads: 8,
    head_dim: 0,
    max_position: 131_072,
};

pub(super) fn spec(config: &Config, checkpoint: &Checkpoint) -> Result<Spec> {
    let sizes = Sizes::read(config, checkpoint, DEFAULTS)?;
    let eps = config.positive("rms_norm_eps", 1e-6)?;
    let activation = activation(config, "hidden_act", "silu")?;
    let window = window(config, Some(4096))?;
    let rope = rope(config, &RopeFacts::new(sizes.head_dim, 10_000.0, sizes.max_position))?;
    let names = Names::new(config, checkpoint, &["model.", ""], "embed_tokens.weight");
    let layer = |i: usize| {
        let name = format!("layers.{i}");
        let attention = names.attention(&format!("{name}.self_attn"), "o_proj", &sizes, false, false);
        sequential(
            names.rms_norm(&format!("{name}.input_layernorm"), sizes.hidden, eps),
            Attention { window, ..attention },
            names.rms_norm(&format!("{name}.post_attention_layernorm"), sizes.hidden, eps),
            Mlp::dense(names.gated(&format!("{name}.mlp"), &sizes, activation, false)),
        )
    };
    let layers = (0..sizes.n_layers).map(layer).collect();
    let embedding = names.embedding("embed_tokens", sizes.vocab, sizes.hidden);
    let head = names.head("lm_head.weight", &embedding, config.flag("tie_word_embeddings", false)?, None);
    let final_norm = names.rms_norm("norm", sizes.hidden, eps);
    Ok(decoder("MistralForCausalLM", &sizes, embedding, head, vec![rope], layers, final_norm))
}
