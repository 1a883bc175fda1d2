//! StableLM 2 and StableLM 3B: LayerNorm with bias, partial rotary; the parallel variant has one norm a layer.

use crate::error::Result;
use crate::load::{Checkpoint, Config};
use crate::model::arch::parts::{Names, Sizes, activation, decoder, divide_heads, parallel, sequential};
use crate::model::arch::rope::{RopeFacts, rope};
use crate::model::spec::{Attention, Mlp, Norm, Spec, Vector};

const DEFAULTS: Sizes = Sizes {
    vocab: 50_304,
    hidden: 2560,
    intermediate: 6912,
    n_layers: 32,
    n_heads: 32,
    n_kv_heads: 32,
    head_dim: 0,
    max_position: 4096,
};

pub(super) fn spec(config: &Config, checkpoint: &Checkpoint) -> Result<Spec> {
    let mut sizes = Sizes::read(config, checkpoint, DEFAULTS)?;
    // This family knows no head_dim of its own.
    sizes.head_dim = divide_heads(config, "num_attention_heads", sizes.hidden, sizes.n_heads)?;
    let eps = config.positive("layer_norm_eps", 1e-5)?;
    let activation = activation(config, "hidden_act", "silu")?;
    let qkv_bias = config.flag("use_qkv_bias", false)?;
    let qk_layernorm = config.flag("qk_layernorm", false)?;
    // Each head has a tensor, which keeps a config that lies from filling the memory with names.
    if qk_layernorm && sizes.n_heads > checkpoint.len() {
        let expected = format!("no more heads than the checkpoint has tensors, {}", checkpoint.len());
        return Err(config.error("num_attention_heads", expected));
    }
    let is_parallel = config.flag("use_parallel_residual", false)?;
    let facts = RopeFacts::new(sizes.head_dim, 10_000.0, sizes.max_position);
    let rope = rope(config, &RopeFacts { default_partial: Some(0.25), ..facts })?;
    let names = Names::new(config, checkpoint, &["model.", ""], "embed_tokens.weight");
    let layer = |i: usize| {
        let name = format!("layers.{i}");
        // A gain for each head, each in a tensor of its own.
        let head_norms = |kind: &str, n_heads: usize| {
            let norm = names.layer_norm(&format!("{name}.self_attn.{kind}.norms.0"), sizes.head_dim, eps, false);
            let tensor = |head| names.tensor(&format!("{name}.self_attn.{kind}.norms.{head}.weight"));
            let tensors = (0..n_heads).map(tensor).collect();
            let weight = norm.weight.map(|weight| Vector { tensors, len: n_heads * sizes.head_dim, ..weight });
            Norm { weight, ..norm }
        };
        let attention = Attention {
            query_norm: qk_layernorm.then(|| head_norms("q_layernorm", sizes.n_heads)),
            key_norm: qk_layernorm.then(|| head_norms("k_layernorm", sizes.n_kv_heads)),
            ..names.attention(&format!("{name}.self_attn"), "o_proj", &sizes, qkv_bias, false)
        };
        let mlp = Mlp::dense(names.gated(&format!("{name}.mlp"), &sizes, activation, false));
        let norm = |kind: &str| names.layer_norm(&format!("{name}.{kind}"), sizes.hidden, eps, true);
        if is_parallel {
            parallel(norm("input_layernorm"), attention, mlp)
        } else {
            sequential(norm("input_layernorm"), attention, norm("post_attention_layernorm"), mlp)
        }
    };
    let layers = (0..sizes.n_layers).map(layer).collect();
    let embedding = names.embedding("embed_tokens", sizes.vocab, sizes.hidden);
    let head = names.head("lm_head.weight", &embedding, config.flag("tie_word_embeddings", false)?, None);
    let final_norm = names.layer_norm("norm", sizes.hidden, eps, true);
    Ok(decoder("StableLmForCausalLM", &sizes, embedding, head, vec![rope], layers, final_norm))
}
