//! Phi-1, Phi-1.5 and Phi-2: one LayerNorm feeds attention and MLP, both are added to the residual; biases everywhere.

use crate::error::Result;
use crate::load::{Checkpoint, Config};
use crate::model::arch::parts::{Names, Sizes, activation, decoder, parallel};
use crate::model::arch::rope::{RopeFacts, rope};
use crate::model::spec::{Attention, FeedForward, Mlp, Spec};

const DEFAULTS: Sizes = Sizes {
    vocab: 51_200,
    hidden: 2048,
    intermediate: 8192,
    n_layers: 24,
    n_heads: 32,
    n_kv_heads: 0,
    head_dim: 0,
    max_position: 2048,
};

pub(super) fn spec(config: &Config, checkpoint: &Checkpoint) -> Result<Spec> {
    let sizes = Sizes::read(config, checkpoint, DEFAULTS)?;
    let eps = config.positive("layer_norm_eps", 1e-5)?;
    let activation = activation(config, "hidden_act", "gelu_new")?;
    let qk_layernorm = config.flag("qk_layernorm", false)?;
    let facts = RopeFacts::new(sizes.head_dim, 10_000.0, sizes.max_position);
    let rope = rope(config, &RopeFacts { default_partial: Some(0.5), ..facts })?;
    let names = Names::new(config, checkpoint, &["model.", ""], "embed_tokens.weight");
    let layer = |i: usize| {
        let name = format!("layers.{i}");
        let qk_norm = |kind: &str| names.layer_norm(&format!("{name}.self_attn.{kind}"), sizes.head_dim, eps, true);
        let attention = Attention {
            query_norm: qk_layernorm.then(|| qk_norm("q_layernorm")),
            key_norm: qk_layernorm.then(|| qk_norm("k_layernorm")),
            ..names.attention(&format!("{name}.self_attn"), "dense", &sizes, true, true)
        };
        let mlp = FeedForward {
            gate: None,
            up: names.linear(&format!("{name}.mlp.fc1"), sizes.intermediate, sizes.hidden, true),
            down: names.linear(&format!("{name}.mlp.fc2"), sizes.hidden, sizes.intermediate, true),
            activation,
        };
        let norm = names.layer_norm(&format!("{name}.input_layernorm"), sizes.hidden, eps, true);
        parallel(norm, attention, Mlp::dense(mlp))
    };
    let layers = (0..sizes.n_layers).map(layer).collect();
    let embedding = names.embedding("embed_tokens", sizes.vocab, sizes.hidden);
    let tied = config.flag("tie_word_embeddings", false)?;
    let head = names.head("lm_head.weight", &embedding, tied, Some("lm_head.bias"));
    let final_norm = names.layer_norm("final_layernorm", sizes.hidden, eps, true);
    Ok(decoder("PhiForCausalLM", &sizes, embedding, head, vec![rope], layers, final_norm))
}
