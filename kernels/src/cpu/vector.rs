//! Sums and multiples of rows.

use super::Isa;
use super::isa::elementwise::Loop;

struct Add<'a> {
    x: &'a mut [f32],
    other: &'a [f32],
}

impl Loop for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.x.iter_mut().zip(self.other).for_each(|(x, other)| *x += other);
    }
}

/// x += other. The slices have one length.
pub fn add(isa: Isa, x: &mut [f32], other: &[f32]) {
    assert_eq!(x.len(), other.len(), "lengths of the terms of a sum");
    isa.compute(Add { x, other });
}

struct AddScaled<'a> {
    x: &'a mut [f32],
    factor: f32,
    other: &'a [f32],
}

impl Loop for AddScaled<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.x.iter_mut().zip(self.other).for_each(|(x, other)| *x += self.factor * other);
    }
}

/// x += factor * other. The slices have one length.
pub fn add_scaled(isa: Isa, x: &mut [f32], factor: f32, other: &[f32]) {
    assert_eq!(x.len(), other.len(), "lengths of the terms of a sum");
    isa.compute(AddScaled { x, factor, other });
}

struct Scale<'a> {
    x: &'a mut [f32],
    factor: f32,
}

impl Loop for Scale<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.x.iter_mut().for_each(|x| *x *= self.factor);
    }
}

/// x *= factor.
pub fn scale(isa: Isa, x: &mut [f32], factor: f32) {
    isa.compute(Scale { x, factor });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_multiples_are_those_of_their_formulas_in_every_tier() {
        for isa in Isa::available() {
            for n in [0, 1, 7, 16, 101] {
                let other: Vec<f32> = (0..n).map(|i| i as f32 - 3.0).collect();
                let mut x: Vec<f32> = (0..n).map(|i| 2.0 * i as f32).collect();
                add(isa, &mut x, &other);
                add_scaled(isa, &mut x, 0.5, &other);
                scale(isa, &mut x, 2.0);
                for (i, x) in x.iter().enumerate() {
                    let i = i as f32;
                    assert_eq!(*x, 2.0 * (2.0 * i + 1.5 * (i - 3.0)), "value {i} of {n} with {}", isa.name());
                }
            }
        }
    }
}
