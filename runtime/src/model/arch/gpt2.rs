//! GPT-2: learned positions, weights stored as [in, out], names with or without `transformer.`.

use crate::error::Result;
use crate::load::{Checkpoint, Config};
use crate::model::arch::parts::{Names, Sizes, activation, decoder, divide_heads, n_layers, sequential};
use crate::model::spec::{Attention, Embedding, FeedForward, Linear, Matrix, Mlp, Part, Positions, Spec, Vector};

pub(super) fn spec(config: &Config, checkpoint: &Checkpoint) -> Result<Spec> {
    let hidden = config.size("n_embd", 768)?;
    let n_heads = config.size("n_head", 12)?;
    let sizes = Sizes {
        vocab: config.size("vocab_size", 50_257)?,
        hidden,
        intermediate: config.optional_size("n_inner")?.unwrap_or(4 * hidden),
        n_layers: n_layers(config, checkpoint, "n_layer", 12)?,
        n_heads,
        n_kv_heads: n_heads,
        head_dim: divide_heads(config, "n_head", hidden, n_heads)?,
        max_position: config.size("n_positions", 1024)?,
    };
    let eps = config.positive("layer_norm_epsilon", 1e-5)?;
    let activation = activation(config, "activation_function", "gelu_new")?;
    let scaled = config.flag("scale_attn_weights", true)?;
    let scaled_by_layer = config.flag("scale_attn_by_inverse_layer_idx", false)?;
    let names = Names::new(config, checkpoint, &["transformer.", ""], "wte.weight");
    // A linear of `rows` outputs from `start` of those that are stored.
    let linear = |name: String, start: usize, rows: usize, stored_rows: usize, cols: usize| {
        let part = Part::Transposed { start };
        let bias = names.vector(&format!("{name}.bias"), stored_rows);
        let weight = Matrix { part, rows, ..names.matrix(&name, stored_rows, cols) };
        Linear {
            weight: Matrix { shape: vec![cols, stored_rows], ..weight },
            inner: None,
            bias: Some(Vector { part: Part::Rows { start }, len: rows, ..bias }),
        }
    };
    let layer = |i: usize| {
        let name = format!("h.{i}");
        let qkv = |index: usize| linear(format!("{name}.attn.c_attn"), index * hidden, hidden, 3 * hidden, hidden);
        let scale = if scaled { (sizes.head_dim as f32).sqrt().recip() } else { 1.0 };
        let attention = Attention {
            n_heads,
            n_kv_heads: n_heads,
            head_dim: sizes.head_dim,
            scale: if scaled_by_layer { scale / (i + 1) as f32 } else { scale },
            softcap: None,
            window: None,
            rope: None,
            query: qkv(0),
            key: qkv(1),
            value: qkv(2),
            output: linear(format!("{name}.attn.c_proj"), 0, hidden, hidden, hidden),
            query_norm: None,
            key_norm: None,
        };
        let mlp = FeedForward {
            gate: None,
            up: linear(format!("{name}.mlp.c_fc"), 0, sizes.intermediate, sizes.intermediate, hidden),
            down: linear(format!("{name}.mlp.c_proj"), 0, hidden, hidden, sizes.intermediate),
            activation,
        };
        let norm = |kind: &str| names.layer_norm(&format!("{name}.{kind}"), hidden, eps, true);
        sequential(norm("ln_1"), attention, norm("ln_2"), Mlp::dense(mlp))
    };
    let layers = (0..sizes.n_layers).map(layer).collect();
    let positions = Positions { weight: names.matrix("wpe", sizes.max_position, hidden), offset: 0 };
    let embedding = Embedding { positions: Some(positions), ..names.embedding("wte", sizes.vocab, hidden) };
    let head = names.head("lm_head.weight", &embedding, config.flag("tie_word_embeddings", true)?, None);
    let final_norm = names.layer_norm("ln_f", hidden, eps, true);
    Ok(decoder("GPT2LMHeadModel", &sizes, embedding, head, Vec::new(), layers, final_norm))
}
