//! Gemma 2: Gemma with a second norm after each half, soft caps, and a window on every other layer.

use crate::error::Result;
use crate::load::{Checkpoint, Config};
use crate::model::arch::gemma::{embedding, norm, refuse_bidirectional};
use crate::model::arch::parts::{Names, Sizes, activation, decoder, sequential, sliding_layers, window};
use crate::model::arch::rope::{RopeFacts, rope};
use crate::model::spec::{Attention, Layer, Mlp, Spec};

const DEFAULTS: Sizes = Sizes {
    vocab: 256_000,
    hidden: 2304,
    intermediate: 9216,
    n_layers: 26,
    n_heads: 8,
    n_kv_heads: 4,
    head_dim: 256,
    max_position: 8192,
};

pub(super) fn spec(config: &Config, checkpoint: &Checkpoint) -> Result<Spec> {
    refuse_bidirectional(config)?;
    let sizes = Sizes::read(config, checkpoint, DEFAULTS)?;
    let eps = config.positive("rms_norm_eps", 1e-6)?;
    let activation = activation(config, "hidden_activation", "gelu_pytorch_tanh")?;
    let bias = config.flag("attention_bias", false)?;
    let scale = score_scale(config)?;
    let softcap = softcap(config, "attn_logit_softcapping", Some(50.0))?;
    let window = window(config, Some(4096))?;
    let slides = sliding_layers(config, sizes.n_layers, |i| i.is_multiple_of(2))?;
    let rope = rope(config, &RopeFacts::new(sizes.head_dim, 10_000.0, sizes.max_position))?;
    let names = Names::new(config, checkpoint, &["model.", ""], "embed_tokens.weight");
    let layer = |(i, slides): (usize, bool)| {
        let name = format!("layers.{i}");
        let attention = Attention {
            scale,
            softcap,
            window: window.filter(|_| slides),
            ..names.attention(&format!("{name}.self_attn"), "o_proj", &sizes, bias, bias)
        };
        let mlp = Mlp::dense(names.gated(&format!("{name}.mlp"), &sizes, activation, false));
        four_norms(&names, &name, sizes.hidden, eps, attention, mlp)
    };
    let layers = slides.into_iter().enumerate().map(layer).collect();
    let embedding = embedding(&names, &sizes);
    let head = names.head("lm_head.weight", &embedding, config.flag("tie_word_embeddings", true)?, None);
    let final_norm = norm(&names, "norm", sizes.hidden, eps);
    let logit_softcap = softcap_of_logits(config, Some(30.0))?;
    Ok(Spec { logit_softcap, ..decoder("Gemma2ForCausalLM", &sizes, embedding, head, vec![rope], layers, final_norm) })
}

/// A layer that norms the input and the output of each half.
pub(super) fn four_norms(
    names: &Names<'_>,
    name: &str,
    hidden: usize,
    eps: f64,
    attention: Attention,
    mlp: Mlp,
) -> Layer {
    let norm = |kind: &str| norm(names, &format!("{name}.{kind}"), hidden, eps);
    Layer {
        post_attention_norm: Some(norm("post_attention_layernorm")),
        post_mlp_norm: Some(norm("post_feedforward_layernorm")),
        ..sequential(norm("input_layernorm"), attention, norm("pre_feedforward_layernorm"), mlp)
    }
}

/// query_pre_attn_scalar^(-1/2).
pub(super) fn score_scale(config: &Config) -> Result<f32> {
    Ok((config.positive("query_pre_attn_scalar", 256.0)? as f32).sqrt().recip())
}

/// `final_logit_softcapping`.
pub(super) fn softcap_of_logits(config: &Config, default: Option<f64>) -> Result<Option<f32>> {
    softcap(config, "final_logit_softcapping", default)
}

/// A soft cap. Null means none; an absent key means the family's default.
fn softcap(config: &Config, key: &str, default: Option<f64>) -> Result<Option<f32>> {
    let default = if config.is_null(key) { None } else { default };
    Ok(config.optional_positive(key)?.or(default).map(|cap| cap as f32))
}
