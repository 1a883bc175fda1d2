//! Mixtures of experts in their two writings: `experts.N.w1` (gate), `w3` (up), `w2` (down), one matrix each; or
//! `experts.gate_up_proj` [experts, 2 intermediate, hidden] and `experts.down_proj` [experts, hidden, intermediate].

use infer_kernels::cpu::activation::Activation;
use infer_kernels::cpu::moe::Routing;

use crate::error::{Error, Result};
use crate::load::Config;
use crate::load::header::shown_shape;
use crate::model::arch::parts::{Names, Sizes};
use crate::model::spec::{FeedForward, Linear, Matrix, Mlp, Part};

/// `num_local_experts`.
pub(super) fn n_experts(config: &Config, default: usize) -> Result<usize> {
    config.size("num_local_experts", default)
}

/// What the experts of all layers have in common.
pub(super) struct Experts<'a> {
    pub names: &'a Names<'a>,
    pub sizes: &'a Sizes,
    pub activation: Activation,
    pub n_experts: usize,
    pub routing: Routing,
    /// What the router is called beside fused experts.
    pub fused_router: &'a str,
}

impl Experts<'_> {
    /// The experts of the layer whose names begin with `layer`.
    pub fn of_layer(&self, layer: &str) -> Result<Mlp> {
        let (names, n_experts) = (self.names, self.n_experts);
        let fused = format!("{layer}.mlp.experts");
        let gate_up = names.tensor(&format!("{fused}.gate_up_proj"));
        if let Some(shape) = names.checkpoint.shape(&gate_up) {
            // Checked before experts are made from a number that only the config says.
            if shape.first() != Some(&n_experts) {
                return Err(Error::Tensor {
                    path: names.checkpoint.file_of(&gate_up).to_owned(),
                    tensor: gate_up,
                    expected: format!("num_local_experts {n_experts} as the first dimension"),
                    found: shown_shape(shape),
                });
            }
            let router = format!("{layer}.mlp.{}", self.fused_router);
            return self.mixture(&router, |expert| self.fused_expert(&fused, expert));
        }
        // Each expert has tensors, which keeps a config that lies from filling the memory with names.
        let n_tensors = names.checkpoint.len();
        if n_experts.saturating_mul(self.sizes.n_layers) > n_tensors {
            let expected = format!("no more experts in {} layers than tensors, {n_tensors}", self.sizes.n_layers);
            return Err(names.config.error("num_local_experts", expected));
        }
        let module = ["block_sparse_moe", "mlp"].into_iter().map(|module| format!("{layer}.{module}"));
        let stored =
            |module: &String| names.checkpoint.contains(&names.tensor(&format!("{module}.experts.0.w1.weight")));
        let module = module.clone().find(stored).unwrap_or_else(|| format!("{layer}.block_sparse_moe"));
        self.mixture(&format!("{module}.gate"), |expert| self.separate_expert(&format!("{module}.experts.{expert}")))
    }

    fn mixture(&self, router: &str, expert: impl Fn(usize) -> FeedForward) -> Result<Mlp> {
        Ok(Mlp::Experts {
            router: Box::new(self.names.linear(router, self.n_experts, self.sizes.hidden, false)),
            routing: self.routing,
            experts: (0..self.n_experts).map(expert).collect(),
        })
    }

    fn separate_expert(&self, name: &str) -> FeedForward {
        let (hidden, intermediate) = (self.sizes.hidden, self.sizes.intermediate);
        FeedForward {
            gate: Some(self.names.linear(&format!("{name}.w1"), intermediate, hidden, false)),
            up: self.names.linear(&format!("{name}.w3"), intermediate, hidden, false),
            down: self.names.linear(&format!("{name}.w2"), hidden, intermediate, false),
            activation: self.activation,
        }
    }

    fn fused_expert(&self, name: &str, expert: usize) -> FeedForward {
        let (hidden, intermediate) = (self.sizes.hidden, self.sizes.intermediate);
        let part = |tensor: &str, start: usize, rows: usize, total: usize, cols: usize| Linear {
            weight: Matrix {
                tensor: self.names.tensor(&format!("{name}.{tensor}")),
                shape: vec![self.n_experts, total, cols],
                part: Part::Expert { expert, start },
                rows,
                cols,
            },
            inner: None,
            bias: None,
        };
        FeedForward {
            gate: Some(part("gate_up_proj", 0, intermediate, 2 * intermediate, hidden)),
            up: part("gate_up_proj", intermediate, intermediate, 2 * intermediate, hidden),
            down: part("down_proj", 0, hidden, hidden, intermediate),
            activation: self.activation,
        }
    }
}
