//! Loads the tensors that a [`Spec`] names into the form that the CPU computes with.
//!
//! Dense matrices stay where the file is mapped. With `--q8` and `--q4` each matrix is quantized on the way in, rows
//! in parallel, and its source is never copied. Norms and biases become f32 vectors and must be finite.

use std::collections::HashMap;

use half::{bf16, f16};
use infer_kernels::cpu::matrix::ElementType;
use infer_kernels::quant::{int4, int8};
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::load::{Bytes, Checkpoint, TensorView};
use crate::model::linear::{Linear, Matrix, MatrixFormat, Weight};
use crate::model::spec::{self, NormKind, Part, Spec};
use crate::model::walk::Role;
use crate::options::WeightFormat;

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

/// Rows that one task quantizes: enough to amortise it, small enough to share out.
const ROWS_PER_TASK: usize = 16;

impl Weights {
    /// Loads everything; `progress` is called with the bytes of each tensor part that was taken in.
    pub fn load(
        spec: &Spec,
        checkpoint: &Checkpoint,
        format: WeightFormat,
        pool: &rayon::ThreadPool,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Weights> {
        let mut loader = Loader { checkpoint, format, pool, progress, quantized: HashMap::new() };
        let embedding = &spec.embedding;
        let weights = Weights {
            embedding: loader.matrix(&embedding.weight, Role::Vocabulary)?,
            project_in: loader.optional_linear(&embedding.project_in)?,
            positions: match &embedding.positions {
                Some(positions) => Some(loader.matrix(&positions.weight, Role::AsStored)?),
                None => None,
            },
            layers: spec.layers.iter().map(|layer| loader.layer(layer)).collect::<Result<_>>()?,
            final_norm: loader.norm(&spec.final_norm)?,
            project_out: loader.optional_linear(&spec.project_out)?,
            head: loader.linear(&spec.head, Role::Vocabulary)?,
        };
        Ok(weights)
    }
}

struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    format: WeightFormat,
    pool: &'a rayon::ThreadPool,
    progress: &'a (dyn Fn(u64) + Sync),
    /// Matrices that were quantized, so that a tied head is the embedding and not a second copy.
    quantized: HashMap<(String, Role), Matrix>,
}

impl Loader<'_> {
    fn layer(&mut self, layer: &spec::Layer) -> Result<LayerWeights> {
        let attention = &layer.attention;
        Ok(LayerWeights {
            attention_norm: self.norm(&layer.attention_norm)?,
            query_key_value: [
                self.linear(&attention.query, Role::Layer)?,
                self.linear(&attention.key, Role::Layer)?,
                self.linear(&attention.value, Role::Layer)?,
            ],
            output: self.linear(&attention.output, Role::Layer)?,
            query_norm: self.norm(&attention.query_norm)?,
            key_norm: self.norm(&attention.key_norm)?,
            post_attention_norm: self.norm(&layer.post_attention_norm)?,
            attention_output_norm: self.norm(&layer.attention_output_norm)?,
            mlp_norm: self.norm(&layer.mlp_norm)?,
            mlp: match &layer.mlp {
                spec::Mlp::Dense(network) => MlpWeights::Dense(self.feed_forward(network)?),
                spec::Mlp::Experts { router, experts, .. } => MlpWeights::Experts {
                    router: self.linear(router, Role::AsStored)?,
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
            input: input.map(|linear| self.linear(linear, Role::Layer)).collect::<Result<_>>()?,
            down: self.linear(&network.down, Role::Layer)?,
        })
    }

    fn optional_linear(&mut self, linear: &Option<spec::Linear>) -> Result<Option<Linear>> {
        linear.as_ref().map(|linear| self.linear(linear, Role::Layer)).transpose()
    }

    fn linear(&mut self, linear: &spec::Linear, role: Role) -> Result<Linear> {
        let bias = linear.bias.as_ref().map(|bias| self.vector(bias)).transpose()?;
        let matrix = self.matrix(&linear.weight, role)?;
        let weight = match &linear.inner {
            None => Weight::Matrix(matrix),
            Some(inner) => Weight::Factored { inner: self.matrix(inner, role)?, outer: matrix },
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
            to_f32(element_type(&tensor)?, &bytes, values);
            check_finite(&tensor, name, values)?;
            (self.progress)(bytes.len() as u64);
        }
        Ok(values)
    }

    fn matrix(&mut self, matrix: &spec::Matrix, role: Role) -> Result<Matrix> {
        let (rows, cols) = (matrix.rows, matrix.cols);
        let tensor = self.tensor(&matrix.tensor)?;
        let element = element_type(&tensor)?;
        let format = match role.stored_as(self.format) {
            WeightFormat::AsStored => MatrixFormat::Dense(element),
            WeightFormat::Int8 => MatrixFormat::Int8,
            WeightFormat::Int4 => MatrixFormat::Int4,
        };
        let key = (matrix.tensor.clone(), role);
        if matrix.part == Part::Whole
            && let Some(done) = self.quantized.get(&key)
        {
            return Ok(done.clone());
        }
        let source = part_bytes(&tensor, matrix.part, rows, cols)?;
        let loaded = match format {
            MatrixFormat::Dense(_) => Matrix::new(format, rows, cols, source.aligned(element_size(element)))?,
            MatrixFormat::Int8 => {
                self.quantize(&tensor, matrix, &source, format, int8::packed_bytes, int8::quantize_rows)?
            }
            MatrixFormat::Int4 => {
                self.quantize(&tensor, matrix, &source, format, int4::packed_bytes, int4::quantize_rows)?
            }
        };
        if matrix.part == Part::Whole && role == Role::Vocabulary {
            self.quantized.insert(key, loaded.clone());
        }
        (self.progress)(source.len() as u64);
        Ok(loaded)
    }

    fn quantize(
        &self,
        tensor: &TensorView,
        matrix: &spec::Matrix,
        source: &[u8],
        format: MatrixFormat,
        packed_bytes: fn(usize, usize) -> Option<usize>,
        quantize_rows: fn(&[f32], usize, &mut [u8]),
    ) -> Result<Matrix> {
        let (rows, cols) = (matrix.rows, matrix.cols);
        let too_large = || infer_kernels::KernelError::TooLarge { rows, cols };
        let length = packed_bytes(rows, cols).ok_or_else(too_large)?;
        let row_bytes = packed_bytes(1, cols).ok_or_else(too_large)?;
        let element = element_type(tensor)?;
        let source_row = cols * element_size(element);
        let packed = Bytes::build(length, |packed| {
            self.pool.install(|| {
                packed
                    .par_chunks_mut(row_bytes * ROWS_PER_TASK)
                    .zip(source.par_chunks(source_row * ROWS_PER_TASK))
                    .try_for_each_init(
                        || vec![0.0; cols * ROWS_PER_TASK],
                        |values, (packed, source)| {
                            let values = &mut values[..source.len() / element_size(element)];
                            to_f32(element, source, values);
                            check_finite(tensor, &matrix.tensor, values)?;
                            quantize_rows(values, cols, packed);
                            Ok::<(), Error>(())
                        },
                    )
            })
        })?;
        Ok(Matrix::new(format, rows, cols, packed)?)
    }

    fn tensor(&self, name: &str) -> Result<TensorView> {
        self.checkpoint.tensor(name).ok_or_else(|| Error::Tensor {
            path: self.checkpoint.path().to_owned(),
            tensor: name.to_owned(),
            expected: "to be in the file".to_owned(),
            found: "nothing".to_owned(),
        })
    }
}

fn check_finite(tensor: &TensorView, name: &str, values: &[f32]) -> Result<()> {
    match values.iter().find(|value| !value.is_finite()) {
        None => Ok(()),
        Some(value) => Err(Error::Tensor {
            path: tensor.file.clone(),
            tensor: name.to_owned(),
            expected: "finite values".to_owned(),
            found: value.to_string(),
        }),
    }
}

fn element_type(tensor: &TensorView) -> Result<ElementType> {
    tensor.dtype.element_type().ok_or_else(|| Error::Tensor {
        path: tensor.file.clone(),
        tensor: tensor.name.clone(),
        expected: "F32, F16 or BF16".to_owned(),
        found: tensor.dtype.to_string(),
    })
}

fn element_size(element: ElementType) -> usize {
    match element {
        ElementType::F32 => 4,
        ElementType::F16 | ElementType::Bf16 => 2,
    }
}

/// The bytes of `part`, [rows, cols] row after row, in the stored type. Shapes were checked against the spec before.
fn part_bytes(tensor: &TensorView, part: Part, rows: usize, cols: usize) -> Result<Bytes> {
    let size = element_size(element_type(tensor)?);
    let row_bytes = cols * size;
    let contiguous = |first_row: usize| {
        tensor.bytes.slice(first_row * row_bytes..(first_row + rows) * row_bytes).ok_or_else(|| Error::Tensor {
            path: tensor.file.clone(),
            tensor: tensor.name.clone(),
            expected: format!("rows {first_row} to {}", first_row + rows),
            found: format!("shape {:?}", tensor.shape),
        })
    };
    let stored_rows = |axis: usize| tensor.shape.get(axis).copied().unwrap_or(1);
    match part {
        Part::Whole => contiguous(0),
        Part::Rows { start } => contiguous(start),
        Part::Expert { expert, start } => contiguous(expert * stored_rows(1) + start),
        Part::HeadThirds { index, head_dim } => Bytes::build(rows * row_bytes, |out| {
            let head_bytes = head_dim * row_bytes;
            let heads = tensor.bytes.chunks_exact(3 * head_bytes);
            for (out, head) in out.chunks_exact_mut(head_bytes).zip(heads) {
                out.copy_from_slice(&head[index * head_bytes..(index + 1) * head_bytes]);
            }
            Ok(())
        }),
        Part::Transposed { start } if cols == 1 => contiguous(start),
        Part::Transposed { start } => Bytes::build(rows * row_bytes, |out| {
            let stored_row = stored_rows(1) * size;
            for (row, out) in out.chunks_exact_mut(row_bytes).enumerate() {
                let column = (start + row) * size;
                for (out, stored) in out.chunks_exact_mut(size).zip(tensor.bytes.chunks_exact(stored_row)) {
                    out.copy_from_slice(&stored[column..column + size]);
                }
            }
            Ok(())
        }),
    }
}

/// Little-endian values of any alignment as f32.
fn to_f32(element: ElementType, bytes: &[u8], out: &mut [f32]) {
    fn convert<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
        let (chunks, _) = bytes.as_chunks::<N>();
        for (out, chunk) in out.iter_mut().zip(chunks) {
            *out = value(*chunk);
        }
    }
    match element {
        ElementType::F32 => convert(bytes, out, f32::from_le_bytes),
        ElementType::F16 => convert(bytes, out, |bytes| f16::from_le_bytes(bytes).to_f32()),
        ElementType::Bf16 => convert(bytes, out, |bytes| bf16::from_le_bytes(bytes).to_f32()),
    }
}
