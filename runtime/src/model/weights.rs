//! Loads the tensors that a [`Spec`] names into the form that the CPU computes with.
//!
//! Dense matrices and packed ones stay where the file is mapped. What the plan asks for and the file does not have packed
//! is quantized on the way in. Norms and biases become f32 vectors and must be finite.

use std::collections::HashMap;

use infer_kernels::KernelError;
use infer_kernels::quant::stored::to_f32;

use crate::error::{Error, Result};
use crate::load::{Bytes, Checkpoint, TensorView};
use crate::model::linear::{Linear, Matrix, MatrixFormat, Weight};
use crate::model::spec::{self, NormKind, Spec};
use crate::options::WeightFormat;
use crate::quantize::QuantPlan;
use crate::quantize::plan::packed_bytes;
use crate::quantize::source::{SourceMatrix, check_finite, element_size, element_type, part_bytes};

/// All weights of a model.
pub(crate) struct Weights {
    pub embedding: Matrix,
    pub project_in: Option<Linear>,
    pub positions: Option<Matrix>,
    pub layers: Vec<LayerWeights>,
    pub final_norm: Option<Norm>,
    pub project_out: Option<Linear>,
    pub head: Linear,
}

/// The weights of one layer; the fields are those of [`spec::Layer`].
pub(crate) struct LayerWeights {
    pub attention_norm: Option<Norm>,
    pub query_key_value: [Linear; 3],
    pub output: Linear,
    pub query_norm: Option<Norm>,
    pub key_norm: Option<Norm>,
    pub post_attention_norm: Option<Norm>,
    pub attention_output_norm: Option<Norm>,
    pub mlp_norm: Option<Norm>,
    pub mlp: MlpWeights,
    pub post_mlp_norm: Option<Norm>,
    pub mlp_output_norm: Option<Norm>,
}

pub(crate) enum MlpWeights {
    Dense(FeedForward),
    Experts { router: Linear, experts: Vec<FeedForward> },
}

/// `input` is gate and up, or up alone.
pub(crate) struct FeedForward {
    pub input: Vec<Linear>,
    pub down: Linear,
}

/// A norm's parameters. Absent ones are 1 and 0.
pub(crate) enum Norm {
    Rms { eps: f32, weight: Vec<f32> },
    Layer { eps: f32, weight: Option<Vec<f32>>, bias: Option<Vec<f32>> },
}

impl Norm {
    /// Length of weight and bias; 0 without any.
    pub fn n_parameters(&self) -> usize {
        match self {
            Norm::Rms { weight, .. } => weight.len(),
            Norm::Layer { weight, bias, .. } => weight.as_ref().or(bias.as_ref()).map_or(0, Vec::len),
        }
    }
}

impl Weights {
    /// Loads everything; `progress` is called with the bytes of each tensor part that was taken in.
    pub fn load(
        spec: &Spec,
        checkpoint: &Checkpoint,
        plan: &QuantPlan,
        pool: &rayon::ThreadPool,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Weights> {
        let mut loader = Loader { checkpoint, plan, pool, progress, packed: HashMap::new() };
        let embedding = &spec.embedding;
        let weights = Weights {
            embedding: loader.matrix(&embedding.weight)?,
            project_in: loader.optional_linear(&embedding.project_in)?,
            positions: match &embedding.positions {
                Some(positions) => Some(loader.matrix(&positions.weight)?),
                None => None,
            },
            layers: spec.layers.iter().map(|layer| loader.layer(layer)).collect::<Result<_>>()?,
            final_norm: loader.norm(&spec.final_norm)?,
            project_out: loader.optional_linear(&spec.project_out)?,
            head: loader.linear(&spec.head)?,
        };
        Ok(weights)
    }
}

struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    plan: &'a QuantPlan,
    pool: &'a rayon::ThreadPool,
    progress: &'a (dyn Fn(u64) + Sync),
    /// Matrices that are packed, by name, so that a tied head is the embedding and not a second copy.
    packed: HashMap<String, Matrix>,
}

impl Loader<'_> {
    fn layer(&mut self, layer: &spec::Layer) -> Result<LayerWeights> {
        let attention = &layer.attention;
        Ok(LayerWeights {
            attention_norm: self.norm(&layer.attention_norm)?,
            query_key_value: [
                self.linear(&attention.query)?,
                self.linear(&attention.key)?,
                self.linear(&attention.value)?,
            ],
            output: self.linear(&attention.output)?,
            query_norm: self.norm(&attention.query_norm)?,
            key_norm: self.norm(&attention.key_norm)?,
            post_attention_norm: self.norm(&layer.post_attention_norm)?,
            attention_output_norm: self.norm(&layer.attention_output_norm)?,
            mlp_norm: self.norm(&layer.mlp_norm)?,
            mlp: match &layer.mlp {
                spec::Mlp::Dense(network) => MlpWeights::Dense(self.feed_forward(network)?),
                spec::Mlp::Experts { router, experts, .. } => MlpWeights::Experts {
                    router: self.linear(router)?,
                    experts: experts.iter().map(|expert| self.feed_forward(expert)).collect::<Result<_>>()?,
                },
            },
            post_mlp_norm: self.norm(&layer.post_mlp_norm)?,
            mlp_output_norm: self.norm(&layer.mlp_output_norm)?,
        })
    }

    fn feed_forward(&mut self, network: &spec::FeedForward) -> Result<FeedForward> {
        let input = network.gate.iter().chain([&network.up]);
        Ok(FeedForward {
            input: input.map(|linear| self.linear(linear)).collect::<Result<_>>()?,
            down: self.linear(&network.down)?,
        })
    }

    fn optional_linear(&mut self, linear: &Option<spec::Linear>) -> Result<Option<Linear>> {
        linear.as_ref().map(|linear| self.linear(linear)).transpose()
    }

    fn linear(&mut self, linear: &spec::Linear) -> Result<Linear> {
        let bias = linear.bias.as_ref().map(|bias| self.vector(bias)).transpose()?;
        let matrix = self.matrix(&linear.weight)?;
        let weight = match &linear.inner {
            None => Weight::Matrix(matrix),
            Some(inner) => Weight::Factored { inner: self.matrix(inner)?, outer: matrix },
        };
        Ok(Linear { weight, bias })
    }

    fn norm(&mut self, norm: &Option<spec::Norm>) -> Result<Option<Norm>> {
        let Some(norm) = norm else { return Ok(None) };
        let mut weight = norm.weight.as_ref().map(|weight| self.vector(weight)).transpose()?;
        for value in weight.iter_mut().flatten() {
            *value += norm.weight_offset;
        }
        let bias = norm.bias.as_ref().map(|bias| self.vector(bias)).transpose()?;
        let eps = norm.eps;
        match (norm.kind, weight) {
            (NormKind::RmsNorm, Some(weight)) => Ok(Some(Norm::Rms { eps, weight })),
            (NormKind::RmsNorm, None) => Err(Error::Unsupported {
                path: self.checkpoint.path().to_owned(),
                what: "RMSNorm without a weight".to_owned(),
            }),
            (NormKind::LayerNorm, weight) => Ok(Some(Norm::Layer { eps, weight, bias })),
        }
    }

    fn vector(&mut self, vector: &spec::Vector) -> Result<Vec<f32>> {
        let mut values = vec![0.0; vector.len];
        let len = vector.len / vector.tensors.len().max(1);
        for (name, values) in vector.tensors.iter().zip(values.chunks_mut(len.max(1))) {
            let tensor = self.tensor(name)?;
            // A vector is a matrix of one column; its parts are cut in the same way.
            let bytes = part_bytes(&tensor, vector.part, len, 1)?;
            if !to_f32(element_type(&tensor)?, &bytes, values) {
                check_finite(&tensor, name, values)?;
            }
            (self.progress)(bytes.len() as u64);
        }
        Ok(values)
    }

    fn matrix(&mut self, matrix: &spec::Matrix) -> Result<Matrix> {
        let (name, rows, cols) = (matrix.name(), matrix.rows, matrix.cols);
        if let Some(done) = self.packed.get(&name) {
            return Ok(done.clone());
        }
        let format = match self.plan.format_of(&name) {
            WeightFormat::AsStored => {
                let tensor = self.tensor(&matrix.tensor)?;
                let element = element_type(&tensor)?;
                let bytes = part_bytes(&tensor, matrix.part, rows, cols)?;
                (self.progress)(bytes.len() as u64);
                let format = MatrixFormat::Dense(element);
                return Ok(Matrix::new(format, rows, cols, bytes.aligned(element_size(element)))?);
            }
            packed => packed,
        };
        let length = packed_bytes(format, rows, cols).ok_or(KernelError::TooLarge { rows, cols })?;
        let bytes = match self.checkpoint.packed().and_then(|packed| packed.matrices.get(&name)) {
            // The rest is padding; a plan of packed weights has compared the lengths.
            Some(packed) => packed.bytes.slice(0..length).unwrap_or_else(|| packed.bytes.clone()),
            None => {
                let source = SourceMatrix::open(self.checkpoint, matrix, format)?;
                Bytes::build(length, |packed| source.quantize(self.pool, packed, self.progress))?
            }
        };
        let format = if format == WeightFormat::Int8 { MatrixFormat::Int8 } else { MatrixFormat::Int4 };
        let loaded = Matrix::new(format, rows, cols, bytes)?;
        self.packed.insert(name, loaded.clone());
        Ok(loaded)
    }

    fn tensor(&self, name: &str) -> Result<TensorView> {
        // A packed file may have it in packed form alone.
        let found = self.checkpoint.tensor(name).filter(|_| self.checkpoint.has_bytes(name));
        found.ok_or_else(|| Error::Tensor {
            path: self.checkpoint.path().to_owned(),
            tensor: name.to_owned(),
            expected: "to be in the file".to_owned(),
            found: "nothing".to_owned(),
        })
    }
}
