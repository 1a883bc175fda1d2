//! Random numbers that are the same on every machine for the same seed.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

/// A seed from the system's randomness, as the standard library's hash maps take theirs.
pub(super) fn fresh_seed() -> u64 {
    // Short enough to be typed again.
    RandomState::new().hash_one(std::process::id()) >> 32
}

/// xoshiro256** (Blackman and Vigna, "Scrambled linear pseudorandom number generators", 2021), its state filled by
/// SplitMix64 as its authors advise. Not for secrets.
#[derive(Clone, Debug)]
pub(super) struct Xoshiro256([u64; 4]);

impl Xoshiro256 {
    pub(super) fn new(seed: u64) -> Self {
        let mut state = seed;
        Xoshiro256(std::array::from_fn(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }))
    }

    fn next(&mut self) -> u64 {
        let [s0, s1, s2, s3] = &mut self.0;
        let result = s1.wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let shifted = *s1 << 17;
        *s2 ^= *s0;
        *s3 ^= *s1;
        *s1 ^= *s2;
        *s0 ^= *s3;
        *s2 ^= shifted;
        *s3 = s3.rotate_left(45);
        result
    }

    /// Uniform in [0, 1), with 53 bits.
    pub(super) fn next_unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_gives_its_published_sequence() {
        // First outputs of xoshiro256** from the state (1, 2, 3, 4), computed from its definition.
        let mut random = Xoshiro256([1, 2, 3, 4]);
        let first: Vec<u64> = (0..4).map(|_| random.next()).collect();
        assert_eq!(first, [11520, 0, 1509978240, 1215971899390074240]);
        // First outputs of SplitMix64 from 0.
        assert_eq!(Xoshiro256::new(0).0[..2], [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4]);
    }
}
