//! The inner kernels: a few small functions, written once for each tier.
//!
//! Operations call them through [`Isa`], whose value is the proof that the tier's instructions exist. The
//! checks of shapes are here, so that a tier's file may rely on them.

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
mod portable;

use super::matrix::Element;
use super::{Isa, Tier};
use crate::quant::int4::{self, Int4Ref};
use crate::quant::int8::{self, Int8Ref};

/// Output features in the lanes of a panel: a panel is [depth][LANES].
pub(super) const LANES: usize = 16;

impl Isa {
    /// Asks for values that will be read soon. Changes nothing but time.
    pub(super) fn prefetch<T: Element>(self, values: &[T]) {
        match self.0 {
            Tier::Portable => portable::prefetch(values),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(_) => avx2::prefetch(values),
        }
    }

    /// `out[i] = values[i]`, exact.
    pub(super) fn widen<T: Element>(self, values: &[T], out: &mut [f32]) {
        assert_eq!(values.len(), out.len(), "values to widen");
        match self.0 {
            Tier::Portable => portable::widen(values, out),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(token) => avx2::widen(token, values, out),
        }
    }

    /// The values `start..start + out.len()` of a row, exactly as the format's specification gives them.
    pub(super) fn int8(self, matrix: &Int8Ref<'_>, row: usize, start: usize, out: &mut [f32]) {
        let groups = matrix.groups(row, start, out.len());
        match self.0 {
            Tier::Portable => int8::dequantize_groups(groups, out),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(token) => avx2::int8(token, groups, out),
        }
    }

    /// The values `start..start + out.len()` of a row, exactly as the format's specification gives them.
    pub(super) fn int4(self, matrix: &Int4Ref<'_>, row: usize, start: usize, out: &mut [f32]) {
        let (row_scale, groups) = matrix.groups(row, start, out.len());
        match self.0 {
            Tier::Portable => int4::dequantize_groups(row_scale, groups, out),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(token) => avx2::int4(token, row_scale, groups, out),
        }
    }

    /// `sum_k weights[k] * x[t][k]` for each of N tokens.
    pub(super) fn dot<T: Element, const N: usize>(self, weights: &[T], x: [&[f32]; N]) -> [f32; N] {
        for x in x {
            assert_eq!(x.len(), weights.len(), "length of an input row");
        }
        match self.0 {
            Tier::Portable => portable::dot(weights, x),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(token) => avx2::dot(token, weights, x),
        }
    }

    /// `panel[k][r] = rows[r][k]`: LANES rows of `depth` values to a panel.
    pub(super) fn pack(self, rows: &[f32], depth: usize, panel: &mut [f32]) {
        assert_eq!(rows.len(), LANES * depth, "{LANES} rows of {depth}");
        assert_eq!(panel.len(), LANES * depth, "a panel of {depth}");
        match self.0 {
            Tier::Portable => portable::pack(rows, depth, panel),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(token) => avx2::pack(token, rows, depth, panel),
        }
    }

    /// `out[t][r] += sum_k x[t][k] * panel[k][r]` for `n` tokens. Rows of `x` start `x_stride` apart, those of
    /// `out` `out_stride`; the depth is the panel's.
    pub(super) fn gemm<T: Element>(
        self,
        n: usize,
        (x, x_stride): (&[f32], usize),
        panel: &[T],
        (out, out_stride): (&mut [f32], usize),
    ) {
        let depth = panel.len() / LANES;
        if n == 0 || depth == 0 {
            return;
        }
        assert!(x.len() >= (n - 1) * x_stride + depth, "{} inputs for {n} rows of {depth}", x.len());
        assert!(out.len() >= (n - 1) * out_stride + LANES, "{} outputs for {n} rows", out.len());
        match self.0 {
            Tier::Portable => portable::gemm(n, (x, x_stride), panel, (out, out_stride)),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(token) => avx2::gemm(token, n, (x, x_stride), panel, (out, out_stride)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tier_dequantizes_exactly_as_specified() {
        // Any bytes are a matrix. The scales' upper bytes are kept below those of NaN, which equals nothing.
        let bytes = |n: usize| (0..n).map(|i| ((i * i * 31 + i * 7 + 5) % 251) as u8 & 0xbb).collect::<Vec<u8>>();
        for cols in [1, 15, 16, 17, 31, 32, 33, 64, 300] {
            let (n8, n4) = (int8::packed_bytes(3, cols), int4::packed_bytes(3, cols));
            let (bytes8, bytes4) = (bytes(n8.unwrap_or(0)), bytes(n4.unwrap_or(0)));
            let int8 = Int8Ref::new(&bytes8, 3, cols).expect("its length");
            let int4 = Int4Ref::new(&bytes4, 3, cols).expect("its length");
            for isa in Isa::available() {
                for (row, start) in [(0, 0), (2, 0), (1, cols / 32 * 32)] {
                    let (mut found, mut expected) = (vec![0.0; cols - start], vec![1.0; cols - start]);
                    isa.int8(&int8, row, start, &mut found);
                    int8.dequantize(row, start, &mut expected);
                    assert_eq!(found, expected, "int8, {}, row {row} of {cols} from {start}", isa.name());
                    isa.int4(&int4, row, start, &mut found);
                    int4.dequantize(row, start, &mut expected);
                    assert_eq!(found, expected, "int4, {}, row {row} of {cols} from {start}", isa.name());
                }
            }
        }
    }
}
