//! Phi-3, Phi-3.5, Phi-4 and Phi-4-mini: Llama with q, k, v stored as one matrix and gate, up as another.

use crate::error::Result;
use crate::load::{Checkpoint, Config};
use crate::model::arch::parts::{Names, Sizes, activation, decoder, sequential, window};
use crate::model::arch::rope::{RopeFacts, rope};
use crate::model::spec::{Attention, FeedForward, Mlp, Spec};

const DEFAULTS: Sizes = Sizes {
    vocab: 32_064,
    hidden: 3072,
    intermediate: 8192,
    n_layers: 32,
    n_heads: 32,
    n_kv_heads: 0,
    head_dim: 0,
    max_position: 4096,
};

pub(super) fn spec(config: &Config, checkpoint: &Checkpoint) -> Result<Spec> {
    let sizes = Sizes::read(config, checkpoint, DEFAULTS)?;
    let (hidden, intermediate) = (sizes.hidden, sizes.intermediate);
    let eps = config.positive("rms_norm_eps", 1e-5)?;
    let activation = activation(config, "hidden_act", "silu")?;
    let window = window(config, None)?;
    let facts = RopeFacts {
        default_partial: Some(1.0),
        phi3_original_context: Some(config.size("original_max_position_embeddings", 4096)?),
        ..RopeFacts::new(sizes.head_dim, 10_000.0, sizes.max_position)
    };
    let rope = rope(config, &facts)?;
    let names = Names::new(config, checkpoint, &["model.", ""], "embed_tokens.weight");
    let query = sizes.n_heads * sizes.head_dim;
    let kv = sizes.n_kv_heads * sizes.head_dim;
    let layer = |i: usize| {
        let name = format!("layers.{i}");
        let qkv = format!("{name}.self_attn.qkv_proj");
        let attention = Attention {
            window,
            query: names.rows(&qkv, 0, query, query + 2 * kv, hidden, false),
            key: names.rows(&qkv, query, kv, query + 2 * kv, hidden, false),
            value: names.rows(&qkv, query + kv, kv, query + 2 * kv, hidden, false),
            ..names.attention(&format!("{name}.self_attn"), "o_proj", &sizes, false, false)
        };
        let gate_up = format!("{name}.mlp.gate_up_proj");
        let mlp = FeedForward {
            gate: Some(names.rows(&gate_up, 0, intermediate, 2 * intermediate, hidden, false)),
            up: names.rows(&gate_up, intermediate, intermediate, 2 * intermediate, hidden, false),
            down: names.linear(&format!("{name}.mlp.down_proj"), hidden, intermediate, false),
            activation,
        };
        sequential(
            names.rms_norm(&format!("{name}.input_layernorm"), hidden, eps),
            attention,
            names.rms_norm(&format!("{name}.post_attention_layernorm"), hidden, eps),
            Mlp::dense(mlp),
        )
    };
    let layers = (0..sizes.n_layers).map(layer).collect();
    let embedding = names.embedding("embed_tokens", sizes.vocab, hidden);
    let head = names.head("lm_head.weight", &embedding, config.flag("tie_word_embeddings", false)?, None);
    let final_norm = names.rms_norm("norm", hidden, eps);
    Ok(decoder("Phi3ForCausalLM", &sizes, embedding, head, vec![rope], layers, final_norm))
}
