//! Kernels for CPUs: loops over tiles, the threads that run them, and the choice of an instruction set.
//!
//! A file of this folder holds one operation and no intrinsics. What differs between instruction sets is the
//! small set of inner kernels in `isa`, one file a tier.

pub mod activation;
pub mod attention;
pub mod crew;
mod isa;
pub mod kv;
mod lines;
pub mod logits;
mod math;
pub mod matmul;
pub mod matrix;
pub mod moe;
pub mod norm;
pub mod probe;
pub mod rope;
pub mod team;
pub mod vector;

use crate::error::KernelError;

/// A tier of instructions, and the proof that this CPU has it: made only by detection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Tier);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tier {
    Portable,
    #[cfg(target_arch = "x86_64")]
    /// With or without AVX-VNNI for integer products, which its token knows.
    Avx2(isa::avx2::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(isa::avx512::Avx512),
}

/// Every tier of this program, the slowest first, whether or not this CPU or architecture has it.
const NAMES: [&str; 4] = ["portable", "avx2", "avx_vnni", "avx512"];

impl Isa {
    /// The best tier that this CPU has.
    pub fn best() -> Isa {
        Isa::available().last().copied().unwrap_or(Isa(Tier::Portable))
    }

    /// The tier called `name`: [`KernelError::UnknownIsa`] if there is none, [`KernelError::UnsupportedIsa`]
    /// if this CPU does not have it.
    pub fn named(name: &str) -> Result<Isa, KernelError> {
        let known = NAMES.iter().find(|known| **known == name);
        let name =
            known.ok_or_else(|| KernelError::UnknownIsa { found: name.to_owned(), choices: NAMES.join(", ") })?;
        let available = Isa::available();
        let found = available.iter().find(|isa| isa.name() == *name);
        found.copied().ok_or_else(|| KernelError::UnsupportedIsa {
            name,
            choices: available.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", "),
        })
    }

    /// The tier named by the environment variable `INFER_ISA`, or the best one if it is not set.
    pub fn from_env() -> Result<Isa, KernelError> {
        match std::env::var_os("INFER_ISA") {
            Some(name) => Isa::named(&name.to_string_lossy()),
            None => Ok(Isa::best()),
        }
    }

    /// The tiers that this CPU has, the slowest first.
    pub fn available() -> Vec<Isa> {
        let tiers = [
            Some(Tier::Portable),
            #[cfg(target_arch = "x86_64")]
            isa::avx2::Avx2::detect().map(Tier::Avx2),
            #[cfg(target_arch = "x86_64")]
            isa::avx_vnni::AvxVnni::detect().map(isa::avx2::Avx2::with).map(Tier::Avx2),
            #[cfg(target_arch = "x86_64")]
            isa::avx512::Avx512::detect().map(Tier::Avx512),
        ];
        tiers.into_iter().flatten().map(Isa).collect()
    }

    /// The name that [`Isa::named`] takes.
    pub fn name(self) -> &'static str {
        match self.0 {
            Tier::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(token) if token.vnni().is_some() => "avx_vnni",
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(_) => "avx512",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tier_is_found_by_its_name_and_others_are_refused() {
        for isa in Isa::available() {
            assert_eq!(Isa::named(isa.name()), Ok(isa));
        }
        assert_eq!(Isa::available().last(), Some(&Isa::best()));
        for name in ["", "AVX2", "sse9", "avx2 "] {
            let error = Isa::named(name).expect_err(name).to_string();
            assert!(error.contains("portable") && error.contains("avx2"), "{name:?}: {error}");
        }
    }
}
