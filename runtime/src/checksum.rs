//! A checksum that tells accidental change: of a saved cache, or of the model that it was made with. It is the same
//! on every machine and in every version; it does not resist someone who wants two inputs to agree.

/// Multiplier with bits all over the word (the fraction of the golden ratio, odd).
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// A running checksum: for each word of 8 bytes, xor, multiply, rotate.
#[derive(Clone, Debug)]
pub(crate) struct Checksum(u64);

impl Checksum {
    pub fn new() -> Checksum {
        Checksum(MULTIPLIER)
    }

    /// Adds bytes. Two calls differ from one with both parts joined: each part's length counts.
    pub fn update(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.mix(u64::from_le_bytes(*word));
        }
        let mut last = [0; 8];
        last.iter_mut().zip(rest).for_each(|(last, byte)| *last = *byte);
        self.mix(u64::from_le_bytes(last));
        self.mix(bytes.len() as u64);
    }

    fn mix(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(MULTIPLIER).rotate_left(29);
    }

    /// 16 hexadecimal digits.
    pub fn finish(&self) -> String {
        let mut end = self.clone();
        end.mix(0);
        end.mix(0);
        format!("{:016x}", end.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(parts: &[&[u8]]) -> String {
        let mut checksum = Checksum::new();
        parts.iter().for_each(|part| checksum.update(part));
        checksum.finish()
    }

    #[test]
    fn every_bit_and_every_boundary_counts() {
        let bytes: Vec<u8> = (0..37).collect();
        let whole = of(&[&bytes]);
        assert_eq!(whole, of(&[&bytes]));
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(of(&[&changed]), whole, "bit {bit}");
        }
        for cut in 0..=bytes.len() {
            assert_ne!(of(&[&bytes[..cut], &bytes[cut..]]), whole, "cut at {cut}");
        }
        assert_ne!(of(&[b"", b"\0"]), of(&[b"\0", b""]));
    }

    #[test]
    fn the_checksum_of_old_files_stays_valid() {
        assert_eq!(of(&[b"the checksum of old files"]), "b87accb493d5778c");
    }
}
