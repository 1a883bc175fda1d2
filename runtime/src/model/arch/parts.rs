//! What the families have in common: how sizes are read, and how names become the parts of a
//! [`Spec`](crate::model::spec::Spec).

use infer_kernels::cpu::activation::Activation;

use crate::error::{Error, Result};
use crate::load::{Checkpoint, Config};
use crate::model::spec::{
    Attention, Block, Embedding, FeedForward, Layer, Linear, Matrix, Mlp, Norm, NormKind, Part, Rope, RopeScaling,
    Spec, Vector,
};

/// The sizes that nearly every family has. As a constant: what the reference takes for absent keys.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub vocab: usize,
    pub hidden: usize,
    pub intermediate: usize,
    pub n_layers: usize,
    pub n_heads: usize,
    /// Default 0: as many as query heads.
    pub n_kv_heads: usize,
    /// Default 0: hidden / n_heads.
    pub head_dim: usize,
    pub max_position: usize,
}

impl Sizes {
    /// Reads the sizes, whose keys are the same in all families but GPT-2 and OPT.
    pub fn read(config: &Config, checkpoint: &Checkpoint, default: Sizes) -> Result<Sizes> {
        let hidden = config.size("hidden_size", default.hidden)?;
        let n_heads = config.size("num_attention_heads", default.n_heads)?;
        let head_dim = match config.optional_size("head_dim")? {
            Some(head_dim) => head_dim,
            None if config.is_null("head_dim") || default.head_dim == 0 => {
                divide_heads(config, "num_attention_heads", hidden, n_heads)?
            }
            None => default.head_dim,
        };
        let n_kv_heads = match config.optional_size("num_key_value_heads")? {
            Some(n_kv_heads) => n_kv_heads,
            None if config.is_null("num_key_value_heads") || default.n_kv_heads == 0 => n_heads,
            None => default.n_kv_heads,
        };
        if !n_heads.is_multiple_of(n_kv_heads) {
            let expected = format!("a divisor of the {n_heads} attention heads");
            return Err(config.error("num_key_value_heads", expected));
        }
        Ok(Sizes {
            vocab: config.size("vocab_size", default.vocab)?,
            hidden,
            intermediate: config.size("intermediate_size", default.intermediate)?,
            n_layers: n_layers(config, checkpoint, "num_hidden_layers", default.n_layers)?,
            n_heads,
            n_kv_heads,
            head_dim,
            max_position: config.size("max_position_embeddings", default.max_position)?,
        })
    }
}

/// hidden / n_heads, which must leave no rest.
pub(super) fn divide_heads(config: &Config, key: &str, hidden: usize, n_heads: usize) -> Result<usize> {
    if hidden.is_multiple_of(n_heads) {
        return Ok(hidden / n_heads);
    }
    Err(config.error(key, format!("a divisor of the hidden size, which is {hidden}")))
}

/// Number of layers. A checkpoint has more tensors than layers; asking for that keeps a config that lies from filling
/// the memory with names.
pub(super) fn n_layers(config: &Config, checkpoint: &Checkpoint, key: &str, default: usize) -> Result<usize> {
    let n_layers = config.size(key, default)?;
    if n_layers > checkpoint.len() {
        return Err(config.error(key, format!("no more layers than the checkpoint has tensors, {}", checkpoint.len())));
    }
    Ok(n_layers)
}

/// The activation that `key` names.
pub(super) fn activation(config: &Config, key: &str, default: &str) -> Result<Activation> {
    Ok(match config.optional_text(key)?.unwrap_or(default) {
        "silu" | "swish" => Activation::Silu,
        "gelu" | "gelu_python" => Activation::Gelu,
        "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" | "gelu_accurate" | "gelu_python_tanh" => Activation::GeluTanh,
        "quick_gelu" => Activation::QuickGelu,
        "relu" => Activation::Relu,
        "relu2" => Activation::Relu2,
        "tanh" => Activation::Tanh,
        "sigmoid" => Activation::Sigmoid,
        _ => {
            let known =
                "one of silu, gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, quick_gelu, relu, relu2, tanh, sigmoid";
            return Err(config.error(key, known));
        }
    })
}

/// Whether layer `i` slides, by `layer_types` or else by the family's rule.
pub(super) fn sliding_layers(config: &Config, n_layers: usize, rule: impl Fn(usize) -> bool) -> Result<Vec<bool>> {
    let Some(types) = config.optional_texts("layer_types")? else {
        return Ok((0..n_layers).map(rule).collect());
    };
    if types.len() != n_layers {
        return Err(config.error("layer_types", format!("{n_layers} entries, one a layer")));
    }
    let slides = types.iter().map(|kind| match *kind {
        "sliding_attention" => Ok(true),
        "full_attention" => Ok(false),
        _ => Err(config.error("layer_types", "full_attention or sliding_attention for each layer")),
    });
    slides.collect()
}

/// Builds parts from the names of a checkpoint.
pub(super) struct Names<'a> {
    pub config: &'a Config,
    pub checkpoint: &'a Checkpoint,
    /// What the names of all tensors but the head begin with.
    prefix: &'static str,
}

impl<'a> Names<'a> {
    /// Takes the first prefix under which the checkpoint has the tensor `probe`; the first of all if none has it.
    pub fn new(
        config: &'a Config,
        checkpoint: &'a Checkpoint,
        prefixes: &'static [&'static str],
        probe: &str,
    ) -> Names<'a> {
        let found = prefixes.iter().find(|prefix| checkpoint.contains(&format!("{prefix}{probe}")));
        Names { config, checkpoint, prefix: found.or(prefixes.first()).copied().unwrap_or("") }
    }

    /// The full name of a tensor.
    pub fn tensor(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The weight of `name`, [rows, cols].
    pub fn matrix(&self, name: &str, rows: usize, cols: usize) -> Matrix {
        let tensor = self.tensor(&format!("{name}.weight"));
        Matrix { tensor, shape: vec![rows, cols], part: Part::Whole, rows, cols }
    }

    /// The tensor `name`, [len].
    pub fn vector(&self, name: &str, len: usize) -> Vector {
        Vector { tensors: vec![self.tensor(name)], shape: vec![len], part: Part::Whole, len }
    }

    /// `name.weight` [rows, cols] and `name.bias`. Instead of its weight a checkpoint may have two factors of it,
    /// `name.A.weight` [rows, rank] and `name.B.weight` [rank, cols], whose product is the weight.
    pub fn linear(&self, name: &str, rows: usize, cols: usize, bias: bool) -> Linear {
        let bias = bias.then(|| self.vector(&format!("{name}.bias"), rows));
        let weight = self.matrix(name, rows, cols);
        let outer = format!("{name}.A");
        match self.checkpoint.shape(&self.tensor(&format!("{outer}.weight"))) {
            Some(&[_, rank]) if rank > 0 && !self.checkpoint.contains(&weight.tensor) => {
                let inner = self.matrix(&format!("{name}.B"), rank, cols);
                Linear { weight: self.matrix(&outer, rows, rank), inner: Some(inner), bias }
            }
            _ => Linear { weight, inner: None, bias },
        }
    }

    /// Rows from `start` of a linear that is stored together with others, `total` rows in all.
    pub fn rows(&self, name: &str, start: usize, rows: usize, total: usize, cols: usize, bias: bool) -> Linear {
        let whole = self.linear(name, total, cols, bias);
        let part = Part::Rows { start };
        Linear {
            weight: Matrix { part, rows, ..whole.weight },
            inner: whole.inner,
            bias: whole.bias.map(|bias| Vector { part, len: rows, ..bias }),
        }
    }

    /// An RMSNorm with the weight `name.weight`.
    pub fn rms_norm(&self, name: &str, len: usize, eps: f64) -> Norm {
        let weight = Some(self.vector(&format!("{name}.weight"), len));
        Norm { kind: NormKind::RmsNorm, eps: eps as f32, weight, weight_offset: 0.0, bias: None }
    }

    /// A LayerNorm with `name.weight` and, if it has one, `name.bias`.
    pub fn layer_norm(&self, name: &str, len: usize, eps: f64, bias: bool) -> Norm {
        let bias = bias.then(|| self.vector(&format!("{name}.bias"), len));
        Norm { kind: NormKind::LayerNorm, bias, ..self.rms_norm(name, len, eps) }
    }

    /// A plain token embedding.
    pub fn embedding(&self, name: &str, vocab: usize, width: usize) -> Embedding {
        Embedding { weight: self.matrix(name, vocab, width), scale: 1.0, project_in: None, positions: None }
    }

    /// The output head. A tied one is the embedding, unless the checkpoint has a head all the same: as in the
    /// reference, what is stored counts.
    pub fn head(&self, tensor: &str, embedding: &Embedding, tied: bool, bias: Option<&str>) -> Linear {
        let rows = embedding.weight.rows;
        let weight = if tied && !self.checkpoint.contains(tensor) {
            embedding.weight.clone()
        } else {
            Matrix { tensor: tensor.to_owned(), ..embedding.weight.clone() }
        };
        let bias =
            bias.map(|name| Vector { tensors: vec![name.to_owned()], shape: vec![rows], part: Part::Whole, len: rows });
        Linear { weight, inner: None, bias }
    }

    /// Attention whose projections are stored one by one under `name`, without window, cap and norms.
    pub fn attention(&self, name: &str, output: &str, sizes: &Sizes, bias: bool, output_bias: bool) -> Attention {
        let (query, kv) = (sizes.n_heads * sizes.head_dim, sizes.n_kv_heads * sizes.head_dim);
        Attention {
            n_heads: sizes.n_heads,
            n_kv_heads: sizes.n_kv_heads,
            head_dim: sizes.head_dim,
            scale: (sizes.head_dim as f32).sqrt().recip(),
            softcap: None,
            window: None,
            rope: Some(0),
            query: self.linear(&format!("{name}.q_proj"), query, sizes.hidden, bias),
            key: self.linear(&format!("{name}.k_proj"), kv, sizes.hidden, bias),
            value: self.linear(&format!("{name}.v_proj"), kv, sizes.hidden, bias),
            output: self.linear(&format!("{name}.{output}"), sizes.hidden, query, output_bias),
            query_norm: None,
            key_norm: None,
        }
    }

    /// `name.gate_proj`, `name.up_proj`, `name.down_proj`.
    pub fn gated(&self, name: &str, sizes: &Sizes, activation: Activation, bias: bool) -> FeedForward {
        let (hidden, intermediate) = (sizes.hidden, sizes.intermediate);
        FeedForward {
            gate: Some(self.linear(&format!("{name}.gate_proj"), intermediate, hidden, bias)),
            up: self.linear(&format!("{name}.up_proj"), intermediate, hidden, bias),
            down: self.linear(&format!("{name}.down_proj"), hidden, intermediate, bias),
            activation,
        }
    }
}

/// A decoder without soft cap on its logits and projection before its head.
pub(super) fn decoder(
    architecture: &str,
    sizes: &Sizes,
    embedding: Embedding,
    head: Linear,
    ropes: Vec<Rope>,
    layers: Vec<Layer>,
    final_norm: Norm,
) -> Spec {
    let unlimited = ropes.iter().any(|rope| matches!(rope.scaling, RopeScaling::Dynamic { .. }));
    Spec {
        architecture: architecture.to_owned(),
        vocab_size: sizes.vocab,
        hidden_size: sizes.hidden,
        context_length: (!unlimited).then_some(sizes.max_position),
        embedding,
        ropes,
        layers,
        final_norm: Some(final_norm),
        project_out: None,
        head,
        logit_softcap: None,
    }
}

/// A layer with one norm before each half.
pub(super) fn sequential(attention_norm: Norm, attention: Attention, mlp_norm: Norm, mlp: Mlp) -> Layer {
    Layer {
        block: Block::Sequential,
        attention_norm: Some(attention_norm),
        attention,
        post_attention_norm: None,
        attention_output_norm: None,
        mlp_norm: Some(mlp_norm),
        mlp,
        post_mlp_norm: None,
        mlp_output_norm: None,
    }
}

/// A layer whose halves read the same normed input.
pub(super) fn parallel(norm: Norm, attention: Attention, mlp: Mlp) -> Layer {
    Layer {
        block: Block::Parallel,
        attention_norm: Some(norm),
        attention,
        post_attention_norm: None,
        attention_output_norm: None,
        mlp_norm: None,
        mlp,
        post_mlp_norm: None,
        mlp_output_norm: None,
    }
}

/// `sliding_window`. Null means none; an absent key means the family's default.
pub(super) fn window(config: &Config, default: Option<usize>) -> Result<Option<usize>> {
    let default = if config.is_null("sliding_window") { None } else { default };
    Ok(config.optional_size("sliding_window")?.or(default))
}

/// Refuses a feature by the key that asks for it.
pub(super) fn refuse(config: &Config, key: &str, what: &str) -> Result<()> {
    if config.flag(key, false)? {
        return Err(Error::Unsupported { path: config.path().to_owned(), what: format!("{what} ({key} is true)") });
    }
    Ok(())
}
