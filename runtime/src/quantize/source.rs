//! Matrices as a checkpoint stores them, and quantizing them where they are mapped: in bands of rows, the rows of a band
//! in parallel, and the memory of a band let go when it is done. Results do not depend on the number of threads.

use std::ops::Range;

use infer_kernels::cpu::matrix::ElementType;
use infer_kernels::quant::PANEL_ROWS;
use infer_kernels::{Isa, KernelError};
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::load::{Bytes, Checkpoint, TensorView};
use crate::model::spec::{self, Part};
use crate::options::WeightFormat;
use crate::quantize::plan::packed_bytes;

/// Rows that one task quantizes: whole panels, enough to amortise the task, few enough to share out.
const ROWS_PER_TASK: usize = PANEL_ROWS;

/// Bytes of source in a band: enough work for all threads, little memory.
const BAND_BYTES: usize = 8 << 20;

/// A matrix that is about to be quantized.
pub(crate) struct SourceMatrix<'a> {
    matrix: &'a spec::Matrix,
    format: WeightFormat,
    tensor: TensorView,
    element: ElementType,
    isa: Isa,
    /// [rows, cols], row after row.
    bytes: Bytes,
}

/// Rows of a matrix, and where their packed bytes belong.
#[derive(Clone, Debug)]
pub(crate) struct Band {
    rows: Range<usize>,
    pub packed: Range<usize>,
}

impl<'a> SourceMatrix<'a> {
    /// Finds the bytes of a matrix whose tensor has been checked.
    pub fn open(checkpoint: &Checkpoint, matrix: &'a spec::Matrix, format: WeightFormat) -> Result<SourceMatrix<'a>> {
        let tensor = checkpoint.tensor(&matrix.tensor).ok_or_else(|| Error::Tensor {
            path: checkpoint.path().to_owned(),
            tensor: matrix.tensor.clone(),
            expected: "to be in the file".to_owned(),
            found: "nothing".to_owned(),
        })?;
        let element = element_type(&tensor)?;
        let bytes = part_bytes(&tensor, matrix.part, matrix.rows, matrix.cols)?;
        Ok(SourceMatrix { matrix, format, tensor, element, isa: Isa::from_env()?, bytes })
    }

    /// The bands, first to last; together they are the whole packed matrix.
    pub fn bands(&self) -> Result<Vec<Band>> {
        let (rows, cols) = (self.matrix.rows, self.matrix.cols);
        let band_rows = (BAND_BYTES / self.row_bytes().max(1)).next_multiple_of(ROWS_PER_TASK).max(ROWS_PER_TASK);
        let packed = |rows| packed_bytes(self.format, rows, cols).ok_or(KernelError::TooLarge { rows, cols });
        let mut bands = Vec::new();
        for start in (0..rows).step_by(band_rows) {
            let end = rows.min(start + band_rows);
            let begin = packed(start)?;
            bands.push(Band { rows: start..end, packed: begin..begin + packed(end - start)? });
        }
        Ok(bands)
    }

    /// Quantizes everything; `progress` is called with the bytes of each band.
    pub fn quantize(&self, pool: &rayon::ThreadPool, packed: &mut [u8], progress: &(dyn Fn(u64) + Sync)) -> Result<()> {
        let mut rest = packed;
        for band in self.bands()? {
            let (packed, after) = rest.split_at_mut(band.packed.len());
            rest = after;
            pool.install(|| self.quantize_band(&band, packed))?;
            progress(self.band_bytes(&band).len() as u64);
        }
        Ok(())
    }

    /// Quantizes a band into the bytes that it needs, on the threads of the caller's pool.
    ///
    /// # Errors
    /// [`Error::Tensor`] for a value that is not finite.
    pub fn quantize_band(&self, band: &Band, packed: &mut [u8]) -> Result<()> {
        let cols = self.matrix.cols;
        let too_large = KernelError::TooLarge { rows: ROWS_PER_TASK, cols };
        let task_bytes = packed_bytes(self.format, ROWS_PER_TASK, cols).ok_or(too_large)?;
        let isa = self.isa;
        let source = self.bytes.get(self.band_bytes(band)).unwrap_or_default();
        let quantized = packed
            .par_chunks_mut(task_bytes)
            .zip(source.par_chunks(self.row_bytes() * ROWS_PER_TASK))
            .try_for_each_init(
                || vec![0.0; cols * ROWS_PER_TASK],
                |values, (packed, source)| {
                    let values = &mut values[..source.len() / element_size(self.element)];
                    if !isa.to_f32(self.element, source, values) {
                        check_finite(&self.tensor, &self.matrix.tensor, values)?;
                    }
                    match self.format {
                        WeightFormat::Int4 => isa.quantize_int4(values, cols, packed),
                        WeightFormat::Int8 | WeightFormat::AsStored => isa.quantize_int8(values, cols, packed),
                    }
                    Ok(())
                },
            );
        self.bytes.release(self.band_bytes(band));
        quantized
    }

    /// Where the source of a band lies in the matrix.
    pub fn band_bytes(&self, band: &Band) -> Range<usize> {
        band.rows.start * self.row_bytes()..band.rows.end * self.row_bytes()
    }

    fn row_bytes(&self) -> usize {
        self.matrix.cols * element_size(self.element)
    }
}

pub(crate) fn check_finite(tensor: &TensorView, name: &str, values: &[f32]) -> Result<()> {
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

pub(crate) fn element_type(tensor: &TensorView) -> Result<ElementType> {
    tensor.dtype.element_type().ok_or_else(|| Error::Tensor {
        path: tensor.file.clone(),
        tensor: tensor.name.clone(),
        expected: "F32, F16 or BF16".to_owned(),
        found: tensor.dtype.to_string(),
    })
}

pub(crate) fn element_size(element: ElementType) -> usize {
    match element {
        ElementType::F32 => 4,
        ElementType::F16 | ElementType::Bf16 => 2,
    }
}

/// The bytes of `part`, [rows, cols] row after row, in the stored type. Shapes were checked against the spec before.
pub(crate) fn part_bytes(tensor: &TensorView, part: Part, rows: usize, cols: usize) -> Result<Bytes> {
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
