//! Exponential, hyperbolic tangent and error function in `f32`, without branches and without tables.
//!
//! Written as plain arithmetic so that a loop over a slice is compiled to vector code in every tier.
//! The coefficients are our own Chebyshev fits in double precision; the tests compare with 64-bit references.

/// The polynomial with these coefficients, lowest power first (Horner's rule).
#[inline(always)]
fn polynomial<const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    coefficients.iter().rev().fold(0.0, |sum, c| sum * x + c)
}

/// e^x to 2 units in the last place; infinity above 88.73, subnormal below -87.34 and 0 below -104. NaN stays.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2 (ln 2 in two parts, after Cody and Waite); e^x = 2^n e^r.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    const LN2_HIGH: f32 = 355.0 / 512.0; // nine bits: n * LN2_HIGH is exact for every n here
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Written so that NaN passes: a comparison with NaN is false.
    let clamped = if x > 89.0 { 89.0 } else { x };
    let clamped = if clamped < -105.0 { -105.0 } else { clamped };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * LN2_HIGH) - n * LN2_LOW;
    const TAIL: [f32; 6] = [0.5, 0.166_666_67, 4.166_646_7e-2, 8.333_298e-3, 1.393_365e-3, 1.989_928_6e-4];
    let power = 1.0 + (r + r * r * polynomial(r, TAIL));
    // 2^n as a product of two factors, so that results beyond the normal range come out right.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    let factor = |e: i32| f32::from_bits((e.wrapping_add(127) as u32) << 23);
    power * factor(half) * factor(n.wrapping_sub(half))
}

/// tanh x to 3 units in the last place: x + x^3 P(x^2) near zero, 1 - 2 / (e^2|x| + 1) beyond.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    const NEAR: [f32; 6] = [-0.333_333_34, 0.133_333, -5.395_862_5e-2, 2.176_363_4e-2, -8.326_403e-3, 2.272_705e-3];
    let square = x * x;
    let near = x + x * square * polynomial(square, NEAR);
    let far = (1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0)).copysign(x);
    if square < 0.4 { near } else { far }
}

/// The error function to 3e-7 relative: x P(x^2) up to 1, 1 - e^(-x^2) Q(1 / (1 + |x|)) up to 4, then 1.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    const NEAR: [f32; 8] = [
        std::f32::consts::FRAC_2_SQRT_PI,
        -0.376_126_38,
        0.112_837_83,
        -2.686_543_8e-2,
        5.221_053_5e-3,
        -8.484_396_4e-4,
        1.126_825_4e-4,
        -9.673_59e-6,
    ];
    const FAR: [f32; 9] = [
        2.432_613_3e-5,
        0.563_341,
        0.577_184_7,
        0.167_661_92,
        0.352_333_13,
        -2.961_364_5,
        4.745_993_6,
        -3.453_052,
        1.018_233_2,
    ];
    let square = x * x;
    let near = x * polynomial(square, NEAR);
    let magnitude = if x.abs() > 4.0 { 4.0 } else { x.abs() };
    let tail = exp(-magnitude * magnitude) * polynomial(1.0 / (1.0 + magnitude), FAR);
    let far = (1.0 - tail).copysign(x);
    let value = if square < 1.0 { near } else { far };
    if x.is_nan() { x } else { value }
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// erf in double precision by its Taylor series (Abramowitz and Stegun 7.1.5), for |x| <= 4.
    fn erf_reference(x: f64) -> f64 {
        let (mut term, mut sum, mut n) = (x, x, 0.0);
        while term.abs() > 1e-18 {
            n += 1.0;
            term *= -x * x / n;
            sum += term / (2.0 * n + 1.0);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    }

    fn worst(range: std::ops::Range<f32>, f: fn(f32) -> f32, exact: fn(f64) -> f64) -> (f64, f32) {
        let steps = 200_000;
        let width = (range.end - range.start) / steps as f32;
        let xs = (0..steps).map(|i| range.start + width * i as f32).filter(|x| *x != 0.0);
        let relative = |x: f32| ((f(x) as f64) / exact(x as f64) - 1.0).abs();
        xs.map(|x| (relative(x), x)).fold((0.0, 0.0), |a, b| if b.0 > a.0 { b } else { a })
    }

    #[test]
    fn functions_are_exact_to_float_rounding() {
        type Case = (&'static str, std::ops::Range<f32>, fn(f32) -> f32, fn(f64) -> f64, f64);
        let cases: [Case; 6] = [
            ("exp", -87.0..88.6, exp, f64::exp, 2.5e-7),
            ("exp near 0", -0.5..0.5, exp, f64::exp, 1.5e-7),
            ("tanh", -12.0..12.0, tanh, f64::tanh, 3e-7),
            ("tanh near 0", -1e-3..1e-3, tanh, f64::tanh, 3e-7),
            ("erf", -4.0..4.0, erf, erf_reference, 3e-7),
            ("sigmoid", -80.0..80.0, sigmoid, |x| 1.0 / (1.0 + (-x).exp()), 4e-7),
        ];
        for (name, range, f, exact, bound) in cases {
            let (error, at) = worst(range, f, exact);
            assert!(error < bound, "{name} at {at}: relative error {error:e}, allowed {bound:e}");
        }
    }

    #[test]
    fn the_ends_of_the_range_are_right() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1000.0), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert!(exp(88.7).is_finite() && exp(-100.0) > 0.0);
        for (name, f) in [("tanh", tanh as fn(f32) -> f32), ("erf", erf)] {
            assert_eq!([f(-1e30), f(0.0), f(f32::INFINITY)], [-1.0, 0.0, 1.0], "{name}");
        }
        for (name, f) in [("exp", exp as fn(f32) -> f32), ("tanh", tanh), ("erf", erf), ("sigmoid", sigmoid)] {
            assert!(f(f32::NAN).is_nan(), "{name} must keep NaN");
        }
    }
}
