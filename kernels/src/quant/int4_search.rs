//! The search for the codes of 4-bit weights: scale, sign and shift of each group, then the scale of the row, then
//! the codes again for the scales as they were rounded.

use wide::f32x8;

use super::int4::{GROUP, SHIFT_STEP, TABLE};
use super::sanitize;

/// A group as it is stored: its head and a code for each weight.
#[derive(Clone, Copy, Default)]
pub(super) struct Group {
    pub head: u8,
    pub codes: [u8; GROUP],
}

const SHIFTS: usize = 4;

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

/// Chooses the groups of a row of weights and returns the row's scale.
pub(super) fn search_row(weights: &[f32], groups: &mut [Group]) -> f32 {
    let mut values = [0.0; GROUP];
    let scales: Vec<f32> = weights.chunks(GROUP).map(|weights| search_scale(load(weights, &mut values))).collect();
    // The largest magnitude becomes 31 or -31, so that neither sign is clipped.
    let largest = scales.iter().fold(0.0f32, |a, s| a.max(s.abs()));
    let row_scale = largest / 31.0;
    for ((scale, weights), group) in scales.iter().zip(weights.chunks(GROUP)).zip(groups) {
        *group = choose_group(load(weights, &mut values), *scale, row_scale);
    }
    row_scale
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
fn choose_group(weights: &[f32], scale: f32, row_scale: f32) -> Group {
    let mut group = Group::default();
    if row_scale == 0.0 {
        return group;
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
        return group;
    }
    group.head = (factor << 2) as u8 | shift as u8;
    let offset = (SHIFT_STEP * shift as i32) as f32;
    for (code, target) in group.codes.iter_mut().zip(targets) {
        *code = NEAREST[cell(target / factor as f32 - offset)];
    }
    group
}
