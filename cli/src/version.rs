//! `infer --version`: the version, and the CPU instructions that the kernels use here.

use anyhow::Result;
use infer_kernels::cpu::Isa;

use crate::output;

/// Prints one line such as `infer 0.1.0 (avx2)`.
pub fn run() -> Result<()> {
    let isa = Isa::from_env()?;
    output::print(&format!("infer {} ({})\n", env!("CARGO_PKG_VERSION"), isa.name()))
}
