//! 8-bit weights: groups of 32 inputs with one f16 scale, 8.5 bits a weight.
//!
//! value = scale * code, with code in -127..=127.
//!
//! ```text
//! row:    | group 0 | group 1 | ...     ceil(cols / 32) groups of 34 bytes
//! group:  | scale: f16, little-endian | 32 codes: i8 |     codes beyond cols are 0
//! ```
//!
//! The scale is the f16 next to max|w| / 127 and never 0 unless the group is: codes are rounded to what was
//! stored. A magnitude beyond f16's range (127 * 65504) is cut to it.

use half::f16;

use super::sanitize;
use crate::cpu::matrix::check_length;
use crate::error::KernelError;

/// Inputs that share a scale.
pub const GROUP: usize = 32;
const GROUP_BYTES: usize = 2 + GROUP;

/// A packed group.
pub(crate) type Group = [u8; GROUP_BYTES];

fn row_bytes(cols: usize) -> Option<usize> {
    cols.div_ceil(GROUP).checked_mul(GROUP_BYTES)
}

/// The bytes of a packed matrix; None if they overflow.
pub fn packed_bytes(rows: usize, cols: usize) -> Option<usize> {
    rows.checked_mul(row_bytes(cols)?)
}

/// Packs whole rows of `cols` weights into `packed`, which has [`packed_bytes`] for them.
pub fn quantize_rows(source: &[f32], cols: usize, packed: &mut [u8]) {
    assert!(cols > 0 && source.len().is_multiple_of(cols), "{} weights in rows of {cols}", source.len());
    let expected = packed_bytes(source.len() / cols, cols);
    assert_eq!(Some(packed.len()), expected, "bytes of {} packed rows of {cols}", source.len() / cols);
    let groups = source.chunks_exact(cols).flat_map(|row| row.chunks(GROUP));
    for (weights, packed) in groups.zip(packed.as_chunks_mut::<GROUP_BYTES>().0) {
        quantize_group(weights, packed);
    }
}

fn quantize_group(weights: &[f32], packed: &mut [u8; GROUP_BYTES]) {
    let largest = weights.iter().fold(0.0f32, |a, w| a.max(sanitize(*w).abs()));
    let least = if largest > 0.0 { f16::from_bits(1) } else { f16::ZERO };
    let scale = f16::from_f32(largest / 127.0).clamp(least, f16::MAX);
    let (stored, codes) = packed.split_at_mut(2);
    stored.copy_from_slice(&scale.to_le_bytes());
    codes.fill(0);
    let inverse = if largest > 0.0 { 1.0 / scale.to_f32() } else { 0.0 };
    for (code, weight) in codes.iter_mut().zip(weights) {
        *code = (sanitize(*weight) * inverse).round_ties_even().clamp(-127.0, 127.0) as i8 as u8;
    }
}

/// A borrowed packed matrix.
#[derive(Clone, Copy, Debug)]
pub struct Int8Ref<'a> {
    bytes: &'a [u8],
    rows: usize,
    cols: usize,
}

impl<'a> Int8Ref<'a> {
    /// A matrix over packed bytes: [`KernelError::Length`] or [`KernelError::TooLarge`] if they do not fit the shape.
    pub fn new(bytes: &'a [u8], rows: usize, cols: usize) -> Result<Self, KernelError> {
        check_length("int8", rows, cols, packed_bytes(rows, cols), bytes.len())?;
        Ok(Int8Ref { bytes, rows, cols })
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Writes the values `start..start + out.len()` of a row; `start` is a multiple of [`GROUP`].
    pub fn dequantize(&self, row: usize, start: usize, out: &mut [f32]) {
        dequantize_groups(self.groups(row, start, out.len()), out);
    }

    /// The groups of `len` values of a row, from a multiple of [`GROUP`] on.
    pub(crate) fn groups(&self, row: usize, start: usize, len: usize) -> &'a [Group] {
        assert!(row < self.rows, "row {row} of a matrix of {} rows", self.rows);
        assert!(start.is_multiple_of(GROUP), "column {start} is inside a group of {GROUP}");
        assert!(start + len <= self.cols, "columns {start}..{} of {}", start + len, self.cols);
        let first = row * self.cols.div_ceil(GROUP) + start / GROUP;
        &self.bytes.as_chunks().0[first..][..len.div_ceil(GROUP)]
    }
}

/// Writes the values of groups; the last may be cut short.
pub(crate) fn dequantize_groups(groups: &[Group], out: &mut [f32]) {
    for (out, [low, high, codes @ ..]) in out.chunks_mut(GROUP).zip(groups) {
        let scale = f16::from_le_bytes([*low, *high]).to_f32();
        for (out, code) in out.iter_mut().zip(codes) {
            *out = scale * *code as i8 as f32;
        }
    }
}
