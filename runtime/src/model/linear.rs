//! A linear map as it is held in memory: y = W x + b.
//!
//! Quantization swaps the [`Linear`], never the model. Dense weights point into the mapped file; quantized ones are
//! packed while loading.

use infer_kernels::MatrixRef;
use infer_kernels::cpu::matrix::ElementType;

use crate::load::Bytes;

/// A matrix [rows, cols] and the format of its bytes, which were checked against the shape when it was made.
#[derive(Debug, Clone)]
pub(crate) struct Matrix {
    format: MatrixFormat,
    rows: usize,
    cols: usize,
    bytes: Bytes,
}

/// The format of a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MatrixFormat {
    Dense(ElementType),
    Int8,
    Int4,
}

impl Matrix {
    /// Fails if length or alignment of the bytes do not fit.
    pub fn new(
        format: MatrixFormat,
        rows: usize,
        cols: usize,
        bytes: Bytes,
    ) -> Result<Matrix, infer_kernels::KernelError> {
        view(format, rows, cols, &bytes)?;
        Ok(Matrix { format, rows, cols, bytes })
    }

    pub fn view(&self) -> MatrixRef<'_> {
        view(self.format, self.rows, self.cols, &self.bytes).expect("checked when the matrix was made")
    }

    pub fn n_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Whether both are the same bytes, not merely equal ones.
    pub fn shares_bytes(&self, other: &Matrix) -> bool {
        self.bytes.as_ptr() == other.bytes.as_ptr()
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }
}

fn view(
    format: MatrixFormat,
    rows: usize,
    cols: usize,
    bytes: &[u8],
) -> Result<MatrixRef<'_>, infer_kernels::KernelError> {
    match format {
        MatrixFormat::Dense(element) => MatrixRef::dense(element, bytes, rows, cols),
        MatrixFormat::Int8 => MatrixRef::int8(bytes, rows, cols),
        MatrixFormat::Int4 => MatrixRef::int4(bytes, rows, cols),
    }
}

/// y = W x + b, with W as one matrix or as the product of two thin ones.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    pub weight: Weight,
    pub bias: Option<Vec<f32>>,
}

/// The weight of a linear map.
#[derive(Debug, Clone)]
pub(crate) enum Weight {
    /// Dense, int8 or int4.
    Matrix(Matrix),
    /// W = outer * inner with inner [rank, cols] and outer [rows, rank].
    Factored { inner: Matrix, outer: Matrix },
}

impl Linear {
    pub fn rows(&self) -> usize {
        match &self.weight {
            Weight::Matrix(matrix) => matrix.rows(),
            Weight::Factored { outer, .. } => outer.rows(),
        }
    }

    pub fn cols(&self) -> usize {
        match &self.weight {
            Weight::Matrix(matrix) => matrix.cols(),
            Weight::Factored { inner, .. } => inner.cols(),
        }
    }
}
