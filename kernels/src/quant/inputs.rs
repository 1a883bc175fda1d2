//! Activations for integer arithmetic: blocks of 256 inputs (with int4 weights) or 32 (with int8 weights, so that
//! the error is like theirs) with one f32 scale.
//!
//! value = scale * code, with scale = max|x| / 127 and code = round(x * (127 / max|x|)), ties to even
//!
//! A block whose max|x| is below 2^-100 counts as zeros. One with a value that is not finite has the scale NaN,
//! and so have all sums that it is a part of.
//!
//! Tokens are columns here. They are cut into tiles of a few columns, and within a tile four neighbouring inputs
//! of each column lie together, quad after quad, as the inner loops read them:
//!
//! ```text
//! codes: [quad][column] of four i8, zeros up to a multiple of 64 inputs
//! ```

use super::{QUAD, STEP};

/// Which weights the activations will be multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Int4,
    Int8,
}

impl Kind {
    /// Inputs that share a scale.
    pub(crate) const fn block(self) -> usize {
        match self {
            Kind::Int4 => 256,
            Kind::Int8 => 32,
        }
    }
}

/// The activations of a few tokens.
#[derive(Clone, Debug, Default)]
pub(crate) struct InputTile {
    /// Tokens.
    pub width: usize,
    /// [quad][column], four i8 each, the first in the lowest byte.
    pub codes: Vec<i32>,
    /// [block][column].
    pub scales: Vec<f32>,
    /// [block][column]: -128 times the sum of the codes, which takes the weights' bias back.
    pub corrections: Vec<i32>,
    /// [two groups of 16][column], for int4 weights: the sums of the codes, each in 16 bits, the first group's below.
    /// They meet what a group adds to all its levels: the shift, and what takes the bias back.
    pub group_sums: Vec<i32>,
}

pub(crate) const GROUP: usize = super::int4::GROUP;

/// 1.5 * 2^23: adding it to a small number leaves the number, rounded to even, in the low bits.
pub(crate) const ROUND: f32 = 12_582_912.0;

/// The least max|x| that counts.
pub(crate) const LEAST: f32 = f32::from_bits((127 - 100) << 23);

impl InputTile {
    /// Quantizes `width` rows of `x`, [width, cols]. Inlined, so that each tier gets vector code of its own.
    #[inline(always)]
    pub(crate) fn fill(&mut self, kind: Kind, x: &[f32], width: usize) {
        let cols = self.reset(kind, x.len(), width);
        for (column, x) in x.chunks_exact(cols.max(1)).enumerate() {
            for (i, x) in x.chunks(kind.block()).enumerate() {
                let mut codes = [0i8; Kind::Int4.block()];
                let codes = &mut codes[..x.len().next_multiple_of(GROUP)];
                self.scales[i * width + column] = quantize_block(x, &mut codes[..x.len()]);
                let mut sum = 0;
                for (g, codes) in codes.as_chunks::<GROUP>().0.iter().enumerate() {
                    let group_sum: i32 = codes.iter().map(|code| *code as i32).sum();
                    sum += group_sum;
                    if kind == Kind::Int4 {
                        let group = i * (Kind::Int4.block() / GROUP) + g;
                        self.group_sums[group / 2 * width + column] |= (group_sum & 0xffff) << (group % 2 * 16);
                    }
                }
                self.corrections[i * width + column] = -super::int8::BIAS * sum;
                let first = i * (kind.block() / QUAD);
                for (q, codes) in codes.as_chunks::<QUAD>().0.iter().enumerate() {
                    self.codes[(first + q) * width + column] = i32::from_le_bytes(codes.map(|code| code as u8));
                }
            }
        }
    }

    /// Makes room for `width` rows with `len` values in all, zeros where no values will be; returns the columns of a row.
    pub(crate) fn reset(&mut self, kind: Kind, len: usize, width: usize) -> usize {
        let cols = len.checked_div(width).unwrap_or(0);
        let padded = cols.next_multiple_of(STEP);
        let n_blocks = padded.div_ceil(kind.block());
        self.width = width;
        if cols < padded {
            self.codes.clear();
            self.scales.clear();
            self.corrections.clear();
        }
        self.group_sums.clear();
        self.codes.resize(padded / QUAD * width, 0);
        self.scales.resize(n_blocks * width, 0.0);
        self.corrections.resize(n_blocks * width, 0);
        self.group_sums.resize(if kind == Kind::Int4 { padded / (2 * GROUP) * width } else { 0 }, 0);
        cols
    }

    /// The four codes of a quad and column.
    pub(crate) fn quad(&self, quad: usize, column: usize) -> [i32; QUAD] {
        self.codes[quad * self.width + column].to_le_bytes().map(|code| code as i8 as i32)
    }
}

/// Writes the codes of a block and returns its scale.
#[inline(always)]
fn quantize_block(x: &[f32], codes: &mut [i8]) -> f32 {
    // As bits, magnitudes are ordered like integers, and what is not finite comes last.
    let magnitude = x.iter().map(|x| (x.to_bits() & 0x7fff_ffff) as i32).fold(0, i32::max);
    let largest = f32::from_bits(magnitude as u32);
    if !largest.is_finite() {
        return f32::NAN;
    }
    if largest < LEAST {
        return 0.0;
    }
    let inverse = 127.0 / largest;
    for (code, x) in codes.iter_mut().zip(x) {
        *code = (x * inverse + ROUND).to_bits() as i8;
    }
    largest / 127.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tile(kind: Kind, x: &[f32], width: usize) -> InputTile {
        let mut tile = InputTile::default();
        tile.fill(kind, x, width);
        tile
    }

    #[test]
    fn codes_scales_and_sums_are_those_of_the_formula() {
        for kind in [Kind::Int4, Kind::Int8] {
            let (cols, width) = (301, 3);
            let x: Vec<f32> = (0..cols * width).map(|i| ((i * i * 7 + i) % 1009) as f32 / 100.0 - 5.0).collect();
            let tile = tile(kind, &x, width);
            assert_eq!(tile.codes.len(), 320 / 4 * width);
            for column in 0..width {
                for (block, x) in x[column * cols..][..cols].chunks(kind.block()).enumerate() {
                    let largest = x.iter().fold(0.0f32, |a, x| a.max(x.abs()));
                    assert_eq!(tile.scales[block * width + column], largest / 127.0);
                    let mut sum = 0;
                    for (k, x) in x.iter().enumerate() {
                        let k = block * kind.block() + k;
                        let code = tile.quad(k / 4, column)[k % 4];
                        let expected = (x * (127.0 / largest)).round_ties_even() as i32;
                        assert_eq!(code, expected, "{kind:?}, column {column}, input {k}");
                        sum += code;
                    }
                    assert_eq!(tile.corrections[block * width + column], -128 * sum);
                }
            }
            for (i, sums) in tile.group_sums.iter().enumerate() {
                let (pair, column) = (i / width, i % width);
                let sum =
                    |group: usize| -> i32 { (4 * group..4 * group + 4).flat_map(|quad| tile.quad(quad, column)).sum() };
                let expected = (sum(2 * pair), sum(2 * pair + 1));
                assert_eq!((*sums as i16 as i32, sums >> 16), expected, "two groups {pair}, column {column}");
            }
        }
    }

    #[test]
    fn blocks_of_extreme_values_have_defined_codes() {
        let scale = |x: &[f32]| tile(Kind::Int8, x, 1).scales[0];
        assert_eq!(scale(&[0.0, -0.0]), 0.0);
        assert_eq!(scale(&[1e-38, f32::from_bits(1)]), 0.0);
        assert!(scale(&[1.0, f32::NAN]).is_nan() && scale(&[f32::NEG_INFINITY, 1.0]).is_nan());
        let huge = tile(Kind::Int8, &[f32::MAX, -f32::MAX, 1.0], 1);
        assert_eq!((huge.quad(0, 0), huge.scales[0]), ([127, -127, 0, 0], f32::MAX / 127.0));
    }
}
