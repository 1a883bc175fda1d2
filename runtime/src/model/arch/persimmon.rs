//! Persimmon 8B: q, k, v of each head stored together, LayerNorm on q and k, squared ReLU.

use crate::error::Result;
use crate::load::{Checkpoint, Config};
use crate::model::arch::parts::{Names, Sizes, activation, decoder, divide_heads, sequential};
use crate::model::arch::rope::{RopeFacts, rope};
use crate::model::spec::{Attention, FeedForward, Linear, Matrix, Mlp, Part, Spec, Vector};

const DEFAULTS: Sizes = Sizes {
    vocab: 262_144,
    hidden: 4096,
    intermediate: 16_384,
    n_layers: 36,
    n_heads: 64,
    n_kv_heads: 0,
    head_dim: 0,
    max_position: 16_384,
};

pub(super) fn spec(config: &Config, checkpoint: &Checkpoint) -> Result<Spec> {
    let mut sizes = Sizes::read(config, checkpoint, DEFAULTS)?;
    let hidden = sizes.hidden;
    // This family knows neither grouped heads nor a head_dim of its own.
    sizes.head_dim = divide_heads(config, "num_attention_heads", hidden, sizes.n_heads)?;
    sizes.n_kv_heads = sizes.n_heads;
    let head_dim = sizes.head_dim;
    let eps = config.positive("layer_norm_eps", 1e-5)?;
    let activation = activation(config, "hidden_act", "relu2")?;
    let qk_layernorm = config.flag("qk_layernorm", true)?;
    let facts = RopeFacts::new(head_dim, 10_000.0, sizes.max_position);
    let rope = rope(config, &RopeFacts { default_partial: Some(0.5), ..facts })?;
    let names = Names::new(config, checkpoint, &["model.", ""], "embed_tokens.weight");
    let layer = |i: usize| {
        let name = format!("layers.{i}");
        let third = |index: usize| {
            let whole = names.linear(&format!("{name}.self_attn.query_key_value"), 3 * hidden, hidden, true);
            let part = Part::HeadThirds { index, head_dim };
            Linear {
                weight: Matrix { part, rows: hidden, ..whole.weight },
                inner: whole.inner,
                bias: whole.bias.map(|bias| Vector { part, len: hidden, ..bias }),
            }
        };
        let qk_norm = |kind: &str| names.layer_norm(&format!("{name}.self_attn.{kind}"), head_dim, eps, true);
        let attention = Attention {
            query: third(0),
            key: third(1),
            value: third(2),
            query_norm: qk_layernorm.then(|| qk_norm("q_layernorm")),
            key_norm: qk_layernorm.then(|| qk_norm("k_layernorm")),
            ..names.attention(&format!("{name}.self_attn"), "dense", &sizes, true, true)
        };
        let mlp = FeedForward {
            gate: None,
            up: names.linear(&format!("{name}.mlp.dense_h_to_4h"), sizes.intermediate, hidden, true),
            down: names.linear(&format!("{name}.mlp.dense_4h_to_h"), hidden, sizes.intermediate, true),
            activation,
        };
        sequential(
            names.layer_norm(&format!("{name}.input_layernorm"), hidden, eps, true),
            attention,
            names.layer_norm(&format!("{name}.post_attention_layernorm"), hidden, eps, true),
            Mlp::dense(mlp),
        )
    };
    let layers = (0..sizes.n_layers).map(layer).collect();
    let embedding = names.embedding("embed_tokens", sizes.vocab, hidden);
    let head = names.head("lm_head.weight", &embedding, config.flag("tie_word_embeddings", false)?, None);
    let final_norm = names.layer_norm("final_layernorm", hidden, eps, true);
    Ok(decoder("PersimmonForCausalLM", &sizes, embedding, head, vec![rope], layers, final_norm))
}
