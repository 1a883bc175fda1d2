//! What AVX-VNNI adds to AVX2 (Intel's Alder Lake, AMD's Zen 5, and later): `vpdpbusd`, which adds the products of four
//! unsigned bytes with four signed ones in each lane. Everything else of the tier is that of AVX2, so its token is one of
//! [`Avx2`] that has this one.

pub(super) mod integer;

use std::arch::x86_64::*;
use std::hint::black_box;

use super::avx2::Avx2;

/// Proof that this CPU has AVX-VNNI, and all of [`Avx2`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cpu) struct AvxVnni(());

impl AvxVnni {
    /// The proof, if it holds.
    pub(in crate::cpu) fn detect() -> Option<AvxVnni> {
        Avx2::detect().filter(|_| is_x86_feature_detected!("avxvnni")).map(|_| AvxVnni(()))
    }
}

/// Multiply-adds of bytes, see [`crate::cpu::probe::multiply`].
pub(super) fn multiply_int8(_: AvxVnni, rounds: usize) -> u64 {
    /// Sums that do not wait for each other.
    const SUMS: usize = 12;
    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    fn inner(rounds: usize) {
        let x = _mm256_set1_epi8(black_box(3));
        let mut sums = [_mm256_setzero_si256(); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_dpbusd_avx_epi32(*sum, x, x);
            }
        }
        black_box(sums);
    }
    // SAFETY: the token proves the features.
    unsafe { inner(rounds) };
    2 * 32 * (SUMS * rounds) as u64
}
