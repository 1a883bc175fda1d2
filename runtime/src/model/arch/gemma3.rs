//! Gemma 3 (text): Gemma 2 with norms of q and k in place of the cap on scores, and rotary embeddings of two kinds.

use crate::error::Result;
use crate::load::{Checkpoint, Config};
use crate::model::arch::gemma::{embedding, norm, refuse_bidirectional};
use crate::model::arch::gemma2::{four_norms, score_scale, softcap_of_logits};
use crate::model::arch::parts::{Names, Sizes, activation, decoder, sliding_layers, window};
use crate::model::arch::rope::{RopeFacts, rope_of_section};
use crate::model::spec::{Attention, Mlp, Rope, Spec};

const DEFAULTS: Sizes = Sizes {
    vocab: 262_208,
    hidden: 2304,
    intermediate: 9216,
    n_layers: 26,
    n_heads: 8,
    n_kv_heads: 4,
    head_dim: 256,
    max_position: 131_072,
};

/// Indexes of the two rotary embeddings.
const FULL: usize = 0;
const SLIDING: usize = 1;

pub(super) fn spec(config: &Config, checkpoint: &Checkpoint) -> Result<Spec> {
    // With images, the language model's config is an object inside and its names have a prefix.
    let text = config.optional_section("text_config")?;
    let config = text.as_ref().unwrap_or(config);
    refuse_bidirectional(config)?;
    let sizes = Sizes::read(config, checkpoint, DEFAULTS)?;
    let eps = config.positive("rms_norm_eps", 1e-6)?;
    let activation = activation(config, "hidden_activation", "gelu_pytorch_tanh")?;
    let bias = config.flag("attention_bias", false)?;
    let scale = score_scale(config)?;
    let window = window(config, Some(4096))?;
    let pattern = config.size("sliding_window_pattern", 6)?;
    let slides = sliding_layers(config, sizes.n_layers, |i| !(i + 1).is_multiple_of(pattern))?;
    let ropes = ropes(config, &sizes)?;
    let prefixes = &["model.", "", "language_model.model.", "model.language_model."];
    let names = Names::new(config, checkpoint, prefixes, "embed_tokens.weight");
    let layer = |(i, slides): (usize, bool)| {
        let name = format!("layers.{i}");
        let attention = Attention {
            scale,
            window: window.filter(|_| slides),
            rope: Some(if slides { SLIDING } else { FULL }),
            query_norm: Some(norm(&names, &format!("{name}.self_attn.q_norm"), sizes.head_dim, eps)),
            key_norm: Some(norm(&names, &format!("{name}.self_attn.k_norm"), sizes.head_dim, eps)),
            ..names.attention(&format!("{name}.self_attn"), "o_proj", &sizes, bias, bias)
        };
        let mlp = Mlp::dense(names.gated(&format!("{name}.mlp"), &sizes, activation, false));
        four_norms(&names, &name, sizes.hidden, eps, attention, mlp)
    };
    let layers = slides.into_iter().enumerate().map(layer).collect();
    let embedding = embedding(&names, &sizes);
    let head = names.head("lm_head.weight", &embedding, config.flag("tie_word_embeddings", true)?, None);
    let final_norm = norm(&names, "norm", sizes.hidden, eps);
    let logit_softcap = softcap_of_logits(config, None)?;
    Ok(Spec {
        logit_softcap,
        ..decoder("Gemma3ForCausalLM", &sizes, embedding, head, ropes.into(), layers, final_norm)
    })
}

/// The embedding of full layers, and that of sliding ones. In the older writing, `rope_scaling` is for full layers
/// only and the base of sliding ones has a key of its own.
fn ropes(config: &Config, sizes: &Sizes) -> Result<[Rope; 2]> {
    let facts = |default_theta: f64| RopeFacts::new(sizes.head_dim, default_theta, sizes.max_position);
    let absent = config.empty_section("rope_parameters");
    let parameters = config.optional_section("rope_parameters")?.unwrap_or_else(|| absent.clone());
    let scaling = config.optional_section("rope_scaling")?.filter(|scaling| !scaling.is_empty());
    let full = match scaling {
        Some(scaling) => scaling,
        None => parameters.optional_section("full_attention")?.unwrap_or_else(|| absent.clone()),
    };
    let sliding = parameters.optional_section("sliding_attention")?.unwrap_or_else(|| absent.clone());
    let local_theta = config.positive("rope_local_base_freq", 10_000.0)?;
    // The base at the top of the config is not that of sliding layers.
    let sliding = rope_of_section(&absent, &sliding, &facts(local_theta))?;
    Ok([rope_of_section(config, &full, &facts(1e6))?, sliding])
}
