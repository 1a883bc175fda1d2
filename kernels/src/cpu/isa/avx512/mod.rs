//! The inner kernels for AVX-512 with F, BW, VL, VNNI and VBMI (Intel's Ice Lake, AMD's Zen 4, and later).
//!
//! A register holds a quad of a panel: sixteen rows by four inputs. `vpdpbusd` adds the products of its unsigned
//! weights with four signed inputs, which every lane shares; weights are stored or looked up with a bias of 128,
//! and what the bias adds is known from the inputs alone.

pub(super) mod attention;
pub(super) mod attention_bf16;
pub(super) mod bf16;
pub(in crate::cpu) mod dense;
pub(super) mod inputs;
pub(super) mod int4;
pub(super) mod int8;
pub(super) mod quantize;
pub(super) mod unpack;

use std::arch::x86_64::*;
use std::hint::black_box;

use super::avx2::{Avx2, prefetch_ahead};
use super::elementwise::Loop;
use crate::cpu::probe;
use crate::quant::Lanes;

/// Proof that this CPU has AVX-512 F, BW, VL, VNNI and VBMI, and all of [`super::avx2::Avx2`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cpu) struct Avx512 {
    bf16: Option<Bf16>,
}

/// Proof that this CPU has AVX-512 BF16 (AMD's Zen 4, Intel's Cooper Lake and Sapphire Rapids), and all of
/// [`Avx512`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cpu) struct Bf16(());

impl Avx512 {
    /// The proof, if it holds.
    pub(in crate::cpu) fn detect() -> Option<Avx512> {
        let all = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx512vbmi");
        let bf16 = is_x86_feature_detected!("avx512bf16").then_some(Bf16(()));
        Avx2::detect().filter(|_| all).map(|_| Avx512 { bf16 })
    }

    /// The stronger proof, if it holds.
    pub(super) fn bf16(self) -> Option<Bf16> {
        self.bf16
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: 64 bytes are readable, and the load needs no alignment.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_lanes(lanes: &Lanes) -> __m512 {
    // SAFETY: sixteen values are readable.
    unsafe { _mm512_loadu_ps(lanes.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_lanes(lanes: &mut Lanes, values: __m512) {
    // SAFETY: sixteen values are writable.
    unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), values) };
}

/// See [`Loop`].
pub(super) fn compute<L: Loop>(_: Avx512, work: L) -> L::Output {
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
    fn inner<L: Loop>(work: L) -> L::Output {
        work.run()
    }
    // SAFETY: the token proves the features.
    unsafe { inner(work) }
}

/// The mask of the first `n` of sixteen lanes.
#[inline]
fn lowest(n: usize) -> __mmask16 {
    ((1u32 << n.min(16)) - 1) as u16
}

/// See [`probe::read`].
pub(super) fn fold(_: Avx512, data: &[u8]) -> u64 {
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
    fn inner(data: &[u8]) -> u64 {
        probe::fold(data, |block| {
            block.as_chunks::<256>().0.iter().for_each(|block| prefetch_ahead(block, probe::AHEAD))
        })
    }
    // SAFETY: the token proves the features.
    unsafe { inner(data) }
}

/// See [`probe::multiply`].
pub(super) fn multiply(token: Avx512, operation: probe::Operation, rounds: usize) -> u64 {
    /// Sums that do not wait for each other.
    const SUMS: usize = 12;
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
    fn int8(rounds: usize) -> i32 {
        let x = _mm512_set1_epi8(black_box(3));
        let mut sums = [_mm512_setzero_si512(); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, x, x);
            }
        }
        sums.into_iter().fold(0, |all, sum| all ^ _mm512_reduce_add_epi32(sum))
    }
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
    fn float(rounds: usize) -> f32 {
        let x = _mm512_set1_ps(black_box(0.5));
        let mut sums = [x; SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, x, x);
            }
        }
        sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum()
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    fn bf16(rounds: usize) -> f32 {
        // Two halves of one in each lane.
        let x = _mm512_set1_epi32(black_box(0x3f00_3f00));
        // SAFETY: both are 64 bytes of which every pattern is a value.
        let x = unsafe { std::mem::transmute::<__m512i, __m512bh>(x) };
        let mut sums = [_mm512_setzero_ps(); SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, x, x);
            }
        }
        sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum()
    }
    let (sum, products) = match operation {
        // SAFETY: the token proves the features.
        probe::Operation::Int8 => (unsafe { int8(rounds) } as f32, 64),
        // SAFETY: the token proves the features.
        probe::Operation::F32 => (unsafe { float(rounds) }, 16),
        probe::Operation::Bf16 => match token.bf16() {
            // SAFETY: its own token proves the features.
            Some(Bf16(())) => (unsafe { bf16(rounds) }, 32),
            None => (0.0, 0),
        },
    };
    black_box(sum);
    2 * products * (SUMS * rounds) as u64
}
