//! Gemma 1, 2 and 3 (text): embeddings times the square root of their width, norms that store weight - 1.
//!
//! Gemma 2 adds norms after each half, soft caps and a window on every other layer; Gemma 3 norms q and k, drops the
//! caps and rotates windowed layers with a base of their own.

use infer_kernels::cpu::activation::Activation;

use crate::error::Result;
use crate::load::{Checkpoint, Config};
use crate::model::arch::parts::{Names, Sizes, activation, decoder, refuse, sequential, sliding_layers, window};
use crate::model::arch::rope::{RopeFacts, rope, rope_of_section};
use crate::model::spec::{Attention, Embedding, Layer, Mlp, Norm, Rope, Spec};

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

pub(super) fn gemma(config: &Config, checkpoint: &Checkpoint) -> Result<Spec> {
    let defaults = Sizes { hidden: 3072, intermediate: 24_576, n_layers: 28, n_heads: 16, n_kv_heads: 16, ..DEFAULTS };
    let family = Family { architecture: "GemmaForCausalLM", activation: "hidden_act", generation: 1 };
    spec(&family, config, checkpoint, Sizes::read(config, checkpoint, defaults)?)
}

pub(super) fn gemma2(config: &Config, checkpoint: &Checkpoint) -> Result<Spec> {
    let family = Family { architecture: "Gemma2ForCausalLM", activation: "hidden_activation", generation: 2 };
    spec(&family, config, checkpoint, Sizes::read(config, checkpoint, DEFAULTS)?)
}

pub(super) fn gemma3(config: &Config, checkpoint: &Checkpoint) -> Result<Spec> {
    // With images, the language model's config is an object inside and its names have a prefix.
    let text = config.optional_section("text_config")?;
    let config = text.as_ref().unwrap_or(config);
    let defaults = Sizes { vocab: 262_208, max_position: 131_072, ..DEFAULTS };
    let family = Family { architecture: "Gemma3ForCausalLM", activation: "hidden_activation", generation: 3 };
    spec(&family, config, checkpoint, Sizes::read(config, checkpoint, defaults)?)
}

struct Family {
    architecture: &'static str,
    /// The key of the activation.
    activation: &'static str,
    generation: u32,
}

fn spec(family: &Family, config: &Config, checkpoint: &Checkpoint, sizes: Sizes) -> Result<Spec> {
    refuse(config, "use_bidirectional_attention", "attention to later tokens")?;
    let eps = config.positive("rms_norm_eps", 1e-6)?;
    let activation = match activation(config, family.activation, "gelu_pytorch_tanh")? {
        // In configs of the first generation, the name of the exact function means the approximation.
        Activation::Gelu if family.generation == 1 => Activation::GeluTanh,
        activation => activation,
    };
    let bias = config.flag("attention_bias", false)?;
    let prefixes = &["model.", "", "language_model.model.", "model.language_model."];
    let names = Names::new(config, checkpoint, prefixes, "embed_tokens.weight");
    let (slides, ropes) = layer_kinds(family, config, &sizes)?;
    let window = if family.generation == 1 { None } else { window(config, Some(4096))? };
    let cap = |key: &str, default: f64| match config.get(key) {
        None if config.is_null(key) || family.generation != 2 => Ok(None),
        _ => config.positive(key, default).map(|cap| Some(cap as f32)),
    };
    // The reference of the third generation has the key and does not look at it.
    let score_cap = if family.generation == 2 { cap("attn_logit_softcapping", 50.0)? } else { None };
    let logit_softcap = if family.generation == 1 { None } else { cap("final_logit_softcapping", 30.0)? };
    let scale = match family.generation {
        1 => sizes.head_dim as f32,
        _ => config.positive("query_pre_attn_scalar", 256.0)? as f32,
    };
    let scale = scale.sqrt().recip();
    let norm = |name: String, len: usize| Norm { weight_offset: 1.0, ..names.rms_norm(&name, len, eps) };
    let layer = |(i, slides): (usize, bool)| {
        let name = format!("layers.{i}");
        let hidden_norm = |kind: &str| norm(format!("{name}.{kind}"), sizes.hidden);
        let head_norm = |kind: &str| norm(format!("{name}.self_attn.{kind}"), sizes.head_dim);
        let attention = Attention {
            scale,
            softcap: score_cap,
            window: window.filter(|_| slides),
            rope: Some(if family.generation == 3 && slides { 1 } else { 0 }),
            query_norm: (family.generation == 3).then(|| head_norm("q_norm")),
            key_norm: (family.generation == 3).then(|| head_norm("k_norm")),
            ..names.attention(&format!("{name}.self_attn"), "o_proj", &sizes, bias, bias)
        };
        let mlp = Mlp::dense(names.gated(&format!("{name}.mlp"), &sizes, activation, false));
        if family.generation == 1 {
            return sequential(hidden_norm("input_layernorm"), attention, hidden_norm("post_attention_layernorm"), mlp);
        }
        let layer =
            sequential(hidden_norm("input_layernorm"), attention, hidden_norm("pre_feedforward_layernorm"), mlp);
        Layer {
            post_attention_norm: Some(hidden_norm("post_attention_layernorm")),
            post_mlp_norm: Some(hidden_norm("post_feedforward_layernorm")),
            ..layer
        }
    };
    let layers = slides.into_iter().enumerate().map(layer).collect();
    let plain = names.embedding("embed_tokens", sizes.vocab, sizes.hidden);
    let embedding = Embedding { scale: (sizes.hidden as f32).sqrt(), ..plain };
    let tied = config.flag("tie_word_embeddings", true)?;
    let head = names.head("lm_head.weight", &embedding, tied, None);
    let final_norm = norm("norm".to_owned(), sizes.hidden);
    let spec = decoder(family.architecture, &sizes, embedding, head, ropes, layers, final_norm);
    Ok(Spec { logit_softcap, ..spec })
}

/// Which layers slide, and the rotary embeddings: one for all, or in the third generation that of full layers and
/// that of sliding ones.
fn layer_kinds(family: &Family, config: &Config, sizes: &Sizes) -> Result<(Vec<bool>, Vec<Rope>)> {
    let facts = |default_theta: f64| RopeFacts::new(sizes.head_dim, default_theta, sizes.max_position);
    match family.generation {
        1 => Ok((vec![false; sizes.n_layers], vec![rope(config, &facts(10_000.0))?])),
        2 => {
            let slides = sliding_layers(config, sizes.n_layers, |i| i.is_multiple_of(2))?;
            Ok((slides, vec![rope(config, &facts(10_000.0))?]))
        }
        _ => {
            let pattern = config.size("sliding_window_pattern", 6)?;
            let slides = sliding_layers(config, sizes.n_layers, |i| !(i + 1).is_multiple_of(pattern))?;
            let parameters = config.optional_section("rope_parameters")?;
            let section = |key: &str| match &parameters {
                Some(parameters) => parameters.optional_section(key),
                None => Ok(None),
            };
            // The older writing scales full layers only, and the base of sliding ones has a key of its own.
            let older = config.optional_section("rope_scaling")?.filter(|scaling| !scaling.is_empty());
            let full = older.or(section("full_attention")?).unwrap_or_else(|| config.empty_section("rope_scaling"));
            let sliding = section("sliding_attention")?.unwrap_or_else(|| config.empty_section("rope_parameters"));
            let local_theta = config.positive("rope_local_base_freq", 10_000.0)?;
            let sliding = rope_of_section(&config.empty_section("rope_parameters"), &sliding, &facts(local_theta))?;
            Ok((slides, vec![rope_of_section(config, &full, &facts(1e6))?, sliding]))
        }
    }
}
