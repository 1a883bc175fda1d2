//! The inner kernels for AVX2, FMA and F16C (x86-64 since 2013 with Intel's Haswell, 2015 with AMD's Excavator).

pub(super) mod attention;
pub(super) mod dense;
pub(super) mod integer;
pub(super) mod quantize;
pub(super) mod unpack;

use std::arch::asm;
use std::arch::x86_64::*;
use std::hint::black_box;

use half::{bf16, f16};

use super::avx_vnni::{self, AvxVnni};
use super::elementwise::Loop;
use crate::cpu::probe;
use crate::quant::{Lanes, int4};

/// Proof that this CPU has AVX2, FMA and F16C, and perhaps that it may use AVX-VNNI for integer products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cpu) struct Avx2 {
    vnni: Option<AvxVnni>,
}

impl Avx2 {
    /// The proof, if it holds.
    pub(in crate::cpu) fn detect() -> Option<Avx2> {
        let all =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        all.then_some(Avx2 { vnni: None })
    }

    /// The proof for the tier that has AVX-VNNI as well, which itself proves all of this.
    pub(in crate::cpu) fn with(vnni: AvxVnni) -> Avx2 {
        Avx2 { vnni: Some(vnni) }
    }

    /// The proof of AVX-VNNI, if the tier has it.
    pub(in crate::cpu) fn vnni(self) -> Option<AvxVnni> {
        self.vnni
    }
}

/// Loads of eight values as f32.
pub trait Load: Sized {
    /// Eight values from `from`, exact.
    ///
    /// # Safety
    /// The CPU has the features, and eight values are readable at `from`, which needs no alignment.
    unsafe fn load8(from: *const Self) -> __m256;

    /// Sixteen values from `from`, exact, in whatever order is fastest.
    ///
    /// # Safety
    /// As for [`Load::load8`], but sixteen.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load_pair(from: *const Self) -> [__m256; 2] {
        // SAFETY: the caller vouches for sixteen readable values.
        unsafe { [Self::load8(from), Self::load8(from.add(8))] }
    }

    /// Sixteen inputs in the order of [`Load::load_pair`].
    ///
    /// # Safety
    /// The CPU has the features, and sixteen values are readable at `x`, which needs no alignment.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn inputs_like_pair(x: *const f32) -> [__m256; 2] {
        // SAFETY: the caller vouches for sixteen readable values.
        unsafe { [_mm256_loadu_ps(x), _mm256_loadu_ps(x.add(8))] }
    }
}

impl Load for f32 {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load8(from: *const f32) -> __m256 {
        // SAFETY: the caller vouches for eight readable values.
        unsafe { _mm256_loadu_ps(from) }
    }
}

impl Load for f16 {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load8(from: *const f16) -> __m256 {
        // SAFETY: the caller vouches for eight readable values of two bytes.
        _mm256_cvtph_ps(unsafe { _mm_loadu_si128(from.cast()) })
    }
}

impl Load for bf16 {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load8(from: *const bf16) -> __m256 {
        // SAFETY: the caller vouches for eight readable values of two bytes.
        let halves = unsafe { _mm_loadu_si128(from.cast()) };
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(halves)))
    }

    /// Values of even places, then those of odd ones: a shift and a mask.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load_pair(from: *const bf16) -> [__m256; 2] {
        // SAFETY: the caller vouches for sixteen readable values of two bytes.
        let values = unsafe { _mm256_loadu_si256(from.cast()) };
        let odd = _mm256_and_si256(values, _mm256_set1_epi32(0xffff_0000_u32 as i32));
        [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(values)), _mm256_castsi256_ps(odd)]
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn inputs_like_pair(x: *const f32) -> [__m256; 2] {
        // SAFETY: the caller vouches for four times four readable values.
        let [a, b, c, d] = unsafe { [0, 4, 8, 12].map(|i| _mm_loadu_ps(x.add(i))) };
        let (first, second) = (_mm256_set_m128(c, a), _mm256_set_m128(d, b));
        [_mm256_shuffle_ps::<0x88>(first, second), _mm256_shuffle_ps::<0xdd>(first, second)]
    }
}

impl Load for i8 {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load8(from: *const i8) -> __m256 {
        // SAFETY: the caller vouches for eight readable bytes.
        let bytes = unsafe { _mm_loadl_epi64(from.cast()) };
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes))
    }
}

pub(super) fn prefetch<T>(values: &[T]) {
    for line in values.chunks(64 / size_of::<T>()) {
        // SAFETY: a prefetch reads nothing that can be seen, and the address is that of a value.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
}

/// How far ahead of its use memory is asked for. On Zen 4, 3 to 4 KiB are best for one to eight tokens; with 8 KiB the
/// inputs, which all panels meet, leave the first-level cache earlier.
pub(in crate::cpu::isa) const AHEAD: usize = 4096;

/// Asks for the bytes that lie `ahead` bytes further in the stream. Stays where it is written: the compiler would gather
/// the prefetches of a step in one place, where they wait for each other.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn prefetch_ahead<const BYTES: usize>(bytes: &[u8; BYTES], ahead: usize) {
    for line in (0..BYTES).step_by(64) {
        let line = bytes.as_ptr().wrapping_add(ahead + line);
        // SAFETY: a prefetch reads nothing that can be seen, and any address is allowed.
        unsafe { asm!("prefetcht0 [{}]", in(reg) line, options(readonly, nostack, preserves_flags)) };
    }
}

/// See [`probe::read`].
pub(super) fn fold(_: Avx2, data: &[u8]) -> u64 {
    #[target_feature(enable = "avx2,fma,f16c")]
    fn inner(data: &[u8]) -> u64 {
        probe::fold(data, |block| {
            block.as_chunks::<256>().0.iter().for_each(|block| prefetch_ahead(block, probe::AHEAD))
        })
    }
    // SAFETY: the token proves the features.
    unsafe { inner(data) }
}

/// See [`probe::multiply`].
pub(super) fn multiply(token: Avx2, operation: probe::Operation, rounds: usize) -> u64 {
    /// Sums that do not wait for each other.
    const SUMS: usize = 12;
    /// Without VNNI a product of bytes takes three instructions. What they multiply depends on the last sum, or the
    /// compiler would take the products out of the loop.
    #[target_feature(enable = "avx2,fma,f16c")]
    fn int8(rounds: usize) {
        let (x, ones) = (_mm256_set1_epi8(black_box(3)), _mm256_set1_epi16(1));
        let mut sums = [x; SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(_mm256_maddubs_epi16(*sum, x), ones));
            }
        }
        black_box(sums);
    }
    #[target_feature(enable = "avx2,fma,f16c")]
    fn float(rounds: usize) {
        let x = _mm256_set1_ps(black_box(0.5));
        let mut sums = [x; SUMS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, x, x);
            }
        }
        black_box(sums);
    }
    let lanes = match (operation, token.vnni()) {
        (probe::Operation::Int8, Some(vnni)) => return avx_vnni::multiply_int8(vnni, rounds),
        (probe::Operation::Int8, None) => {
            // SAFETY: the token proves the features.
            unsafe { int8(rounds) };
            32
        }
        (probe::Operation::F32, _) => {
            // SAFETY: the token proves the features.
            unsafe { float(rounds) };
            8
        }
        (probe::Operation::Bf16, _) => 0,
    };
    2 * lanes * (SUMS * rounds) as u64
}

/// See [`Loop`].
pub(super) fn compute<L: Loop>(_: Avx2, work: L) -> L::Output {
    #[target_feature(enable = "avx2,fma,f16c")]
    fn inner<L: Loop>(work: L) -> L::Output {
        work.run()
    }
    // SAFETY: the token proves the features.
    unsafe { inner(work) }
}

/// Half of a quad of a panel: eight rows.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn half_quad(quad: &[u8; 64], half: usize) -> __m256i {
    // SAFETY: 32 bytes are readable, and the load needs no alignment.
    unsafe { _mm256_loadu_si256(quad.as_chunks::<32>().0[half].as_ptr().cast()) }
}

/// The levels of int4 weights, in both halves of the register.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn level_table() -> __m256i {
    // SAFETY: sixteen bytes are readable.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(int4::TABLE.as_ptr().cast()) })
}

/// Eight rows' heads of a group of int4 weights, with their signs.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn load_heads(heads: &[u8; 16], half: usize) -> __m256i {
    // SAFETY: eight bytes are readable.
    _mm256_cvtepi8_epi32(unsafe { _mm_loadl_epi64(heads.as_chunks::<8>().0[half].as_ptr().cast()) })
}

/// `lanes[8 half..] = values`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn store_half(lanes: &mut Lanes, half: usize, values: __m256) {
    // SAFETY: eight values are writable.
    unsafe { _mm256_storeu_ps(lanes.as_chunks_mut::<8>().0[half].as_mut_ptr(), values) };
}

/// `lanes[8 half..]`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn load_half(lanes: &Lanes, half: usize) -> __m256 {
    // SAFETY: eight values are readable.
    unsafe { _mm256_loadu_ps(lanes.as_chunks::<8>().0[half].as_ptr()) }
}

/// Eight rows' heads of two groups of int4 weights, with their signs: in each lane the first group's below.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn load_head_pairs(heads: [&[u8; 16]; 2], half: usize) -> __m256i {
    // SAFETY: eight bytes are readable.
    let [first, second] = heads.map(|heads| unsafe { _mm_loadl_epi64(heads.as_chunks::<8>().0[half].as_ptr().cast()) });
    _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(first, second))
}
