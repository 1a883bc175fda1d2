//! Weight matrices as kernels see them: borrowed, read-only, rows = output features.

use std::ops::Range;

use half::{bf16, f16};

use crate::error::KernelError;
use crate::quant::{int4::Int4Ref, int8::Int8Ref};

/// The type of a dense matrix's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
}

/// What a dense matrix or a cache may hold. Sealed: the tiers know these three.
pub trait Element: Copy + Send + Sync + private::Lanes + 'static {
    /// The type's name in messages.
    const KIND: &'static str;
    /// The value as f32, exact.
    fn widen(self) -> f32;
    /// The nearest value of the type, ties to even.
    fn narrow(value: f32) -> Self;
}

pub(super) mod private {
    /// Keeps [`super::Element`] closed, and names what each tier needs to load it, or a value of a cache.
    #[cfg(target_arch = "x86_64")]
    pub trait Lanes: crate::cpu::isa::avx2::Load + crate::cpu::isa::avx512::dense::Load {}
    /// Keeps [`super::Element`] closed.
    #[cfg(not(target_arch = "x86_64"))]
    pub trait Lanes {}
    impl Lanes for f32 {}
    impl Lanes for half::f16 {}
    impl Lanes for half::bf16 {}
    impl Lanes for i8 {}
}

impl Element for f32 {
    const KIND: &'static str = "f32";
    fn widen(self) -> f32 {
        self
    }
    fn narrow(value: f32) -> f32 {
        value
    }
}

impl Element for f16 {
    const KIND: &'static str = "f16";
    /// The fields moved to their places, and the difference of the exponents' biases made up for by a product,
    /// which is exact and also makes subnormals right. Without branches, so that loops become vector code.
    fn widen(self) -> f32 {
        const BIAS: f32 = f32::from_bits((127 + 112) << 23); // 2^112 = 2^(127 - 15)
        let (sign, rest) = ((self.to_bits() as u32 & 0x8000) << 16, (self.to_bits() as u32 & 0x7fff) << 13);
        let finite = (f32::from_bits(rest) * BIAS).to_bits();
        let value = if rest < 0x7c00 << 13 { finite } else { rest | 0x7f80_0000 };
        f32::from_bits(sign | value)
    }
    fn narrow(value: f32) -> f16 {
        f16::from_f32(value)
    }
}

impl Element for bf16 {
    const KIND: &'static str = "bf16";
    fn widen(self) -> f32 {
        f32::from_bits((self.to_bits() as u32) << 16)
    }
    fn narrow(value: f32) -> bf16 {
        bf16::from_f32(value)
    }
}

/// A dense matrix, [rows, cols], row after row.
#[derive(Clone, Copy, Debug)]
pub struct Dense<'a, T> {
    values: &'a [T],
    rows: usize,
    cols: usize,
}

impl<'a, T: Element> Dense<'a, T> {
    /// A matrix over `rows * cols` values; [`KernelError::Length`] if there are more or fewer.
    pub fn new(values: &'a [T], rows: usize, cols: usize) -> Result<Self, KernelError> {
        check_length(T::KIND, rows, cols, dense_bytes::<T>(rows, cols), size_of_val(values))?;
        Ok(Dense { values, rows, cols })
    }

    /// A matrix over the little-endian bytes of a file.
    fn from_bytes(bytes: &'a [u8], rows: usize, cols: usize) -> Result<Self, KernelError> {
        check_length(T::KIND, rows, cols, dense_bytes::<T>(rows, cols), bytes.len())?;
        // SAFETY: f32, f16 and bf16 (Element is sealed) have no padding, and every bit pattern is a value.
        let (before, values, after) = unsafe { bytes.align_to::<T>() };
        if before.is_empty() && after.is_empty() {
            Ok(Dense { values, rows, cols })
        } else {
            Err(KernelError::Alignment { kind: T::KIND, expected: align_of::<T>() })
        }
    }

    /// The values of one row.
    pub fn row(&self, row: usize) -> &'a [T] {
        assert!(row < self.rows, "row {row} of a matrix of {} rows", self.rows);
        self.rows(row..row + 1)
    }

    /// The values of some rows, one after the other.
    pub(super) fn rows(&self, rows: Range<usize>) -> &'a [T] {
        &self.values[rows.start * self.cols..rows.end * self.cols]
    }
}

fn dense_bytes<T>(rows: usize, cols: usize) -> Option<usize> {
    rows.checked_mul(cols)?.checked_mul(size_of::<T>())
}

/// That `found` bytes are what a matrix needs; `expected` is None where the size overflows.
pub(crate) fn check_length(
    kind: &'static str,
    rows: usize,
    cols: usize,
    expected: Option<usize>,
    found: usize,
) -> Result<(), KernelError> {
    match expected {
        None => Err(KernelError::TooLarge { rows, cols }),
        Some(expected) if expected == found => Ok(()),
        Some(expected) => Err(KernelError::Length { kind, rows, cols, expected, found }),
    }
}

/// A borrowed weight matrix [rows = output features, cols = input features] of any format.
#[derive(Clone, Copy, Debug)]
pub enum MatrixRef<'a> {
    /// Dense binary32.
    F32(Dense<'a, f32>),
    /// Dense binary16.
    F16(Dense<'a, f16>),
    /// Dense bfloat16.
    Bf16(Dense<'a, bf16>),
    /// Quantized, see [`crate::quant::int8`].
    Int8(Int8Ref<'a>),
    /// Quantized, see [`crate::quant::int4`].
    Int4(Int4Ref<'a>),
}

impl<'a> MatrixRef<'a> {
    /// A dense matrix over little-endian bytes, row after row.
    ///
    /// [`KernelError::Length`] if their count is not that of the shape, [`KernelError::TooLarge`] if that count
    /// overflows, [`KernelError::Alignment`] if they do not start at a multiple of the element's size.
    pub fn dense(element: ElementType, bytes: &'a [u8], rows: usize, cols: usize) -> Result<Self, KernelError> {
        Ok(match element {
            ElementType::F32 => MatrixRef::F32(Dense::from_bytes(bytes, rows, cols)?),
            ElementType::F16 => MatrixRef::F16(Dense::from_bytes(bytes, rows, cols)?),
            ElementType::Bf16 => MatrixRef::Bf16(Dense::from_bytes(bytes, rows, cols)?),
        })
    }

    /// A matrix in the format of [`crate::quant::int8`]; errors as [`MatrixRef::dense`], of any alignment.
    pub fn int8(bytes: &'a [u8], rows: usize, cols: usize) -> Result<Self, KernelError> {
        Int8Ref::new(bytes, rows, cols).map(MatrixRef::Int8)
    }

    /// A matrix in the format of [`crate::quant::int4`]; errors as [`MatrixRef::dense`], of any alignment.
    pub fn int4(bytes: &'a [u8], rows: usize, cols: usize) -> Result<Self, KernelError> {
        Int4Ref::new(bytes, rows, cols).map(MatrixRef::Int4)
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        match self {
            MatrixRef::F32(m) => m.rows,
            MatrixRef::F16(m) => m.rows,
            MatrixRef::Bf16(m) => m.rows,
            MatrixRef::Int8(m) => m.rows(),
            MatrixRef::Int4(m) => m.rows(),
        }
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        match self {
            MatrixRef::F32(m) => m.cols,
            MatrixRef::F16(m) => m.cols,
            MatrixRef::Bf16(m) => m.cols,
            MatrixRef::Int8(m) => m.cols(),
            MatrixRef::Int4(m) => m.cols(),
        }
    }

    /// Writes one row (an embedding, for example) to `out`, which has `cols` values.
    pub fn row_to_f32(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.cols(), "length of the output of a row");
        match self {
            MatrixRef::F32(m) => out.copy_from_slice(m.row(row)),
            MatrixRef::F16(m) => widen_all(m.row(row), out),
            MatrixRef::Bf16(m) => widen_all(m.row(row), out),
            MatrixRef::Int8(m) => m.dequantize(row, out),
            MatrixRef::Int4(m) => m.dequantize(row, out),
        }
    }
}

fn widen_all<T: Element>(values: &[T], out: &mut [f32]) {
    out.iter_mut().zip(values).for_each(|(out, value)| *out = value.widen());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(align(4))]
    struct Aligned([u8; 25]);

    #[test]
    fn every_half_is_widened_exactly() {
        for bits in 0..=u16::MAX {
            let (found, expected) = (f16::from_bits(bits).widen(), f16::from_bits(bits).to_f32());
            assert!(
                found == expected || found.is_nan() && expected.is_nan(),
                "f16 {bits:#06x}: {found}, not {expected}"
            );
            assert_eq!(found.is_sign_negative(), expected.is_sign_negative(), "sign of f16 {bits:#06x}");
            let (found, expected) = (bf16::from_bits(bits).widen(), bf16::from_bits(bits).to_f32());
            assert!(
                found == expected || found.is_nan() && expected.is_nan(),
                "bf16 {bits:#06x}: {found}, not {expected}"
            );
        }
    }

    #[test]
    fn bytes_that_do_not_fit_the_shape_are_refused() {
        let bytes = Aligned([0; 25]);
        let of = |element, range: std::ops::Range<usize>, rows, cols| {
            MatrixRef::dense(element, &bytes.0[range], rows, cols).map(|m| (m.rows(), m.cols()))
        };
        use ElementType::*;
        assert_eq!(of(F32, 0..24, 2, 3), Ok((2, 3)));
        assert_eq!(of(Bf16, 2..14, 3, 2), Ok((3, 2)));
        assert_eq!(of(F16, 0..0, 0, 5), Ok((0, 5)));
        let length = of(F32, 0..23, 2, 3);
        assert_eq!(length, Err(KernelError::Length { kind: "f32", rows: 2, cols: 3, expected: 24, found: 23 }));
        assert_eq!(of(F32, 1..25, 2, 3), Err(KernelError::Alignment { kind: "f32", expected: 4 }));
        assert_eq!(of(F16, 1..25, 4, 3), Err(KernelError::Alignment { kind: "f16", expected: 2 }));
        let huge = usize::MAX / 2;
        assert_eq!(of(F32, 0..24, huge, 3), Err(KernelError::TooLarge { rows: huge, cols: 3 }));
        assert!(matches!(MatrixRef::int8(&bytes.0, huge, huge), Err(KernelError::TooLarge { .. })));
        assert!(matches!(MatrixRef::int4(&bytes.0, huge, huge), Err(KernelError::TooLarge { .. })));
        assert!(matches!(MatrixRef::int8(&bytes.0, 1, 1), Err(KernelError::Length { .. })));
        assert!(matches!(MatrixRef::int4(&bytes.0, 1, 1), Err(KernelError::Length { .. })));
    }
}
