//! OPT and Galactica: learned positions that start at row 2. The 350m kind norms after each half, and its embeddings
//! are narrower than its layers.

use crate::error::Result;
use crate::load::{Checkpoint, Config};
use crate::model::arch::parts::{Names, Sizes, activation, decoder, divide_heads, n_layers, sequential};
use crate::model::spec::{Attention, Embedding, FeedForward, Layer, Mlp, Norm, Positions, Spec};

/// What is added to the variance: this family's config has no key for it.
const EPS: f64 = 1e-5;

/// The row of position 0.
const FIRST_POSITION: usize = 2;

pub(super) fn spec(config: &Config, checkpoint: &Checkpoint) -> Result<Spec> {
    let hidden = config.size("hidden_size", 768)?;
    let n_heads = config.size("num_attention_heads", 12)?;
    let sizes = Sizes {
        vocab: config.size("vocab_size", 50_272)?,
        hidden,
        intermediate: config.size("ffn_dim", 3072)?,
        n_layers: n_layers(config, checkpoint, "num_hidden_layers", 12)?,
        n_heads,
        n_kv_heads: n_heads,
        head_dim: divide_heads(config, "num_attention_heads", hidden, n_heads)?,
        max_position: config.size("max_position_embeddings", 2048)?,
    };
    let width = config.optional_size("word_embed_proj_dim")?.unwrap_or(hidden);
    let activation = activation(config, "activation_function", "relu")?;
    let norm_before = config.flag("do_layer_norm_before", true)?;
    let bias = config.flag("enable_bias", true)?;
    let affine = config.flag("layer_norm_elementwise_affine", true)?;
    let prefixes = &["model.decoder.", "decoder.", ""];
    let names = Names::new(config, checkpoint, prefixes, "embed_tokens.weight");
    let norm = |name: &str| {
        let norm = names.layer_norm(name, hidden, EPS, affine);
        Norm { weight: norm.weight.filter(|_| affine), ..norm }
    };
    let layer = |i: usize| {
        let name = format!("layers.{i}");
        let attention =
            Attention { rope: None, ..names.attention(&format!("{name}.self_attn"), "out_proj", &sizes, bias, bias) };
        let mlp = FeedForward {
            gate: None,
            up: names.linear(&format!("{name}.fc1"), sizes.intermediate, hidden, bias),
            down: names.linear(&format!("{name}.fc2"), hidden, sizes.intermediate, bias),
            activation,
        };
        let norms = (norm(&format!("{name}.self_attn_layer_norm")), norm(&format!("{name}.final_layer_norm")));
        let layer = sequential(norms.0, attention, norms.1, Mlp::dense(mlp));
        if norm_before {
            return layer;
        }
        Layer {
            attention_output_norm: layer.attention_norm,
            attention_norm: None,
            mlp_output_norm: layer.mlp_norm,
            mlp_norm: None,
            ..layer
        }
    };
    let layers = (0..sizes.n_layers).map(layer).collect();
    let n_positions = sizes.max_position + FIRST_POSITION;
    let embedding = Embedding {
        project_in: (width != hidden).then(|| names.linear("project_in", hidden, width, false)),
        positions: Some(Positions {
            weight: names.matrix("embed_positions", n_positions, hidden),
            offset: FIRST_POSITION,
        }),
        ..names.embedding("embed_tokens", sizes.vocab, width)
    };
    let head = names.head("lm_head.weight", &embedding, config.flag("tie_word_embeddings", true)?, None);
    let has_final_norm = norm_before && !config.flag("_remove_final_layer_norm", false)?;
    let final_norm = norm("final_layer_norm");
    let spec = decoder("OPTForCausalLM", &sizes, embedding, head, Vec::new(), layers, final_norm);
    Ok(Spec {
        final_norm: spec.final_norm.filter(|_| has_final_norm),
        project_out: (width != hidden).then(|| names.linear("project_out", width, hidden, false)),
        ..spec
    })
}
