//! The search for the codes of 4-bit weights: scale, sign and shift of each group, then the scale of the row, then
//! the codes again for the scales as they were rounded.
//!
//! Sums go from the first weight of a group to the last, each product rounded before it is added, so that they are the
//! same with any instructions. Everything is inlined into each tier, which makes vector code of its own of it: of the
//! eight trials, and of the sixteen weights of a group where these are independent.

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
pub(crate) const CELLS: usize = 320;

/// The number of the last cell.
pub(crate) const LAST_CELL: f32 = (2 * CELLS - 1) as f32;

/// The nearest code for each cell.
static NEAREST: [u8; 2 * CELLS] = {
    let mut nearest_codes = [0; 2 * CELLS];
    let mut i = 0;
    while i < 2 * CELLS {
        nearest_codes[i] = nearest(2 * (i as i32 - CELLS as i32) + 1) as u8;
        i += 1;
    }
    nearest_codes
};

/// What the search tries at once: both signs, each with all shifts.
pub(crate) const TRIALS: usize = 2 * SHIFTS;

/// A value for each trial.
pub(crate) type Trials = [f32; TRIALS];

/// [`trial_sums`], or what a tier has that equals it.
pub(crate) trait TrialSums: Fn(&[f32; GROUP], &[f32], [&mut [Trials]; 2]) {}
impl<F: Fn(&[f32; GROUP], &[f32], [&mut [Trials]; 2])> TrialSums for F {}

/// For each cell and trial, the nearest level to the sign times y, shift included.
pub(crate) static TRIAL_LEVELS: [Trials; 2 * CELLS] = {
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

/// The place of a cell's row in [`TRIAL_LEVELS`], in values.
#[derive(Clone, Copy)]
struct Cell(i32);

impl Cell {
    /// The cell of y. What lies outside has the nearest level of the last cell.
    #[inline(always)]
    fn of(y: f32) -> Cell {
        let cell = 2.0 * y + CELLS as f32;
        let cell = if cell > 0.0 { cell } else { 0.0 };
        let cell = if cell < LAST_CELL { cell } else { LAST_CELL };
        // SAFETY: a number from 0 to LAST_CELL; the comparisons have taken NaN to 0.
        Cell(TRIALS as i32 * unsafe { cell.to_int_unchecked::<i32>() })
    }

    #[inline(always)]
    fn nearest(self) -> u8 {
        // SAFETY: `of` makes no other numbers than those of rows, and there is a code for each.
        unsafe { *NEAREST.get_unchecked(self.0 as usize / TRIALS) }
    }

    #[inline(always)]
    fn trial_levels(self) -> &'static Trials {
        // SAFETY: `of` makes no other numbers than those of rows.
        unsafe { &*TRIAL_LEVELS.as_ptr().cast::<f32>().add(self.0 as usize).cast::<Trials>() }
    }
}

/// Chooses the groups of a row of weights and returns the row's scale. `scales` is room for one value a group.
#[inline(always)]
pub(super) fn search_row(
    weights: &[f32],
    trial_sums: &impl TrialSums,
    scales: &mut [f32],
    groups: &mut [Group],
) -> f32 {
    for (scale, weights) in scales.iter_mut().zip(weights.chunks(GROUP)) {
        *scale = search_scale(&load(weights), weights.len(), trial_sums);
    }
    // The largest magnitude becomes 31 or -31, so that neither sign is clipped.
    let largest = scales.iter().fold(0.0f32, |a, s| a.max(s.abs()));
    let row_scale = largest / 31.0;
    for ((scale, weights), group) in scales.iter().zip(weights.chunks(GROUP)).zip(groups) {
        *group = choose_group(&load(weights), weights.len(), *scale, row_scale, trial_sums);
    }
    row_scale
}

/// The weights of a group, without what cannot be searched. Behind the last one are zeros.
#[inline(always)]
fn load(weights: &[f32]) -> [f32; GROUP] {
    let mut values = [0.0; GROUP];
    match weights.first_chunk() {
        Some(weights) => values = *weights,
        None => values[..weights.len()].copy_from_slice(weights),
    }
    for value in &mut values {
        *value = sanitize(*value);
    }
    values
}

/// For each of some inverses and each trial, with q the levels nearest to sign * y where y = weights * inverse: the sums
/// of weight * q, and of q^2. The error of a scale s is then |w|^2 - 2 s (w q) + s^2 q^2.
#[inline(always)]
pub(crate) fn trial_sums(weights: &[f32; GROUP], inverses: &[f32], [cross, square]: [&mut [Trials]; 2]) {
    for (inverse, (cross, square)) in inverses.iter().zip(cross.iter_mut().zip(square)) {
        let mut cells = [Cell::of(0.0); GROUP];
        for (cell, weight) in cells.iter_mut().zip(weights) {
            *cell = Cell::of(weight * inverse);
        }
        let (mut crosses, mut squares) = ([0.0; TRIALS], [0.0; TRIALS]);
        for (weight, cell) in weights.iter().zip(cells) {
            for ((cross, square), q) in crosses.iter_mut().zip(&mut squares).zip(cell.trial_levels()) {
                *cross += weight * q;
                *square += q * q;
            }
        }
        (*cross, *square) = (crosses, squares);
    }
}

/// Takes back what the zeros behind the last of n weights have added to sums of q^2, which are integers and exact.
#[inline(always)]
fn without_absent(squares: &mut [Trials], n: usize) {
    if n < GROUP {
        let absent = (GROUP - n) as f32;
        for squares in squares {
            squares.iter_mut().zip(Cell::of(0.0).trial_levels()).for_each(|(square, q)| *square -= absent * (q * q));
        }
    }
}

/// The integers that are tried as a group's scale.
pub(crate) const CANDIDATES: usize = 3;

/// First guesses of a group's scale.
pub(crate) const GUESSES: usize = 15;

/// What a guess multiplies a group's weights with, in units of the largest: it lands between 70 and 154, and the levels
/// reach from 127 down and 121 up.
const INVERSES: [f32; GUESSES] = {
    let mut inverses = [0.0; GUESSES];
    let mut guess = 0;
    while guess < GUESSES {
        inverses[guess] = (70 + 6 * guess) as f32;
        guess += 1;
    }
    inverses
};

/// The least-squares scale of n weights: over both signs, the four shifts and all guesses, codes are the nearest levels
/// and the scale is then fitted to them; the one with the least error wins, of equals the first.
#[inline(always)]
fn search_scale(weights: &[f32; GROUP], n: usize, trial_sums: &impl TrialSums) -> f32 {
    // As bits, magnitudes are ordered like integers.
    let largest = weights.iter().map(|weight| weight.abs().to_bits() as i32).fold(0, i32::max);
    let largest = f32::from_bits(largest as u32);
    if largest == 0.0 {
        return 0.0;
    }
    // In units of the largest, so that tiny and huge weights stay in range.
    let mut unit = *weights;
    for weight in &mut unit {
        *weight /= largest;
    }
    let (mut crosses, mut squares) = ([[0.0; TRIALS]; GUESSES], [[0.0; TRIALS]; GUESSES]);
    trial_sums(&unit, &INVERSES, [&mut crosses, &mut squares]);
    without_absent(&mut squares, n);
    let (crosses, squares) = (crosses.as_flattened(), squares.as_flattened());
    // At the best s = w q / q^2 the error is |w|^2 - (w q)^2 / q^2. What is taken away is positive.
    let mut removed = [0; GUESSES * TRIALS];
    for (i, removed) in removed.iter_mut().enumerate() {
        *removed = (crosses[i] * crosses[i] / squares[i]).to_bits() as i32;
    }
    let most = removed.iter().copied().fold(0, i32::max);
    // The least number, rather than the first that is found: this is done to several at once.
    let mut best = i32::MAX;
    for (i, removed) in removed.iter().enumerate() {
        best = best.min(if *removed == most { i as i32 } else { i32::MAX });
    }
    let best = best as usize;
    if most == 0 { 0.0 } else { crosses[best] / squares[best] * largest }
}

/// Chooses the integer scale, shift and codes of a group of n weights for a fixed row scale: of the integers next to the
/// fitted scale and of all shifts, those with the least error, of equals the first.
#[inline(always)]
fn choose_group(weights: &[f32; GROUP], n: usize, scale: f32, row_scale: f32, trial_sums: &impl TrialSums) -> Group {
    if row_scale == 0.0 {
        return Group::default();
    }
    // In units of the row's scale.
    let mut targets = *weights;
    for target in &mut targets {
        *target /= row_scale;
    }
    let first = (scale / row_scale).round() as i32 - 1;
    let factors: [i32; CANDIDATES] = std::array::from_fn(|i| first + i as i32);
    let inverses = factors.map(|factor| 1.0 / factor.abs() as f32);
    let (mut cross, mut square) = ([[0.0; TRIALS]; CANDIDATES], [[0.0; TRIALS]; CANDIDATES]);
    trial_sums(&targets, &inverses, [&mut cross, &mut square]);
    without_absent(&mut square, n);
    let mut best = (0.0, 0, 0); // A factor of 0 leaves an error of |w|^2.
    for (i, factor) in factors.into_iter().enumerate() {
        let s = factor as f32;
        let sign = if factor > 0 { 0 } else { SHIFTS };
        let valid = factor != 0 && (-32..32).contains(&factor);
        let (cross, square) = (&cross[i][sign..][..SHIFTS], &square[i][sign..][..SHIFTS]);
        for (shift, (cross, square)) in cross.iter().zip(square).enumerate() {
            let error = s * (s * square - 2.0 * cross);
            best = if valid && error < best.0 { (error, factor, shift) } else { best };
        }
    }
    let (_, factor, shift) = best;
    if factor == 0 {
        return Group::default();
    }
    let offset = (SHIFT_STEP * shift as i32) as f32;
    let mut codes = [0; GROUP];
    for (code, target) in codes.iter_mut().zip(targets) {
        *code = Cell::of(target / factor as f32 - offset).nearest();
    }
    codes[n..].fill(0);
    Group { head: (factor << 2) as u8 | shift as u8, codes }
}
