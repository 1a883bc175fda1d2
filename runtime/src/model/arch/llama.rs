//! Llama 1 to 3.3, and the many models that use its class.

use crate::error::Result;
use crate::load::{Checkpoint, Config};
use crate::model::arch::parts::{Names, Sizes, activation, decoder, sequential};
use crate::model::arch::rope::{RopeFacts, rope};
use crate::model::spec::{Mlp, Spec};

const DEFAULTS: Sizes = Sizes {
    vocab: 32_000,
    hidden: 4096,
    intermediate: 11_008,
    n_layers: 32,
    n_heads: 32,
    n_kv_heads: 0,
    head_dim: 0,
    max_position: 2048,
};

pub(super) fn spec(config: &Config, checkpoint: &Checkpoint) -> Result<Spec> {
    let sizes = Sizes::read(config, checkpoint, DEFAULTS)?;
    let eps = config.positive("rms_norm_eps", 1e-6)?;
    let activation = activation(config, "hidden_act", "silu")?;
    let attention_bias = config.flag("attention_bias", false)?;
    let mlp_bias = config.flag("mlp_bias", false)?;
    let rope = rope(config, &RopeFacts::new(sizes.head_dim, 10_000.0, sizes.max_position))?;
    let names = Names::new(config, checkpoint, &["model.", ""], "embed_tokens.weight");
    let layer = |i: usize| {
        let name = format!("layers.{i}");
        sequential(
            names.rms_norm(&format!("{name}.input_layernorm"), sizes.hidden, eps),
            names.attention(&format!("{name}.self_attn"), "o_proj", &sizes, attention_bias, attention_bias),
            names.rms_norm(&format!("{name}.post_attention_layernorm"), sizes.hidden, eps),
            Mlp::dense(names.gated(&format!("{name}.mlp"), &sizes, activation, mlp_bias)),
        )
    };
    let layers = (0..sizes.n_layers).map(layer).collect();
    let embedding = names.embedding("embed_tokens", sizes.vocab, sizes.hidden);
    let head = names.head("lm_head.weight", &embedding, config.flag("tie_word_embeddings", false)?, None);
    let final_norm = names.rms_norm("norm", sizes.hidden, eps);
    Ok(decoder("LlamaForCausalLM", &sizes, embedding, head, vec![rope], layers, final_norm))
}
