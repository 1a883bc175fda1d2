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
const CODE_BYTES: usize = PANEL_ROWS * STEP;
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
    let rows = source.len() / cols.max(1);
    assert_eq!(Some(packed.len()), packed_bytes(rows, cols), "bytes of {rows} packed rows of {cols}");
    let (steps, _) = packed.as_chunks_mut::<STEP_BYTES>();
    for (rows, steps) in panels(source, cols).zip(steps.chunks_exact_mut(cols.div_ceil(STEP))) {
        for (step, start) in steps.iter_mut().zip((0..).step_by(STEP)) {
            let (quads, scales) = step.split_at_mut(CODE_BYTES);
            let (quads, scales) = (quads.as_chunks_mut::<QUAD>().0, scales.as_chunks_mut::<2>().0);
            if rows.len() < PANEL_ROWS * cols {
                quads.fill([BIAS as u8; QUAD]);
                scales.fill([0; 2]);
            }
            for (r, row) in rows.chunks_exact(cols).enumerate() {
                let row = &row[start..];
                let mut padded = [0.0; STEP];
                let weights = row.first_chunk().unwrap_or_else(|| {
                    padded[..row.len()].copy_from_slice(row);
                    &padded
                });
                for (g, weights) in weights.as_chunks().0.iter().enumerate() {
                    let (scale, codes) = quantize_group(weights);
                    scales[PANEL_ROWS * g + r] = scale.to_le_bytes();
                    for (q, codes) in codes.as_chunks().0.iter().enumerate() {
                        quads[PANEL_ROWS * (GROUP / QUAD * g + q) + r] = *codes;
                    }
                }
            }
        }
    }
}

/// The scale of a group, an f16, and its codes as they are stored.
#[inline(always)]
fn quantize_group(weights: &[f32; GROUP]) -> (u16, [u8; GROUP]) {
    /// 1.5 * 2^23: adding it to a small number leaves the number, rounded to even, in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let (mut finite, mut codes) = ([0.0; GROUP], [0; GROUP]);
    let mut largest = 0;
    for (finite, weight) in finite.iter_mut().zip(weights) {
        *finite = sanitize(*weight);
        // As bits, magnitudes are ordered like integers.
        largest = largest.max(finite.abs().to_bits() as i32);
    }
    let largest = f32::from_bits(largest as u32);
    let scale = narrow(largest / 127.0).max(u16::from(largest > 0.0));
    let inverse = if largest > 0.0 { 1.0 / f16::from_bits(scale).widen() } else { 0.0 };
    for (code, weight) in codes.iter_mut().zip(finite) {
        let value = weight * inverse;
        let value = if value > -127.0 { value } else { -127.0 };
        let value = if value < 127.0 { value } else { 127.0 };
        *code = ((value + ROUND).to_bits() as u8).wrapping_add(BIAS as u8);
    }
    (scale, codes)
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
