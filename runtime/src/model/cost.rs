//! What a forward pass must read and compute at least, so that a speed can be stated as a share of what the machine
//! could do.

use infer_kernels::cpu::kv::{BLOCK_TOKENS, KvLayout, KvType};

use crate::model::linear::{Linear, Matrix, Weight};
use crate::model::spec::{self, Spec};
use crate::model::weights::{FeedForward, MlpWeights, Weights};

/// Sizes of a model's matrices and cache, as they are held in memory.
#[derive(Clone, Debug)]
pub struct Cost {
    /// Bytes and elements of all matrices, the embedding included; a tied head counts once.
    all: Size,
    /// Matrices of the layers that every token meets.
    layers: Size,
    head: Size,
    /// The experts of each layer that has some.
    experts: Vec<ExpertCost>,
    attention: Vec<AttentionCost>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Size {
    bytes: f64,
    elements: f64,
}

#[derive(Clone, Copy, Debug)]
struct ExpertCost {
    one: Size,
    n_chosen: f64,
}

#[derive(Clone, Copy, Debug)]
struct AttentionCost {
    /// Bytes that the keys and values of one token take.
    token_bytes: f64,
    /// Operations for a query and a key: two products and two sums for each value of each query head.
    pair_operations: f64,
    window: f64,
}

impl Size {
    fn of(matrix: &Matrix) -> Size {
        Size { bytes: matrix.n_bytes() as f64, elements: matrix.rows() as f64 * matrix.cols() as f64 }
    }

    fn plus(self, other: Size) -> Size {
        Size { bytes: self.bytes + other.bytes, elements: self.elements + other.elements }
    }

    fn times(self, factor: f64) -> Size {
        Size { bytes: self.bytes * factor, elements: self.elements * factor }
    }
}

fn linear(linear: &Linear) -> Size {
    match &linear.weight {
        Weight::Matrix(matrix) => Size::of(matrix),
        Weight::Factored { inner, outer } => Size::of(inner).plus(Size::of(outer)),
    }
}

fn sum<'a>(linears: impl IntoIterator<Item = &'a Linear>) -> Size {
    linears.into_iter().map(linear).fold(Size::default(), Size::plus)
}

fn network(network: &FeedForward) -> Size {
    sum(network.input.iter().chain([&network.down]))
}

impl Cost {
    pub(crate) fn new(spec: &Spec, weights: &Weights, kv_type: KvType) -> Cost {
        let mut layers = sum(weights.project_in.iter().chain(&weights.project_out));
        let mut experts = Vec::new();
        let mut all_experts = Size::default();
        for (layer, weights) in spec.layers.iter().zip(&weights.layers) {
            layers = layers.plus(sum(weights.query_key_value.iter().chain([&weights.output])));
            match (&weights.mlp, &layer.mlp) {
                (MlpWeights::Experts { router, experts: networks }, spec::Mlp::Experts { routing, .. }) => {
                    layers = layers.plus(linear(router));
                    let of_layer = networks.iter().map(network).fold(Size::default(), Size::plus);
                    all_experts = all_experts.plus(of_layer);
                    let (n_experts, n_chosen) = (networks.len() as f64, routing.n_chosen() as f64);
                    experts.push(ExpertCost { one: of_layer.times(1.0 / n_experts.max(1.0)), n_chosen });
                }
                (MlpWeights::Dense(dense), _) => layers = layers.plus(network(dense)),
                (MlpWeights::Experts { .. }, spec::Mlp::Dense(_)) => {}
            }
        }
        let attention = |layer: &spec::Layer| {
            let attention = &layer.attention;
            let (n_kv_heads, head_dim) = (attention.n_kv_heads, attention.head_dim);
            let block = KvLayout { n_layers: 1, n_kv_heads, head_dim, kv_type }.block_bytes();
            AttentionCost {
                token_bytes: block as f64 / BLOCK_TOKENS as f64,
                pair_operations: 4.0 * (attention.n_heads * head_dim) as f64,
                window: attention.window.map_or(f64::INFINITY, |window| window as f64),
            }
        };
        let head = linear(&weights.head);
        let tied = matches!(&weights.head.weight, Weight::Matrix(matrix) if matrix.shares_bytes(&weights.embedding));
        let embedding = if tied { Size::default() } else { Size::of(&weights.embedding) };
        Cost {
            all: layers.plus(all_experts).plus(head).plus(embedding),
            layers,
            head,
            experts,
            attention: spec.layers.iter().map(attention).collect(),
        }
    }

    /// Bits that a weight takes on average, over all matrices.
    pub fn bits_per_weight(&self) -> f64 {
        8.0 * self.all.bytes / self.all.elements.max(1.0)
    }

    /// Bytes of the cache that a new token reads with `depth` tokens before it.
    pub fn cache_bytes(&self, depth: f64) -> f64 {
        self.attention.iter().map(|layer| layer.token_bytes * (depth + 1.0).min(layer.window)).sum()
    }

    /// Bytes of weights that passes read which read `experts` experts together, counted by
    /// [`Model::experts_read`](crate::Model::experts_read): which ones tokens choose cannot be known before.
    pub fn weight_bytes(&self, passes: f64, experts: f64) -> f64 {
        let one = self.experts.iter().map(|experts| experts.one.bytes).sum::<f64>() / self.experts.len().max(1) as f64;
        passes * (self.layers.bytes + self.head.bytes) + experts * one
    }

    /// Operations (a multiply-add is two) for `tokens` new tokens of a sequence of `depth` tokens, with the logits of
    /// `logit_rows` of them.
    pub fn operations(&self, tokens: usize, depth: f64, logit_rows: usize) -> f64 {
        let experts = self.experts.iter().map(|experts| experts.one.elements * experts.n_chosen).sum::<f64>();
        let products = 2.0 * tokens as f64 * (self.layers.elements + experts);
        let mean = depth + (tokens as f64 + 1.0) / 2.0;
        let pairs = self.attention.iter().map(|layer| layer.pair_operations * mean.min(layer.window)).sum::<f64>();
        products + 2.0 * logit_rows as f64 * self.head.elements + tokens as f64 * pairs
    }
}
