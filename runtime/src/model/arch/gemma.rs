//! Gemma 1: embeddings times the square root of their width, norms that store weight - 1, a tied head.

use infer_kernels::cpu::activation::Activation;

use crate::error::Result;
use crate::load::{Checkpoint, Config};
use crate::model::arch::parts::{Names, Sizes, activation, decoder, refuse, sequential};
use crate::model::arch::rope::{RopeFacts, rope};
use crate::model::spec::{Embedding, Mlp, Norm, Spec};

const DEFAULTS: Sizes = Sizes {
    vocab: 256_000,
    hidden: 3072,
    intermediate: 24_576,
    n_layers: 28,
    n_heads: 16,
    n_kv_heads: 16,
    head_dim: 256,
    max_position: 8192,
};

pub(super) fn spec(config: &Config, checkpoint: &Checkpoint) -> Result<Spec> {
    refuse_bidirectional(config)?;
    let sizes = Sizes::read(config, checkpoint, DEFAULTS)?;
    let eps = config.positive("rms_norm_eps", 1e-6)?;
    let activation = match activation(config, "hidden_act", "gelu_pytorch_tanh")? {
        // In configs of this family, the name of the exact function means the approximation.
        Activation::Gelu => Activation::GeluTanh,
        activation => activation,
    };
    let bias = config.flag("attention_bias", false)?;
    let rope = rope(config, &RopeFacts::new(sizes.head_dim, 10_000.0, sizes.max_position))?;
    let names = Names::new(config, checkpoint, &["model.", ""], "embed_tokens.weight");
    let layer = |i: usize| {
        let name = format!("layers.{i}");
        sequential(
            norm(&names, &format!("{name}.input_layernorm"), sizes.hidden, eps),
            names.attention(&format!("{name}.self_attn"), "o_proj", &sizes, bias, bias),
            norm(&names, &format!("{name}.post_attention_layernorm"), sizes.hidden, eps),
            Mlp::dense(names.gated(&format!("{name}.mlp"), &sizes, activation, false)),
        )
    };
    let layers = (0..sizes.n_layers).map(layer).collect();
    let embedding = embedding(&names, &sizes);
    let head = names.head("lm_head.weight", &embedding, config.flag("tie_word_embeddings", true)?, None);
    let final_norm = norm(&names, "norm", sizes.hidden, eps);
    Ok(decoder("GemmaForCausalLM", &sizes, embedding, head, vec![rope], layers, final_norm))
}

/// An RMSNorm whose file has weight - 1.
pub(super) fn norm(names: &Names<'_>, name: &str, len: usize, eps: f64) -> Norm {
    Norm { weight_offset: 1.0, ..names.rms_norm(name, len, eps) }
}

/// The embedding, scaled.
pub(super) fn embedding(names: &Names<'_>, sizes: &Sizes) -> Embedding {
    Embedding { scale: (sizes.hidden as f32).sqrt(), ..names.embedding("embed_tokens", sizes.vocab, sizes.hidden) }
}

/// Some models of these families look at later tokens, too: they embed texts and do not write any.
pub(super) fn refuse_bidirectional(config: &Config) -> Result<()> {
    refuse(config, "use_bidirectional_attention", "attention to later tokens")
}
