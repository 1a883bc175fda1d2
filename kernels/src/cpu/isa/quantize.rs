//! Packing weights: choosing the tier. There is one text of each format, in `quant`; a tier is that text, compiled for
//! what the tier has. Only the innermost parts have tiers of their own, where the compiler does not find them.

use super::elementwise::Loop;
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use crate::cpu::matrix::ElementType;
use crate::cpu::{Isa, Tier};
use crate::quant::{int4, int8, stored};

impl Isa {
    /// See [`int4::quantize_rows`]: the same bytes, faster.
    pub fn quantize_int4(self, source: &[f32], cols: usize, packed: &mut [u8]) {
        match self.0 {
            Tier::Portable => int4::quantize_rows(source, cols, packed),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(token) => avx2::quantize::int4(token, source, cols, packed),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(token) => avx512::quantize::int4(token, source, cols, packed),
        }
    }

    /// See [`int8::quantize_rows`]: the same bytes, faster.
    pub fn quantize_int8(self, source: &[f32], cols: usize, packed: &mut [u8]) {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(token) => avx512::quantize::int8(token, source, cols, packed),
            _ => self.compute(QuantizeInt8 { source, cols, packed }),
        }
    }

    /// See [`stored::to_f32`]: the same, faster.
    pub fn to_f32(self, element: ElementType, bytes: &[u8], out: &mut [f32]) -> bool {
        self.compute(ToF32 { element, bytes, out })
    }
}

struct QuantizeInt8<'a> {
    source: &'a [f32],
    cols: usize,
    packed: &'a mut [u8],
}

impl Loop for QuantizeInt8<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        int8::quantize_rows(self.source, self.cols, self.packed);
    }
}

struct ToF32<'a> {
    element: ElementType,
    bytes: &'a [u8],
    out: &'a mut [f32],
}

impl Loop for ToF32<'_> {
    type Output = bool;

    #[inline(always)]
    fn run(self) -> bool {
        stored::to_f32(self.element, self.bytes, self.out)
    }
}
