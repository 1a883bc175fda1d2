//! The facts in which model families differ. An architecture turns its config.json into a [`Spec`]; the one forward
//! pass reads nothing else. No arithmetic here and none in `arch`.
//!
//! One layer, with every optional part shown (absent norms pass their input through):
//!
//! ```text
//! sequential   x += post_attention_norm(attention(attention_norm(x)))   then   x = attention_output_norm(x)
//!              x += post_mlp_norm(mlp(mlp_norm(x)))                     then   x = mlp_output_norm(x)
//! parallel     x += attention(attention_norm(x)) + mlp(mlp_norm(x)), both norms of the same x;
//!              without an mlp_norm the MLP reads the attention's normed input
//! ```

use infer_kernels::cpu::{activation::Activation, moe::Routing};

/// Everything the forward pass needs to know about a model besides its weights.
#[derive(Debug, Clone)]
pub struct Spec {
    /// The class name in config.json, for example `LlamaForCausalLM`.
    pub architecture: String,
    /// Entries of the vocabulary: rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// The longest sequence the model was made for; `None` where the rotary scaling has no fixed limit.
    pub context_length: Option<usize>,
    /// How token ids become the first hidden state.
    pub embedding: Embedding,
    /// The distinct rotary embeddings; a layer names one by its index.
    pub ropes: Vec<Rope>,
    /// One entry a layer.
    pub layers: Vec<Layer>,
    /// The norm before the head.
    pub final_norm: Option<Norm>,
    /// A projection between the final norm and the head (OPT-350m's `project_out`).
    pub project_out: Option<Linear>,
    /// The output head. Tied heads name the embedding's tensor.
    pub head: Linear,
    /// Soft cap on the logits: c * tanh(logit / c) (Gemma 2).
    pub logit_softcap: Option<f32>,
}

/// Token embedding and what is added to it.
#[derive(Debug, Clone)]
pub struct Embedding {
    /// [vocab_size, width].
    pub weight: Matrix,
    /// Factor on the embedded vector (Gemma: the square root of the hidden size).
    pub scale: f32,
    /// Projection from the embedding's width to the hidden size (OPT-350m's `project_in`).
    pub project_in: Option<Linear>,
    /// Learned positions, added after the projection.
    pub positions: Option<Positions>,
}

/// A table of learned position vectors.
#[derive(Debug, Clone)]
pub struct Positions {
    /// [context + offset, hidden_size].
    pub weight: Matrix,
    /// Row of position 0 (OPT: 2).
    pub offset: usize,
}

/// A weight matrix [rows = output features, cols = input features] and where it lies in the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matrix {
    /// The tensor's name.
    pub tensor: String,
    /// The shape that the tensor must have.
    pub shape: Vec<usize>,
    /// Which part of the tensor this matrix is.
    pub part: Part,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
}

impl Matrix {
    /// The name of this matrix: the tensor's, and behind it which part.
    pub fn name(&self) -> String {
        let (tensor, rows) = (&self.tensor, self.rows);
        match self.part {
            Part::Whole => tensor.clone(),
            Part::Rows { start } => format!("{tensor}[{start}..{}]", start + rows),
            Part::Expert { expert, start } => format!("{tensor}[{expert}][{start}..{}]", start + rows),
            Part::HeadThirds { index, .. } => format!("{tensor}[:, {index}]"),
            Part::Transposed { start } => format!("{tensor}^T[{start}..{}]", start + rows),
        }
    }
}

/// How a matrix (or a vector) lies inside its tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// All of it.
    Whole,
    /// Rows from `start` of a tensor [more rows, cols] (fused qkv or gate and up).
    Rows {
        /// First row.
        start: usize,
    },
    /// Rows from `start` of expert `expert` of a tensor [experts, more rows, cols].
    Expert {
        /// Index of the expert.
        expert: usize,
        /// First row inside the expert.
        start: usize,
    },
    /// Part `index` of 3 in a tensor stored as [heads, 3, head_dim, cols] (Persimmon's qkv).
    HeadThirds {
        /// 0 = query, 1 = key, 2 = value.
        index: usize,
        /// Rows of one head.
        head_dim: usize,
    },
    /// Columns from `start` of a tensor stored as [in, more out] (GPT-2), to be transposed. Of a vector, as `Rows`.
    Transposed {
        /// First column of the stored tensor.
        start: usize,
    },
}

/// A vector of parameters: a norm's weight or a bias.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vector {
    /// The tensors' names. As a rule one; several are joined in this order (StableLM's norms, one a head).
    pub tensors: Vec<String>,
    /// The shape that each tensor must have.
    pub shape: Vec<usize>,
    /// Which part of each tensor belongs to this vector.
    pub part: Part,
    /// Number of values, of all tensors together.
    pub len: usize,
}

/// y = W x + b, with W = weight, or W = weight * inner for a weight that is stored as two thin factors.
#[derive(Debug, Clone)]
pub struct Linear {
    /// The weight, `[rows, in]`; of a factored one the left factor, `[rows, rank]`.
    pub weight: Matrix,
    /// The right factor of a factored weight, `[rank, in]`.
    pub inner: Option<Matrix>,
    /// The bias, `[rows]`.
    pub bias: Option<Vector>,
}

impl Linear {
    /// Output features.
    pub fn rows(&self) -> usize {
        self.weight.rows
    }
}

/// A norm over the last dimension.
#[derive(Debug, Clone)]
pub struct Norm {
    /// Which formula.
    pub kind: NormKind,
    /// Added to the mean square or the variance.
    pub eps: f32,
    /// The gain; none means 1. Per-head norms with a gain of their own for each head have n_heads * head_dim values.
    pub weight: Option<Vector>,
    /// Added to every value of the weight (Gemma stores weight - 1).
    pub weight_offset: f32,
    /// The bias; none means 0. Only for [`NormKind::LayerNorm`].
    pub bias: Option<Vector>,
}

/// The norms in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// x / sqrt(mean(x^2) + eps) (Zhang and Sennrich, 2019).
    RmsNorm,
    /// (x - mean) / sqrt(var + eps) (Ba et al., 2016).
    LayerNorm,
}

/// A rotary embedding (Su et al., 2021), half-split pairs (i, i + rotary_dim / 2).
#[derive(Debug, Clone)]
pub struct Rope {
    /// Leading values of each head that are rotated; even.
    pub rotary_dim: usize,
    /// Base of the frequencies: inv_freq_i = theta^(-2i / rotary_dim).
    pub theta: f32,
    /// How the frequencies are stretched beyond the trained context.
    pub scaling: RopeScaling,
}

/// Rotary scalings, named as in config.json. `attention_factor` multiplies cos and sin.
#[derive(Debug, Clone)]
pub enum RopeScaling {
    /// None.
    Default,
    /// All frequencies divided by `factor`.
    Linear {
        /// The divisor.
        factor: f32,
    },
    /// theta grows with the sequence beyond `original_context` (dynamic NTK).
    Dynamic {
        /// Strength of the growth.
        factor: f32,
        /// The trained context (`max_position_embeddings`).
        original_context: usize,
    },
    /// Frequencies that are already final, the same for every length (yarn and llama3 are computed at load).
    Fixed {
        /// rotary_dim / 2 values.
        inv_freq: Vec<f32>,
        /// Factor on cos and sin.
        attention_factor: f32,
    },
    /// One list of frequencies up to `original_context`, another beyond (Phi-3's longrope).
    LongRope {
        /// rotary_dim / 2 values, for total lengths up to `original_context`.
        short_inv_freq: Vec<f32>,
        /// rotary_dim / 2 values, for longer totals.
        long_inv_freq: Vec<f32>,
        /// Factor on cos and sin with the short list.
        short_attention_factor: f32,
        /// Factor on cos and sin with the long list.
        long_attention_factor: f32,
        /// The border between the two.
        original_context: usize,
    },
}

/// One transformer layer.
#[derive(Debug, Clone)]
pub struct Layer {
    /// How attention and MLP are joined.
    pub block: Block,
    /// Before attention.
    pub attention_norm: Option<Norm>,
    /// The attention.
    pub attention: Attention,
    /// On the attention's output, before it is added (Gemma 2 and 3).
    pub post_attention_norm: Option<Norm>,
    /// On the sum (post-norm models: OPT-350m).
    pub attention_output_norm: Option<Norm>,
    /// Before the MLP.
    pub mlp_norm: Option<Norm>,
    /// The MLP or the mixture of experts.
    pub mlp: Mlp,
    /// On the MLP's output, before it is added (Gemma 2 and 3).
    pub post_mlp_norm: Option<Norm>,
    /// On the sum (post-norm models).
    pub mlp_output_norm: Option<Norm>,
}

/// How the two halves of a layer are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Block {
    /// The MLP reads what attention has updated.
    Sequential,
    /// Both read the same input (Phi, StableLM's parallel variant).
    Parallel,
}

/// Attention of one layer.
#[derive(Debug, Clone)]
pub struct Attention {
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor on q . k.
    pub scale: f32,
    /// Soft cap on the scores (Gemma 2).
    pub softcap: Option<f32>,
    /// Key j is visible from query i iff 0 <= i - j < window.
    pub window: Option<usize>,
    /// Index into [`Spec::ropes`]; none for models with learned positions.
    pub rope: Option<usize>,
    /// Query projection.
    pub query: Linear,
    /// Key projection.
    pub key: Linear,
    /// Value projection.
    pub value: Linear,
    /// Output projection.
    pub output: Linear,
    /// Norm of each query head before the rotation.
    pub query_norm: Option<Norm>,
    /// Norm of each key head before the rotation.
    pub key_norm: Option<Norm>,
}

/// The feed-forward half of a layer.
#[derive(Debug, Clone)]
pub enum Mlp {
    /// One network for every token.
    Dense(Box<FeedForward>),
    /// A few of many networks for each token.
    Experts {
        /// [n_experts, hidden_size].
        router: Box<Linear>,
        /// How experts are chosen and weighted.
        routing: Routing,
        /// The experts.
        experts: Vec<FeedForward>,
    },
}

impl Mlp {
    /// One network for every token.
    pub fn dense(network: FeedForward) -> Mlp {
        Mlp::Dense(Box::new(network))
    }
}

/// down(act(gate x) * (up x)), or down(act(up x)) without a gate.
#[derive(Debug, Clone)]
pub struct FeedForward {
    /// The gate, if there is one.
    pub gate: Option<Linear>,
    /// Hidden size to intermediate size.
    pub up: Linear,
    /// Intermediate size to hidden size.
    pub down: Linear,
    /// The non-linearity.
    pub activation: Activation,
}
