//! 8-bit weights: groups of 32 inputs with one f16 scale, 8.5 bits a weight.
//!
//! value = scale * code, with code in -127..=127.
//!
//! ```text
//! matrix: | panel of rows 0..16 | panel of rows 16..32 | ...
//! panel:  | step 0 | step 1 | ...                            ceil(cols / 64) steps of 1088 bytes
//! step:   | 16 quads of 64 bytes | scales of 2 groups: [group][row] f16, little-endian |
//! quad q: byte 4 r + i = code of input 4 q + i of row r, plus 128
//! ```
//!
//! The scale is the f16 next to max|w| / 127 and never 0 unless the group is: codes are rounded to what was
//! stored. A magnitude beyond f16's range (127 * 65504) is cut to it.

use half::f16;

use super::{Lanes, PANEL_ROWS, QUAD, STEP, panels, sanitize};
use crate::cpu::matrix::{Element, check_length};
use crate::error::KernelError;

/// Inputs that share a scale.
pub const GROUP: usize = 32;
/// Bytes of a step before its scales.
pub(crate) const CODE_BYTES: usize = PANEL_ROWS * STEP;
const STEP_BYTES: usize = CODE_BYTES + 2 * PANEL_ROWS * STEP / GROUP;

/// What is added to a code: the instructions multiply unsigned weights with signed activations.
pub(crate) const BIAS: i32 = 128;

/// A packed step of a panel.
pub(crate) type Step = [u8; STEP_BYTES];

/// A group of a step: its quads, and its scales as bytes.
#[inline(always)]
pub(crate) fn group(step: &Step, index: usize) -> (&[[u8; 64]; GROUP / QUAD], &[u8; 2 * PANEL_ROWS]) {
    let (codes, scales) = step.split_at(CODE_BYTES);
    (&codes.as_chunks::<64>().0.as_chunks().0[index], &scales.as_chunks().0[index])
}

/// The groups of a step.
pub(crate) fn groups(step: &Step) -> [(&[[u8; 64]; GROUP / QUAD], &[u8; 2 * PANEL_ROWS]); STEP / GROUP] {
    [group(step, 0), group(step, 1)]
}

/// The scales of a group's rows.
pub(crate) fn scales(bytes: &[u8; 2 * PANEL_ROWS]) -> Lanes {
    let bytes = bytes.as_chunks().0;
    Lanes(std::array::from_fn(|row| f16::from_le_bytes(bytes[row]).to_f32()))
}

/// The code of a row in a quad.
pub(crate) fn code(quad: &[u8; 64], row: usize, i: usize) -> i32 {
    quad[QUAD * row + i] as i32 - BIAS
}

/// The bytes of a packed matrix; None if they overflow.
pub fn packed_bytes(rows: usize, cols: usize) -> Option<usize> {
    rows.div_ceil(PANEL_ROWS).checked_mul(cols.div_ceil(STEP).checked_mul(STEP_BYTES)?)
}

/// Packs whole rows of `cols` weights into `packed`, which has [`packed_bytes`] for them. A run of rows that is
/// packed by itself starts at a multiple of [`PANEL_ROWS`]. Inlined, so that each tier gets vector code of its own: callers
/// that have an [`Isa`](crate::Isa) want [`Isa::quantize_int8`](crate::Isa::quantize_int8).
#[inline(always)]
pub fn quantize_rows(source: &[f32], cols: usize, packed: &mut [u8]) {
    quantize_rows_with(source, cols, packed, quantize_step);
}

/// [`quantize_rows`] with a tier's own [`quantize_step`].
#[inline(always)]
pub(crate) fn quantize_rows_with(
    source: &[f32],
    cols: usize,
    packed: &mut [u8],
    quantize_step: impl Fn(&StepWeights<'_>, &mut Step),
) {
    let rows = source.len() / cols.max(1);
    assert_eq!(Some(packed.len()), packed_bytes(rows, cols), "bytes of {rows} packed rows of {cols}");
    let (steps, _) = packed.as_chunks_mut();
    for (rows, steps) in panels(source, cols).zip(steps.chunks_exact_mut(cols.div_ceil(STEP))) {
        // What there is of the last step. Rows that are not there are zeros.
        let mut last = [[0.0; STEP]; PANEL_ROWS];
        let whole = cols - cols % STEP;
        for (last, row) in last.iter_mut().zip(rows.chunks_exact(cols)) {
            last[..cols - whole].copy_from_slice(&row[whole..]);
        }
        for (step, start) in steps.iter_mut().zip((0..).step_by(STEP)) {
            let row = |r| rows.get(r * cols + start..(r + 1) * cols).and_then(|row| row.first_chunk());
            quantize_step(&std::array::from_fn(|r| row(r).unwrap_or(&last[r])), step);
        }
    }
}

/// The weights of a step, row by row.
pub(crate) type StepWeights<'a> = [&'a [f32; STEP]; PANEL_ROWS];

/// Quantizes the weights of a step, all rows of a group at a time.
#[inline(always)]
pub(crate) fn quantize_step(weights: &StepWeights<'_>, step: &mut Step) {
    let mut weights = weights.map(|row| *row);
    let (quads, scales) = step.split_at_mut(CODE_BYTES);
    let mut codes = [[0; STEP]; PANEL_ROWS];
    for (g, scales) in scales.as_chunks_mut().0.as_chunks_mut::<PANEL_ROWS>().0.iter_mut().enumerate() {
        let inputs = GROUP * g..GROUP * (g + 1);
        let mut inverses = [0.0; PANEL_ROWS];
        for (inverse, row) in inverses.iter_mut().zip(&mut weights) {
            let row = &mut row[inputs.clone()];
            *inverse = largest(row);
            if !inverse.is_finite() {
                row.iter_mut().for_each(|weight| *weight = sanitize(*weight));
                *inverse = largest(row);
            }
        }
        for (inverse, scale) in inverses.iter_mut().zip(scales) {
            let largest = *inverse;
            let bits = narrow(largest / 127.0).max(u16::from(largest > 0.0));
            *inverse = if largest > 0.0 { 1.0 / f16::from_bits(bits).widen() } else { 0.0 };
            *scale = bits.to_le_bytes();
        }
        for ((codes, row), inverse) in codes.iter_mut().zip(&weights).zip(inverses) {
            for (code, weight) in codes[inputs.clone()].iter_mut().zip(&row[inputs.clone()]) {
                *code = code_of(weight * inverse);
            }
        }
    }
    let mut columns = codes.map(|codes| std::array::from_fn(|q| u32::from_le_bytes(codes.as_chunks().0[q])));
    for _ in 0..PANEL_ROWS.ilog2() {
        columns = interleaved(&columns);
    }
    for (quad, column) in quads.as_chunks_mut().0.iter_mut().zip(columns.as_flattened()) {
        *quad = column.to_le_bytes();
    }
}

/// The largest magnitude.
#[inline(always)]
fn largest(weights: &[f32]) -> f32 {
    // As bits, magnitudes are ordered like integers, and what is not finite comes last.
    let bits = weights.iter().fold(0, |largest, weight| largest.max(weight.abs().to_bits() as i32));
    f32::from_bits(bits as u32)
}

/// A code as it is stored, from a weight in units of its scale.
#[inline(always)]
fn code_of(value: f32) -> u8 {
    /// 1.5 * 2^23: adding it to a small number leaves the number, rounded to even, in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let value = if value > -127.0 { value } else { -127.0 };
    let value = if value < 127.0 { value } else { 127.0 };
    ((value + ROUND).to_bits() as u8).wrapping_add(BIAS as u8)
}

/// One of the four perfect shuffles that transpose a square of 16.
#[inline(always)]
fn interleaved(square: &[[u32; 16]; 16]) -> [[u32; 16]; 16] {
    let mut out = [[0; 16]; 16];
    for i in 0..8 {
        for j in 0..8 {
            out[2 * i][2 * j] = square[i][j];
            out[2 * i][2 * j + 1] = square[i + 8][j];
            out[2 * i + 1][2 * j] = square[i][j + 8];
            out[2 * i + 1][2 * j + 1] = square[i + 8][j + 8];
        }
    }
    out
}

/// The bits of the f16 next to a number that is not negative, ties to even, at most the largest finite one.
#[inline(always)]
fn narrow(value: f32) -> u16 {
    /// Half, whose last place in f32 is 2^-24 and so that of an f16 below 2^-14.
    const HALF: f32 = 0.5;
    /// The difference of the exponents' biases.
    const BIASES: u32 = (127 - 15) << 23;
    let value = if value < 65504.0 { value } else { 65504.0 };
    let bits = value.to_bits();
    let small = (value + HALF).to_bits().wrapping_sub(HALF.to_bits());
    // Half of what is cut off, less one if the last bit that stays is even: what is exactly between goes to even.
    let large = bits.wrapping_sub(BIASES).wrapping_add(0xfff + (bits >> 13 & 1)) >> 13;
    (if bits < (127 - 14) << 23 { small } else { large }) as u16
}

/// A borrowed packed matrix.
#[derive(Clone, Copy, Debug)]
pub struct Int8Ref<'a> {
    steps: &'a [Step],
    rows: usize,
    cols: usize,
}

impl<'a> Int8Ref<'a> {
    /// A matrix over packed bytes: [`KernelError::Length`] or [`KernelError::TooLarge`] if they do not fit the shape.
    pub fn new(bytes: &'a [u8], rows: usize, cols: usize) -> Result<Self, KernelError> {
        check_length("int8", rows, cols, packed_bytes(rows, cols), bytes.len())?;
        Ok(Int8Ref { steps: bytes.as_chunks().0, rows, cols })
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The steps of rows `16 index` and following.
    pub(crate) fn panel(&self, index: usize) -> &'a [Step] {
        assert!(index < self.rows.div_ceil(PANEL_ROWS), "panel {index} of a matrix of {} rows", self.rows);
        let n_steps = self.cols.div_ceil(STEP);
        &self.steps[index * n_steps..][..n_steps]
    }

    /// Writes the values of a row to `out`, which has `cols` values.
    pub fn dequantize(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row {row} of a matrix of {} rows", self.rows);
        assert_eq!(out.len(), self.cols, "length of the output of a row");
        let lane = row % PANEL_ROWS;
        let all = self.panel(row / PANEL_ROWS).iter().flat_map(groups);
        for (out, (quads, stored)) in out.chunks_mut(GROUP).zip(all) {
            let scale = scales(stored)[lane];
            for (out, quad) in out.chunks_mut(QUAD).zip(quads) {
                out.iter_mut().enumerate().for_each(|(i, out)| *out = scale * code(quad, lane, i) as f32);
            }
        }
    }
}

/// Writes the values of a panel's first inputs, `out[k][row]`.
pub(crate) fn unpack(steps: &[Step], out: &mut [Lanes]) {
    for (out, (quads, stored)) in out.chunks_mut(GROUP).zip(steps.iter().flat_map(groups)) {
        let scales = scales(stored);
        for (out, quad) in out.chunks_mut(QUAD).zip(quads) {
            for (i, out) in out.iter_mut().enumerate() {
                out.iter_mut().enumerate().for_each(|(row, out)| *out = scales[row] * code(quad, row, i) as f32);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_rounded_to_the_nearest_half() {
        // Every half, the number between it and the next, and those beside that.
        for bits in 0..0x7bff {
            let (low, high) = (f16::from_bits(bits).to_f32(), f16::from_bits(bits + 1).to_f32());
            let between = low + (high - low) / 2.0;
            for value in [low, between.next_down(), between, between.next_up(), high] {
                assert_eq!(narrow(value), f16::from_f32(value).to_bits(), "{value:e}");
            }
        }
        for value in [65504.0, 65519.0, 65520.0, 1e30, f32::INFINITY] {
            assert_eq!(narrow(value), f16::MAX.to_bits(), "{value}");
        }
    }
}
