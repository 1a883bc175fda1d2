//! Loops of plain arithmetic over slices: every tier compiles the same source with its own instructions.
//!
//! Nothing is fused and no sum is reordered by the compiler, so a loop whose order of sums is fixed in its source
//! gives the same bits in every tier.

#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};
use crate::cpu::{Isa, Tier};

/// A loop with its slices, whose lengths have been checked.
pub(in crate::cpu) trait Loop {
    /// What it finds.
    type Output;

    /// Runs it. Each implementation is `#[inline(always)]`, and so is all that it calls: code that is not inlined
    /// into a tier's function has only the instructions of the portable tier.
    fn run(self) -> Self::Output;
}

impl Isa {
    /// Runs a loop with this tier's instructions.
    pub(in crate::cpu) fn compute<L: Loop>(self, work: L) -> L::Output {
        match self.0 {
            Tier::Portable => work.run(),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(token) => avx2::compute(token, work),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(token) => avx512::compute(token, work),
        }
    }
}
