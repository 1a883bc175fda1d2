//! Mixtral: Mistral with a mixture of experts in place of the MLP.

use infer_kernels::cpu::moe::Routing;

use crate::error::Result;
use crate::load::{Checkpoint, Config};
use crate::model::arch::experts::{Experts, n_experts};
use crate::model::arch::parts::{Names, Sizes, activation, decoder, sequential, window};
use crate::model::arch::rope::{RopeFacts, rope};
use crate::model::spec::{Attention, Spec};

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
    let eps = config.positive("rms_norm_eps", 1e-5)?;
    let window = window(config, None)?;
    let n_experts = n_experts(config, 8)?;
    let top_k = config.size("num_experts_per_tok", 2)?;
    if top_k > n_experts {
        return Err(config.error("num_experts_per_tok", format!("at most the {n_experts} experts")));
    }
    let rope = rope(config, &RopeFacts::new(sizes.head_dim, 1e6, sizes.max_position))?;
    let names = Names::new(config, checkpoint, &["model.", ""], "embed_tokens.weight");
    let experts = Experts {
        names: &names,
        sizes: &sizes,
        activation: activation(config, "hidden_act", "silu")?,
        n_experts,
        routing: Routing::SoftmaxTopK { top_k, renormalize: true },
        fused_router: "gate",
    };
    let layer = |i: usize| {
        let name = format!("layers.{i}");
        let attention = names.attention(&format!("{name}.self_attn"), "o_proj", &sizes, false, false);
        Ok(sequential(
            names.rms_norm(&format!("{name}.input_layernorm"), sizes.hidden, eps),
            Attention { window, ..attention },
            names.rms_norm(&format!("{name}.post_attention_layernorm"), sizes.hidden, eps),
            experts.of_layer(&name)?,
        ))
    };
    let layers = (0..sizes.n_layers).map(layer).collect::<Result<_>>()?;
    let embedding = names.embedding("embed_tokens", sizes.vocab, sizes.hidden);
    let head = names.head("lm_head.weight", &embedding, config.flag("tie_word_embeddings", false)?, None);
    let final_norm = names.rms_norm("norm", sizes.hidden, eps);
    Ok(decoder("MixtralForCausalLM", &sizes, embedding, head, vec![rope], layers, final_norm))
}
