//! What the machine can do at most, so that a speed can be stated as a share of it: reading memory and multiplying,
//! with the same threads and instructions as the kernels.

use super::crew::Crew;

/// Bytes of a task that reads: as a rule of a few panels.
const CHUNK: usize = 1 << 16;

/// How far ahead memory is asked for.
#[cfg(target_arch = "x86_64")]
pub(super) const AHEAD: usize = 2048;

/// Multiply-adds of a task to each lane of each sum.
const ROUNDS: usize = 1 << 14;

/// What is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Bytes, summed in 32 bits.
    Int8,
    /// bf16, summed in f32.
    Bf16,
    /// f32, fused with the addition.
    F32,
}

/// Reads `data` once, each worker its own range front to back. Returns a checksum, so that it is really read.
pub fn read(crew: &Crew<'_>, data: &[u8]) -> u64 {
    let isa = crew.isa();
    let mut sums = vec![0; data.len().div_ceil(CHUNK)];
    crew.rows(&mut sums, 1, |i, sum| sum[0] = isa.fold(&data[i * CHUNK..data.len().min((i + 1) * CHUNK)]));
    sums.iter().fold(0, |all, sum| all ^ sum)
}

/// Keeps every worker at multiply-adds from and to registers, `tasks` tasks in all. Returns the operations done, two
/// for each product and addition; 0 if the tier has no instruction for them.
pub fn multiply(crew: &Crew<'_>, operation: Operation, tasks: usize) -> u64 {
    let isa = crew.isa();
    let mut operations = vec![0; tasks];
    crew.rows(&mut operations, 1, |_, operations| operations[0] = isa.multiply(operation, ROUNDS));
    operations.iter().sum()
}

/// The exclusive or of words. Inlined, so that each tier gets vector code of its own; in 32 lanes, so that it does not
/// wait for itself.
#[inline(always)]
pub(super) fn fold(data: &[u8], prefetch: impl Fn(&[u8])) -> u64 {
    let mut lanes = [0; 32];
    let (blocks, rest) = data.as_chunks::<256>();
    for block in blocks {
        prefetch(block);
        lanes.iter_mut().zip(block.as_chunks().0).for_each(|(lane, word)| *lane ^= u64::from_le_bytes(*word));
    }
    lanes.iter().fold(rest.iter().fold(0, |all, byte| all ^ *byte as u64), |all, lane| all ^ lane)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Isa, Team};

    #[test]
    fn reading_looks_at_every_byte() {
        let mut data: Vec<u8> = (0..3 * CHUNK + 77).map(|i| (i * 7 % 251) as u8).collect();
        for isa in Isa::available() {
            for threads in [1, 2] {
                let team = Team::new(threads, isa).expect("threads");
                let sum = team.run(|crew| read(crew, &data));
                for place in [0, 255, CHUNK, data.len() - 78, data.len() - 1] {
                    data[place] ^= 1;
                    let changed = team.run(|crew| read(crew, &data));
                    data[place] ^= 1;
                    assert_ne!(sum, changed, "byte {place} is not read by {} on {threads} threads", isa.name());
                }
            }
        }
    }

    #[test]
    fn operations_are_counted_whatever_the_threads() {
        for isa in Isa::available() {
            for operation in [Operation::Int8, Operation::Bf16, Operation::F32] {
                let count = |threads, tasks| {
                    let team = Team::new(threads, isa).expect("threads");
                    team.run(|crew| multiply(crew, operation, tasks))
                };
                assert_eq!(2 * count(1, 3), count(2, 6), "{operation:?}, {}", isa.name());
            }
            let team = Team::new(1, isa).expect("a thread");
            assert!(team.run(|crew| multiply(crew, Operation::F32, 1)) > 0, "{} multiplies f32", isa.name());
        }
    }
}
