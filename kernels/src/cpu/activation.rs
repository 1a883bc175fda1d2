//! The non-linear functions between two matrix products, over slices.

use super::Isa;
use super::isa::elementwise::Loop;
use super::math::{erf, exp, sigmoid, tanh};
use crate::quant::Lanes;

/// An activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x sigmoid(x), also called swish (Ramachandran et al., arXiv:1710.05941).
    Silu,
    /// x/2 (1 + erf(x / sqrt 2)) (Hendrycks and Gimpel, arXiv:1606.08415).
    Gelu,
    /// x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), GELU's approximation from the same paper.
    GeluTanh,
    /// x sigmoid(1.702 x), the coarser approximation from the same paper.
    QuickGelu,
    /// max(x, 0).
    Relu,
    /// max(x, 0)^2 (So et al., arXiv:2109.08668).
    Relu2,
    /// tanh x.
    Tanh,
    /// 1 / (1 + e^-x).
    Sigmoid,
}

#[inline(always)]
fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

#[inline(always)]
fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    0.5 * x * (1.0 + tanh(SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x)))
}

#[inline(always)]
fn quick_gelu(x: f32) -> f32 {
    x / (1.0 + exp(-1.702 * x))
}

/// max(x, 0) that keeps NaN, which `f32::max` would hide.
#[inline(always)]
fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

/// What a function is applied to.
enum Values<'a> {
    InPlace(&'a mut [f32]),
    Gated {
        gate: &'a [f32],
        up: &'a [f32],
        out: &'a mut [f32],
    },
    /// Panels of gate and up in turn.
    Panels(&'a mut [[Lanes; 2]]),
}

struct Activate<'a> {
    kind: Activation,
    values: Values<'a>,
}

impl Activate<'_> {
    #[inline(always)]
    fn map(self, f: impl Fn(f32) -> f32) {
        match self.values {
            Values::InPlace(x) => x.iter_mut().for_each(|x| *x = f(*x)),
            Values::Gated { gate, up, out } => {
                for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                    *out = f(*gate) * up;
                }
            }
            Values::Panels(panels) => {
                for [gate, up] in panels {
                    gate.iter_mut().zip(up.iter()).for_each(|(gate, up)| *gate = f(*gate) * up);
                }
            }
        }
    }
}

impl Loop for Activate<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        // The match is outside the loop, so that each function gets a loop of vector code.
        match self.kind {
            Activation::Silu => self.map(silu),
            Activation::Gelu => self.map(gelu),
            Activation::GeluTanh => self.map(gelu_tanh),
            Activation::QuickGelu => self.map(quick_gelu),
            Activation::Relu => self.map(relu),
            Activation::Relu2 => self.map(|x| relu(x) * relu(x)),
            Activation::Tanh => self.map(tanh),
            Activation::Sigmoid => self.map(sigmoid),
        }
    }
}

/// Applies the function to each value, in place.
pub fn activate(isa: Isa, kind: Activation, x: &mut [f32]) {
    isa.compute(Activate { kind, values: Values::InPlace(x) });
}

/// out = f(gate) * up (Shazeer, arXiv:2002.05202). The slices have one length.
pub fn activate_gated(isa: Isa, kind: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    assert_eq!(gate.len(), out.len(), "length of gate, which must be that of the output");
    assert_eq!(up.len(), out.len(), "length of up, which must be that of the output");
    isa.compute(Activate { kind, values: Values::Gated { gate, up, out } });
}

/// gate = f(gate) * up, in place, for panels of both.
pub(super) fn activate_panels(isa: Isa, kind: Activation, panels: &mut [[Lanes; 2]]) {
    isa.compute(Activate { kind, values: Values::Panels(panels) });
}

struct Softcap<'a> {
    x: &'a mut [f32],
    cap: f32,
}

impl Loop for Softcap<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let (cap, inverse) = (self.cap, 1.0 / self.cap);
        self.x.iter_mut().for_each(|x| *x = cap * tanh(*x * inverse));
    }
}

/// x = cap * tanh(x / cap), in place (Gemma 2, arXiv:2408.00118, section 2).
pub fn softcap(isa: Isa, x: &mut [f32], cap: f32) {
    isa.compute(Softcap { x, cap });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_equal_known_values() {
        // By Python's math module in double precision.
        let cases: [(Activation, [f32; 4]); 8] = [
            (Activation::Silu, [-0.142_277_62, -0.188_770_34, 0.311_229_66, 2.857_722_4]),
            (Activation::Gelu, [-0.004_049_694, -0.154_268_77, 0.345_731_23, 2.995_950_3]),
            (Activation::GeluTanh, [-0.003_637_392, -0.154_286, 0.345_714, 2.996_362_6]),
            (Activation::QuickGelu, [-0.018_071_31, -0.149_611_56, 0.350_388_44, 2.981_928_7]),
            (Activation::Relu, [0.0, 0.0, 0.5, 3.0]),
            (Activation::Relu2, [0.0, 0.0, 0.25, 9.0]),
            (Activation::Tanh, [-0.995_054_7, -0.462_117_16, 0.462_117_16, 0.995_054_7]),
            (Activation::Sigmoid, [0.047_425_874, 0.377_540_67, 0.622_459_33, 0.952_574_13]),
        ];
        for (kind, expected) in cases {
            let mut found = [-3.0, -0.5, 0.5, 3.0];
            activate(Isa::best(), kind, &mut found);
            let mut gated = [0.0; 4];
            activate_gated(Isa::best(), kind, &[-3.0, -0.5, 0.5, 3.0], &[2.0; 4], &mut gated);
            for i in 0..4 {
                assert!((found[i] - expected[i]).abs() < 1e-6, "{kind:?}: {found:?}, expected {expected:?}");
                assert_eq!(gated[i], 2.0 * found[i], "{kind:?} with a gate");
            }
        }
    }

    #[test]
    fn far_values_keep_their_limits_and_nan_is_not_hidden() {
        use Activation::*;
        for kind in [Silu, Gelu, GeluTanh, QuickGelu, Relu, Relu2, Tanh, Sigmoid] {
            let mut x = [-1e4, 1e4, f32::NAN];
            activate(Isa::best(), kind, &mut x);
            let low = if kind == Tanh { -1.0 } else { 0.0 };
            assert!((x[0] - low).abs() < 1e-6, "{kind:?} of -10000 is {}", x[0]);
            assert!(x[1] >= 1.0 && x[1].is_finite(), "{kind:?} of 10000 is {}", x[1]);
            assert!(x[2].is_nan(), "{kind:?} hides NaN");
        }
    }

    #[test]
    fn a_soft_cap_is_near_the_identity_below_and_the_cap_above() {
        let mut x = [0.01, -1e6, 1e6];
        softcap(Isa::best(), &mut x, 30.0);
        assert!((x[0] - 0.01).abs() < 1e-8, "{}", x[0]);
        assert_eq!(x[1..], [-30.0, 30.0]);
    }

    #[test]
    fn every_tier_gives_the_same_bits() {
        use Activation::*;
        let x: Vec<f32> = (0..1003).map(|i| (i as f32 - 500.0) / 37.0).collect();
        for kind in [Silu, Gelu, GeluTanh, QuickGelu, Relu, Relu2, Tanh, Sigmoid] {
            let values = |isa| {
                let mut out = [x.clone(), x.clone(), x.clone()];
                activate(isa, kind, &mut out[0]);
                activate_gated(isa, kind, &x, &x, &mut out[1]);
                softcap(isa, &mut out[2], 5.0);
                out
            };
            let expected = values(Isa::available()[0]);
            for isa in Isa::available() {
                assert_eq!(values(isa), expected, "{kind:?} with {}", isa.name());
            }
        }
    }
}
