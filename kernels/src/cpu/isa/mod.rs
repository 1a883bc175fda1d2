//! The inner kernels: a few small functions, written once for each tier.
//!
//! Operations call them through [`Isa`], whose value is the proof that the tier's instructions exist. The
//! checks of shapes are here, so that a tier's file may rely on them.

mod attention;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx_vnni;
pub(super) mod bf16;
mod dense;
pub(super) mod elementwise;
mod integer;
mod portable;
mod quantize;

pub(super) use attention::{PanelValue, Product, QUERIES, STEP_BLOCKS};

use super::{Isa, Tier, probe};

/// Output features in the lanes of a panel: a panel is [depth][LANES].
pub(super) const LANES: usize = 16;

impl Isa {
    /// Asks for values that will be read soon. Changes nothing but time.
    pub(super) fn prefetch<T: Copy>(self, values: &[T]) {
        match self.0 {
            Tier::Portable => portable::prefetch(values),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(_) | Tier::Avx512(_) => avx2::prefetch(values),
        }
    }

    /// See [`probe::read`].
    pub(super) fn fold(self, data: &[u8]) -> u64 {
        match self.0 {
            Tier::Portable => probe::fold(data, |_| ()),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(token) => avx2::fold(token, data),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(token) => avx512::fold(token, data),
        }
    }

    /// See [`probe::multiply`].
    pub(super) fn multiply(self, operation: probe::Operation, rounds: usize) -> u64 {
        match self.0 {
            Tier::Portable => portable::multiply(operation, rounds),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx2(token) => avx2::multiply(token, operation, rounds),
            #[cfg(target_arch = "x86_64")]
            Tier::Avx512(token) => avx512::multiply(token, operation, rounds),
        }
    }
}
