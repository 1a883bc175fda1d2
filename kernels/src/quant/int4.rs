//! 4-bit weights: groups of 16 inputs, 4.5 bits a weight and 32 more a row.
//!
//! value = row_scale * group_scale * (level + 4 * shift), level = [`TABLE`] at code
//!
//! with code in 0..16, group_scale in -32..32 and shift in 0..4. The 16 levels lie closer near zero, like the
//! weights. They are lopsided: the sign of the group's scale turns them around and the shift moves them, which
//! fits the extremes of a group at both ends.
//!
//! ```text
//! row:    | row_scale: f32, little-endian | group 0 | group 1 | ...    ceil(cols / 16) groups of 9 bytes
//! group:  | group_scale: 6 bits (two's complement) << 2 | shift: 2 bits |    one byte
//!         | 8 bytes: byte i holds code 2i in its low half, code 2i + 1 in its high half |
//! ```
//! Codes beyond cols are 0.

use wide::f32x8;

use super::sanitize;
use crate::cpu::matrix::check_length;
use crate::error::KernelError;

/// Inputs that share a scale and a shift.
pub const GROUP: usize = 16;
const GROUP_BYTES: usize = 1 + GROUP / 2;

/// A packed group.
pub(crate) type Group = [u8; GROUP_BYTES];
const ROW_HEADER: usize = 4;

/// The levels. Made by Lloyd's iteration over groups of 16 normal values: choose the best sign, shift and scale
/// for each group, move each level to the mean of the weights that chose it, repeat until nothing moves.
pub const TABLE: [i8; 16] = [-127, -105, -85, -67, -52, -38, -26, -14, -3, 9, 20, 32, 45, 59, 75, 109];

/// The levels as the arithmetic wants them.
pub(crate) const LEVELS: [f32; 16] = {
    let mut levels = [0.0; 16];
    let mut i = 0;
    while i < levels.len() {
        levels[i] = TABLE[i] as f32;
        i += 1;
    }
    levels
};

const SHIFTS: usize = 4;
const SHIFT_STEP: i32 = 4;

/// The code of the level nearest to `quarters / 4`. Borders between levels are multiples of one half, so odd
/// quarters are never on one.
const fn nearest(quarters: i32) -> usize {
    let mut code = 0;
    while code < 15 && quarters >= 2 * (TABLE[code] as i32 + TABLE[code + 1] as i32) {
        code += 1;
    }
    code
}

/// The search looks at values y in cells of one half, from -CELLS / 2 to CELLS / 2: it goes from -154 to 154.
const CELLS: usize = 320;

/// The nearest code for each cell.
const NEAREST: [u8; 2 * CELLS] = {
    let mut nearest_codes = [0; 2 * CELLS];
    let mut i = 0;
    while i < nearest_codes.len() {
        nearest_codes[i] = nearest(2 * (i as i32 - CELLS as i32) + 1) as u8;
        i += 1;
    }
    nearest_codes
};

/// What the search tries at once: both signs, each with all shifts.
const TRIALS: usize = 2 * SHIFTS;

/// For each cell and trial, the nearest level to the sign times y, shift included.
static TRIAL_LEVELS: [[f32; TRIALS]; 2 * CELLS] = {
    let mut levels = [[0.0; TRIALS]; 2 * CELLS];
    let mut i = 0;
    while i < 2 * CELLS {
        let quarters = 2 * (i as i32 - CELLS as i32) + 1;
        let mut trial = 0;
        while trial < TRIALS {
            let sign = if trial < SHIFTS { 1 } else { -1 };
            let offset = SHIFT_STEP * (trial % SHIFTS) as i32;
            levels[i][trial] = (TABLE[nearest(sign * quarters - 4 * offset)] as i32 + offset) as f32;
            trial += 1;
        }
        i += 1;
    }
    levels
};

fn row_bytes(cols: usize) -> Option<usize> {
    cols.div_ceil(GROUP).checked_mul(GROUP_BYTES)?.checked_add(ROW_HEADER)
}

/// The bytes of a packed matrix; None if they overflow.
pub fn packed_bytes(rows: usize, cols: usize) -> Option<usize> {
    rows.checked_mul(row_bytes(cols)?)
}

/// Packs whole rows of `cols` weights into `packed`, which has [`packed_bytes`] for them.
pub fn quantize_rows(source: &[f32], cols: usize, packed: &mut [u8]) {
    assert!(cols > 0 && source.len().is_multiple_of(cols), "{} weights in rows of {cols}", source.len());
    let rows = source.len() / cols;
    assert_eq!(Some(packed.len()), packed_bytes(rows, cols), "bytes of {rows} packed rows of {cols}");
    let mut scales = vec![0.0; cols.div_ceil(GROUP)];
    if let Some(row_bytes) = packed.len().checked_div(rows) {
        for (weights, packed) in source.chunks_exact(cols).zip(packed.chunks_exact_mut(row_bytes)) {
            quantize_row(weights, &mut scales, packed);
        }
    }
}

fn quantize_row(weights: &[f32], scales: &mut [f32], packed: &mut [u8]) {
    let mut values = [0.0; GROUP];
    for (scale, weights) in scales.iter_mut().zip(weights.chunks(GROUP)) {
        *scale = search_scale(load(weights, &mut values));
    }
    // The largest magnitude becomes 31 or -31, so that neither sign is clipped.
    let largest = scales.iter().fold(0.0f32, |a, s| a.max(s.abs()));
    let row_scale = largest / 31.0;
    let (header, groups) = packed.split_at_mut(ROW_HEADER);
    header.copy_from_slice(&row_scale.to_le_bytes());
    for ((scale, weights), packed) in scales.iter().zip(weights.chunks(GROUP)).zip(groups.as_chunks_mut().0) {
        pack_group(load(weights, &mut values), *scale, row_scale, packed);
    }
}

/// The weights of a group, without what cannot be searched.
fn load<'a>(weights: &[f32], values: &'a mut [f32; GROUP]) -> &'a [f32] {
    values.iter_mut().zip(weights).for_each(|(value, weight)| *value = sanitize(*weight));
    &values[..weights.len()]
}

/// The cell of y. What lies outside has the nearest level of the last cell; `as` cuts, and takes NaN to 0.
#[inline(always)]
fn cell(y: f32) -> usize {
    ((2.0 * y + CELLS as f32) as i32).clamp(0, 2 * CELLS as i32 - 1) as usize
}

/// For each trial, with q the levels nearest to sign * y where y = weights * inverse: the sums of weight * q and
/// of q^2. The error of a scale s is then |w|^2 - 2 s (w q) + s^2 q^2.
fn trial_sums(weights: &[f32], inverse: f32) -> [f32x8; 2] {
    let (mut cross, mut square) = (f32x8::ZERO, f32x8::ZERO);
    for weight in weights {
        let levels = f32x8::from(TRIAL_LEVELS[cell(weight * inverse)]);
        cross += f32x8::splat(*weight) * levels;
        square += levels * levels;
    }
    [cross, square]
}

/// The least-squares scale of a group: over both signs, the four shifts and fifteen first guesses of the scale,
/// codes are the nearest levels and the scale is then fitted to them; the one with the least error wins.
fn search_scale(weights: &[f32]) -> f32 {
    let largest = weights.iter().fold(0.0f32, |a, w| a.max(w.abs()));
    if largest == 0.0 {
        return 0.0;
    }
    let mut unit = [0.0; GROUP]; // In units of the largest, so that tiny and huge weights stay in range.
    unit.iter_mut().zip(weights).for_each(|(unit, weight)| *unit = weight / largest);
    let (mut most_removed, mut scale) = (0.0f32, 0.0f32);
    for guess in 0..15 {
        // The largest weight lands between 70 and 154; the levels reach from 127 down and 121 up.
        let [cross, square] = trial_sums(&unit[..weights.len()], (70 + 6 * guess) as f32);
        // At the best s = w q / q^2 the error is |w|^2 - (w q)^2 / q^2.
        let removed = (cross * cross / square).to_array();
        for (removed, trial) in removed.into_iter().zip(0..) {
            if removed > most_removed {
                most_removed = removed;
                scale = cross.to_array()[trial] / square.to_array()[trial];
            }
        }
    }
    scale * largest
}

/// Chooses the integer scale, shift and codes of a group for a fixed row scale: of the integers next to the
/// fitted scale and of all shifts, those with the least error.
fn pack_group(weights: &[f32], scale: f32, row_scale: f32, packed: &mut [u8; GROUP_BYTES]) {
    packed.fill(0);
    if row_scale == 0.0 {
        return;
    }
    let mut targets = [0.0; GROUP]; // In units of the row's scale.
    targets.iter_mut().zip(weights).for_each(|(target, weight)| *target = weight / row_scale);
    let targets = &targets[..weights.len()];
    let middle = (scale / row_scale).round() as i32;
    let (mut least, mut factor, mut shift) = (0.0, 0, 0); // A factor of 0 leaves an error of |w|^2.
    for candidate in (middle - 1..=middle + 1).filter(|f| *f != 0 && (-32..32).contains(f)) {
        let [cross, square] = trial_sums(targets, 1.0 / candidate.abs() as f32).map(f32x8::to_array);
        let (s, first) = (candidate as f32, if candidate > 0 { 0 } else { SHIFTS });
        for trial in 0..SHIFTS {
            let error = s * (s * square[first + trial] - 2.0 * cross[first + trial]);
            if error < least {
                (least, factor, shift) = (error, candidate, trial);
            }
        }
    }
    if factor == 0 {
        return;
    }
    let (head, codes) = packed.split_at_mut(1);
    head[0] = (factor << 2) as u8 | shift as u8;
    let offset = (SHIFT_STEP * shift as i32) as f32;
    for (i, target) in targets.iter().enumerate() {
        let code = NEAREST[cell(target / factor as f32 - offset)];
        codes[i / 2] |= code << (4 * (i % 2));
    }
}

/// A borrowed packed matrix.
#[derive(Clone, Copy, Debug)]
pub struct Int4Ref<'a> {
    bytes: &'a [u8],
    rows: usize,
    cols: usize,
}

impl<'a> Int4Ref<'a> {
    /// A matrix over packed bytes: [`KernelError::Length`] or [`KernelError::TooLarge`] if they do not fit the shape.
    pub fn new(bytes: &'a [u8], rows: usize, cols: usize) -> Result<Self, KernelError> {
        check_length("int4", rows, cols, packed_bytes(rows, cols), bytes.len())?;
        Ok(Int4Ref { bytes, rows, cols })
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
        let (row_scale, groups) = self.groups(row, start, out.len());
        dequantize_groups(row_scale, groups, out);
    }

    /// The scale of a row, and the groups of its `len` values from `start`, a multiple of [`GROUP`], on.
    pub(crate) fn groups(&self, row: usize, start: usize, len: usize) -> (f32, &'a [Group]) {
        assert!(row < self.rows, "row {row} of a matrix of {} rows", self.rows);
        assert!(start.is_multiple_of(GROUP), "column {start} is inside a group of {GROUP}");
        assert!(start + len <= self.cols, "columns {start}..{} of {}", start + len, self.cols);
        let row_bytes = self.bytes.len() / self.rows;
        let (header, groups) = self.bytes[row * row_bytes..][..row_bytes].split_at(ROW_HEADER);
        let row_scale = header.try_into().map_or(0.0, f32::from_le_bytes);
        (row_scale, &groups.as_chunks().0[start / GROUP..][..len.div_ceil(GROUP)])
    }
}

/// Writes the values of groups of a row; the last may be cut short.
pub(crate) fn dequantize_groups(row_scale: f32, groups: &[Group], out: &mut [f32]) {
    for (out, group) in out.chunks_mut(GROUP).zip(groups) {
        let (scale, offset) = scale_and_offset(row_scale, group);
        // All lookups before all arithmetic, so that the arithmetic is done in vectors.
        let mut levels = [0.0; GROUP];
        for (levels, byte) in levels.as_chunks_mut::<2>().0.iter_mut().zip(&group[1..]) {
            *levels = [LEVELS[(byte & 15) as usize], LEVELS[(byte >> 4) as usize]];
        }
        out.iter_mut().zip(levels).for_each(|(out, level)| *out = scale * (level + offset));
    }
}

/// A group's two numbers: value = scale * (level + offset).
pub(crate) fn scale_and_offset(row_scale: f32, group: &Group) -> (f32, f32) {
    let head = group[0];
    (row_scale * (head as i8 >> 2) as f32, (SHIFT_STEP * (head & 3) as i32) as f32)
}
