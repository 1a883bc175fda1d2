//! Products of quantized weights with quantized activations: the specification that every tier equals, bit for bit.
//!
//! Sums over a block of inputs are integers and exact. Floats enter once a block, with one fused multiply-add each,
//! block after block, so their rounding is the same everywhere.
//!
//! # Int4, few tokens
//! out = row_scale * sum over blocks of (scale of the inputs * T), with the integer
//! T = sum over the block's groups of group_scale * sum_k (level_k + 4 shift) * x_k
//!
//! # Int4, many tokens
//! The weights of a row and a block are rounded again, to 8 bits with one scale, so that a block takes nothing but
//! products of bytes. With m = max |group_scale| of the block:
//!
//! w_k = (group_scale * floor(32767 / m) * (level_k + 4 shift) + 2^14) >> 15, about value_k / (row_scale * m)
//!
//! out = sum over blocks of (scale of the inputs * (row_scale * m)) * sum_k w_k * x_k
//!
//! Groups whose scale is the largest stay as they are. |level + 4 shift| is at most 127, and so is |w|. This adds at
//! most a twentieth to the squared error of the format.
//!
//! # Int8
//! out = sum over groups of (scale of the group * scale of the inputs) * sum_k code_k * x_k

use super::inputs::{InputTile, Kind};
use super::int4::{self, Panel, group_scale, level, offset};
use super::int8;
use super::{Lanes, PANEL_ROWS, QUAD, STEP};

/// Steps of a block of inputs that are multiplied with int4 weights.
pub(crate) const BLOCK_STEPS: usize = Kind::Int4.block() / STEP;

/// Panels of a tile that many tokens are multiplied with, side by side.
pub(crate) const TILE_PANELS: usize = 4;

/// A quad of a tile of expanded weights: byte 4 r + i of a panel is w of input 4 q + i of its row r, plus 128.
pub(crate) type TileQuad = [[u8; 64]; TILE_PANELS];

#[cfg(test)]
thread_local! {
    /// How often this thread has computed products by this specification.
    pub(crate) static CALLS: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Writes `sums[column][panel][row]` of the products of panels with a tile of inputs.
pub(crate) fn int4_product(panels: &[Panel<'_>], inputs: &InputTile, sums: &mut [Lanes]) {
    #[cfg(test)]
    CALLS.set(CALLS.get() + 1);
    for (column, sums) in sums.chunks_exact_mut(panels.len()).enumerate() {
        for (panel, sums) in panels.iter().zip(sums) {
            for (row, out) in sums.iter_mut().enumerate() {
                let mut sum = 0.0f32;
                for (block, steps) in panel.steps.chunks(BLOCK_STEPS).enumerate() {
                    let total = int4_total(steps, row, inputs, block, column);
                    sum = (total as f32).mul_add(inputs.scales[block * inputs.width + column], sum);
                }
                *out = panel.row_scales[row] * sum;
            }
        }
    }
}

/// The sum over a block of group_scale * sum_k (level_k + 4 shift) * x_k.
fn int4_total(steps: &[int4::Step], row: usize, inputs: &InputTile, block: usize, column: usize) -> i32 {
    let mut total = 0;
    for (g, (pairs, heads)) in steps.iter().flat_map(int4::groups).enumerate() {
        let first = block * (Kind::Int4.block() / QUAD) + g * (int4::GROUP / QUAD);
        let mut group_sum = 0;
        for quad in 0..int4::GROUP / QUAD {
            for (i, x) in inputs.quad(first + quad, column).into_iter().enumerate() {
                group_sum += (level(pairs, row, QUAD * quad + i) + offset(heads[row])) * x;
            }
        }
        total += group_scale(heads[row]) * group_sum;
    }
    total
}

/// Rounds a block of a panel's weights to 8 bits, into panel `index` of each quad of `tile`, which has 16 quads for
/// each step. Returns the scales of the rows.
pub(crate) fn expand(row_scales: &Lanes, steps: &[int4::Step], index: usize, tile: &mut [TileQuad]) -> Lanes {
    let (largest, units) = block_scales(steps);
    for ((pairs, heads), quads) in steps.iter().flat_map(int4::groups).zip(tile.chunks_mut(int4::GROUP / QUAD)) {
        for (quad, out) in quads.iter_mut().enumerate() {
            for (byte, out) in out[index].iter_mut().enumerate() {
                let row = byte / QUAD;
                let value = level(pairs, row, QUAD * quad + byte % QUAD) + offset(heads[row]);
                let rounded = (group_scale(heads[row]) * units[row] as i32 * value + (1 << 14)) >> 15;
                *out = (rounded + int8::BIAS) as u8;
            }
        }
    }
    Lanes(std::array::from_fn(|row| row_scales[row] * largest[row] as f32))
}

/// For each row of a block: the largest magnitude m of its groups' scales, and floor(32767 / m). Inlined, so that each
/// tier gets vector code of its own.
#[inline(always)]
pub(crate) fn block_scales(steps: &[int4::Step]) -> ([u8; PANEL_ROWS], [i16; PANEL_ROWS]) {
    const UNITS: [i16; 33] = {
        let mut units = [i16::MAX; 33];
        let mut m = 1;
        while m < units.len() {
            units[m] = i16::MAX / m as i16;
            m += 1;
        }
        units
    };
    let mut largest = [0; PANEL_ROWS];
    for step in steps {
        for (_, heads) in int4::groups(step) {
            for (largest, head) in largest.iter_mut().zip(heads) {
                *largest = u8::max(*largest, (*head as i8 >> 2).unsigned_abs());
            }
        }
    }
    (largest, largest.map(|m| UNITS[m as usize]))
}

/// Adds to `sums[column][panel][row]` the products of a block of expanded weights with the inputs' block `block`.
pub(crate) fn expanded_product(
    tile: &[TileQuad],
    scales: &[Lanes; TILE_PANELS],
    inputs: &InputTile,
    block: usize,
    sums: &mut [Lanes],
) {
    #[cfg(test)]
    CALLS.set(CALLS.get() + 1);
    let first = block * (Kind::Int4.block() / QUAD);
    for (column, sums) in sums.chunks_exact_mut(TILE_PANELS).enumerate() {
        let scale = inputs.scales[block * inputs.width + column];
        for (panel, sums) in sums.iter_mut().enumerate() {
            for (row, sum) in sums.iter_mut().enumerate() {
                let total = total(tile.iter().map(|quad| &quad[panel]), row, inputs, first, column);
                *sum = (total as f32).mul_add(scales[panel][row] * scale, *sum);
            }
        }
    }
}

/// Adds to `sums[column][panel][row]` the products of some steps of panels with the inputs from step `first` on.
pub(crate) fn int8_product(panels: &[&[int8::Step]], inputs: &InputTile, first: usize, sums: &mut [Lanes]) {
    #[cfg(test)]
    CALLS.set(CALLS.get() + 1);
    for (column, sums) in sums.chunks_exact_mut(panels.len()).enumerate() {
        for (steps, sums) in panels.iter().zip(sums) {
            for (group, (quads, stored)) in (first * (STEP / int8::GROUP)..).zip(steps.iter().flat_map(int8::groups)) {
                let (scales, scale) = (int8::scales(stored), inputs.scales[group * inputs.width + column]);
                for (row, sum) in sums.iter_mut().enumerate() {
                    let total = total(quads, row, inputs, group * (int8::GROUP / QUAD), column);
                    *sum = (total as f32).mul_add(scales[row] * scale, *sum);
                }
            }
        }
    }
}

/// The sum of a row's codes times the inputs from quad `first` on.
fn total<'a>(
    quads: impl IntoIterator<Item = &'a [u8; 64]>,
    row: usize,
    inputs: &InputTile,
    first: usize,
    column: usize,
) -> i32 {
    let products = (first..).zip(quads).map(|(q, quad)| {
        let x = inputs.quad(q, column);
        (0..QUAD).map(|i| int8::code(quad, row, i) * x[i]).sum::<i32>()
    });
    products.sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::int4::Int4Ref;

    /// Roughly normal numbers: sums of twelve uniform ones.
    fn normal(n: usize) -> Vec<f32> {
        let mut state = 1u64;
        let mut uniform = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32
        };
        (0..n).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
    }

    #[test]
    fn expanding_adds_little_to_the_error_of_int4_weights() {
        let cols = 1024;
        let source = normal(PANEL_ROWS * cols);
        let mut packed = vec![0; int4::packed_bytes(PANEL_ROWS, cols).unwrap()];
        int4::quantize_rows(&source, cols, &mut packed);
        let matrix = Int4Ref::new(&packed, PANEL_ROWS, cols).unwrap();
        let panel = matrix.panel(0);
        let (mut error, mut expanded_error) = (0.0, 0.0);
        for (block, steps) in panel.steps.chunks(BLOCK_STEPS).enumerate() {
            let mut tile = vec![[[0; 64]; TILE_PANELS]; BLOCK_STEPS * STEP / QUAD];
            let scales = expand(&panel.row_scales, steps, 2, &mut tile);
            for row in 0..PANEL_ROWS {
                let mut values = vec![0.0; cols];
                matrix.dequantize(row, &mut values);
                for k in 0..Kind::Int4.block() {
                    let at = block * Kind::Int4.block() + k;
                    let weight = source[row * cols + at];
                    let expanded = scales[row] * int8::code(&tile[k / QUAD][2], row, k % QUAD) as f32;
                    error += (weight - values[at]).powi(2);
                    expanded_error += (weight - expanded).powi(2);
                }
            }
        }
        let ratio = expanded_error / error;
        assert!(ratio < 1.05, "{expanded_error} after expanding, {error} before");
    }
}
