//! 4-bit weights: groups of 16 inputs, 4.5 bits a weight and 32 more a row.
//!
//! value = row_scale * group_scale * (level + 4 * shift), level = [`TABLE`] at code
//!
//! with code in 0..16, group_scale in -32..32 and shift in 0..4. The 16 levels lie closer near zero, like the
//! weights. They are lopsided: the sign of the group's scale turns them around and the shift moves them, which
//! fits the extremes of a group at both ends.
//!
//! ```text
//! matrix: | panel of rows 0..16 | panel of rows 16..32 | ...
//! panel:  | 16 row scales: f32, little-endian | step 0 | step 1 | ...    ceil(cols / 64) steps of 576 bytes
//! step:   | 8 pairs of quads, 64 bytes each | heads of 4 groups: [group][row] |
//! pair v: byte 4 r + i = code of input 8 v + i of row r | code of input 8 v + 4 + i << 4
//! head:   | group_scale: 6 bits (two's complement) << 2 | shift: 2 bits |    one byte
//! ```

use super::int4_search::{Group, TrialSums, search_row, trial_sums};
use super::{Lanes, PANEL_ROWS, QUAD, STEP, panels};
use crate::cpu::matrix::check_length;
use crate::error::KernelError;

/// Inputs that share a scale and a shift.
pub const GROUP: usize = 16;
const HEADER_BYTES: usize = 4 * PANEL_ROWS;
const CODE_BYTES: usize = PANEL_ROWS * STEP / 2;
const STEP_BYTES: usize = CODE_BYTES + PANEL_ROWS * STEP / GROUP;

/// The levels. Made by Lloyd's iteration over groups of 16 normal values: choose the best sign, shift and scale
/// for each group, move each level to the mean of the weights that chose it, repeat until nothing moves.
pub const TABLE: [i8; 16] = [-127, -105, -85, -67, -52, -38, -26, -14, -3, 9, 20, 32, 45, 59, 75, 109];

pub(super) const SHIFT_STEP: i32 = 4;

/// A packed step of a panel.
pub(crate) type Step = [u8; STEP_BYTES];

/// A group of a step: its two pairs of quads, and the heads of its rows.
#[inline(always)]
pub(crate) fn group(step: &Step, index: usize) -> (&[[u8; 64]; 2], &[u8; PANEL_ROWS]) {
    let (codes, heads) = step.split_at(CODE_BYTES);
    (&codes.as_chunks::<64>().0.as_chunks().0[index], &heads.as_chunks().0[index])
}

/// The pairs of quads of a step, two for each group, and the heads of all its groups.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn parts(step: &Step) -> (&[[u8; 64]; 2 * STEP / GROUP], &[u8; PANEL_ROWS * STEP / GROUP]) {
    let (codes, heads) = step.split_at(CODE_BYTES);
    (&codes.as_chunks().0.as_chunks().0[0], &heads.as_chunks().0[0])
}

/// The groups of a step.
pub(crate) fn groups(step: &Step) -> [(&[[u8; 64]; 2], &[u8; PANEL_ROWS]); STEP / GROUP] {
    std::array::from_fn(|index| group(step, index))
}

/// The level of input `k` of a group in a row.
pub(crate) fn level(pairs: &[[u8; 64]; 2], row: usize, k: usize) -> i32 {
    let byte = pairs[k / (2 * QUAD)][QUAD * row + k % QUAD];
    TABLE[(byte >> (k / QUAD % 2 * 4) & 15) as usize] as i32
}

/// A group's scale in units of its row's.
pub(crate) fn group_scale(head: u8) -> i32 {
    (head as i8 >> 2) as i32
}

/// What a group's shift adds to the levels.
pub(crate) fn offset(head: u8) -> i32 {
    SHIFT_STEP * (head & 3) as i32
}

fn panel_bytes(cols: usize) -> Option<usize> {
    cols.div_ceil(STEP).checked_mul(STEP_BYTES)?.checked_add(HEADER_BYTES)
}

/// The bytes of a packed matrix; None if they overflow.
pub fn packed_bytes(rows: usize, cols: usize) -> Option<usize> {
    rows.div_ceil(PANEL_ROWS).checked_mul(panel_bytes(cols)?)
}

/// Packs whole rows of `cols` weights into `packed`, which has [`packed_bytes`] for them. A run of rows that is
/// packed by itself starts at a multiple of [`PANEL_ROWS`]. Inlined, so that each tier gets vector code of its own: callers
/// that have an [`Isa`](crate::Isa) want [`Isa::quantize_int4`](crate::Isa::quantize_int4).
#[inline(always)]
pub fn quantize_rows(source: &[f32], cols: usize, packed: &mut [u8]) {
    quantize_rows_with(source, cols, packed, trial_sums);
}

#[inline(always)]
pub(crate) fn quantize_rows_with(source: &[f32], cols: usize, packed: &mut [u8], trial_sums: impl TrialSums) {
    let rows = source.len() / cols.max(1);
    assert_eq!(Some(packed.len()), packed_bytes(rows, cols), "bytes of {rows} packed rows of {cols}");
    let panel_bytes = packed.len() / rows.div_ceil(PANEL_ROWS).max(1);
    let mut groups = vec![Group::default(); cols.div_ceil(GROUP)];
    let mut scales = vec![0.0; groups.len()];
    for (rows, packed) in panels(source, cols).zip(packed.chunks_exact_mut(panel_bytes.max(1))) {
        packed.fill(0);
        let (header, steps) = packed.split_at_mut(HEADER_BYTES);
        let (steps, _) = steps.as_chunks_mut::<STEP_BYTES>();
        for (r, row) in rows.chunks_exact(cols).enumerate() {
            let row_scale = search_row(row, &trial_sums, &mut scales, &mut groups);
            header[4 * r..][..4].copy_from_slice(&row_scale.to_le_bytes());
            for (groups, step) in groups.chunks(STEP / GROUP).zip(steps.iter_mut()) {
                for (g, group) in groups.iter().enumerate() {
                    step[CODE_BYTES + PANEL_ROWS * g + r] = group.head;
                    let pairs = step.as_chunks_mut::<64>().0[2 * g..].iter_mut();
                    for (pair, [low, high]) in pairs.zip(group.codes.as_chunks::<QUAD>().0.as_chunks::<2>().0) {
                        let codes = std::array::from_fn::<u8, QUAD, _>(|i| low[i] | high[i] << 4);
                        pair[QUAD * r..][..QUAD].copy_from_slice(&codes);
                    }
                }
            }
        }
    }
}

/// Sixteen rows of a matrix.
#[derive(Clone, Copy)]
pub(crate) struct Panel<'a> {
    pub row_scales: Lanes,
    pub steps: &'a [Step],
}

/// A borrowed packed matrix.
#[derive(Clone, Copy, Debug)]
pub struct Int4Ref<'a> {
    bytes: &'a [u8],
    panel_bytes: usize,
    rows: usize,
    cols: usize,
}

impl<'a> Int4Ref<'a> {
    /// A matrix over packed bytes: [`KernelError::Length`] or [`KernelError::TooLarge`] if they do not fit the shape.
    pub fn new(bytes: &'a [u8], rows: usize, cols: usize) -> Result<Self, KernelError> {
        check_length("int4", rows, cols, packed_bytes(rows, cols), bytes.len())?;
        let panel_bytes = bytes.len() / rows.div_ceil(PANEL_ROWS).max(1);
        Ok(Int4Ref { bytes, panel_bytes, rows, cols })
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Rows `16 index` and following.
    #[inline]
    pub(crate) fn panel(&self, index: usize) -> Panel<'a> {
        assert!(index < self.rows.div_ceil(PANEL_ROWS), "panel {index} of a matrix of {} rows", self.rows);
        let panel = &self.bytes[index * self.panel_bytes..][..self.panel_bytes];
        let (header, steps) = panel.split_at(HEADER_BYTES);
        let header = header.as_chunks().0;
        let row_scales = Lanes(std::array::from_fn(|row| f32::from_le_bytes(header[row])));
        Panel { row_scales, steps: steps.as_chunks().0 }
    }

    /// Writes the values of a row to `out`, which has `cols` values.
    pub fn dequantize(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row {row} of a matrix of {} rows", self.rows);
        assert_eq!(out.len(), self.cols, "length of the output of a row");
        let lane = row % PANEL_ROWS;
        let panel = self.panel(row / PANEL_ROWS);
        for (out, (pairs, heads)) in out.chunks_mut(GROUP).zip(panel.steps.iter().flat_map(groups)) {
            let scale = panel.row_scales[lane] * group_scale(heads[lane]) as f32;
            let offset = offset(heads[lane]);
            out.iter_mut().enumerate().for_each(|(k, out)| *out = scale * (level(pairs, lane, k) + offset) as f32);
        }
    }
}

/// Writes the values of a panel's first inputs, `out[k][row]`.
pub(crate) fn unpack(row_scales: &Lanes, steps: &[Step], out: &mut [Lanes]) {
    for (out, (pairs, heads)) in out.chunks_mut(GROUP).zip(steps.iter().flat_map(groups)) {
        let scales = Lanes(std::array::from_fn(|row| row_scales[row] * group_scale(heads[row]) as f32));
        for (k, out) in out.iter_mut().enumerate() {
            for (row, out) in out.iter_mut().enumerate() {
                *out = scales[row] * (level(pairs, row, k) + offset(heads[row])) as f32;
            }
        }
    }
}
