//! Phi-3.5-MoE: LayerNorm with bias, biases in attention and head, two experts chosen by SparseMixer.

use infer_kernels::cpu::moe::Routing;

use crate::error::Result;
use crate::load::{Checkpoint, Config};
use crate::model::arch::experts::{Experts, n_experts};
use crate::model::arch::parts::{Names, Sizes, activation, decoder, sequential, window};
use crate::model::arch::rope::{RopeFacts, rope};
use crate::model::spec::{Attention, Spec};

const DEFAULTS: Sizes = Sizes {
    vocab: 32_064,
    hidden: 4096,
    intermediate: 6400,
    n_layers: 32,
    n_heads: 32,
    n_kv_heads: 8,
    head_dim: 0,
    max_position: 131_072,
};

pub(super) fn spec(config: &Config, checkpoint: &Checkpoint) -> Result<Spec> {
    let sizes = Sizes::read(config, checkpoint, DEFAULTS)?;
    let eps = config.positive("rms_norm_eps", 1e-5)?;
    let window = window(config, None)?;
    let n_experts = n_experts(config, 16)?;
    if config.size("num_experts_per_tok", 2)? != 2 {
        return Err(config.error("num_experts_per_tok", "2, which SparseMixer chooses"));
    }
    if n_experts < 2 {
        return Err(config.error("num_local_experts", "at least the 2 experts that SparseMixer chooses"));
    }
    let jitter = config.optional_number("router_jitter_noise")?.unwrap_or(0.01) as f32;
    if jitter < 0.0 {
        return Err(config.error("router_jitter_noise", "zero or more"));
    }
    let facts = RopeFacts { has_mscales: true, ..RopeFacts::new(sizes.head_dim, 1e6, sizes.max_position) };
    let rope = rope(config, &facts)?;
    let names = Names::new(config, checkpoint, &["model.", ""], "embed_tokens.weight");
    let experts = Experts {
        names: &names,
        sizes: &sizes,
        activation: activation(config, "hidden_act", "silu")?,
        n_experts,
        routing: Routing::SparseMixer { jitter },
        fused_router: "router",
    };
    let bias = config.flag("attention_bias", false)?;
    let layer = |i: usize| {
        let name = format!("layers.{i}");
        let attention = names.attention(&format!("{name}.self_attn"), "o_proj", &sizes, bias, bias);
        Ok(sequential(
            names.layer_norm(&format!("{name}.input_layernorm"), sizes.hidden, eps, true),
            Attention { window, ..attention },
            names.layer_norm(&format!("{name}.post_attention_layernorm"), sizes.hidden, eps, true),
            experts.of_layer(&name)?,
        ))
    };
    let layers = (0..sizes.n_layers).map(layer).collect::<Result<_>>()?;
    let embedding = names.embedding("embed_tokens", sizes.vocab, sizes.hidden);
    let head_bias = config.flag("lm_head_bias", false)?.then_some("lm_head.bias");
    let head = names.head("lm_head.weight", &embedding, config.flag("tie_word_embeddings", false)?, head_bias);
    let final_norm = names.layer_norm("norm", sizes.hidden, eps, true);
    Ok(decoder("PhiMoEForCausalLM", &sizes, embedding, head, vec![rope], layers, final_norm))
}
