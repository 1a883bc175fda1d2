//! Weights as files store them: little-endian, of any alignment.

use half::{bf16, f16};

use crate::cpu::matrix::{Element, ElementType};

/// Writes stored weights as f32, exact, to `out`, which has one value for each. Whether all are finite. Inlined, so that
/// each tier gets vector code of its own: callers that have an [`Isa`](crate::Isa) want
/// [`Isa::to_f32`](crate::Isa::to_f32).
#[inline(always)]
pub fn to_f32(element: ElementType, bytes: &[u8], out: &mut [f32]) -> bool {
    match element {
        ElementType::F32 => convert(bytes, out, f32::from_le_bytes),
        ElementType::F16 => convert(bytes, out, |bytes| f16::from_le_bytes(bytes).widen()),
        ElementType::Bf16 => convert(bytes, out, |bytes| bf16::from_le_bytes(bytes).widen()),
    }
}

#[inline(always)]
fn convert<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) -> bool {
    assert_eq!(bytes.len(), N * out.len(), "bytes of {} stored weights", out.len());
    let mut largest = 0;
    for (out, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
        *out = value(*bytes);
        // As bits, magnitudes are ordered like integers, and what is not finite comes last.
        largest = largest.max(out.abs().to_bits() as i32);
    }
    f32::from_bits(largest as u32).is_finite()
}
