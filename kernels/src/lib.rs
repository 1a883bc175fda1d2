//! Arithmetic of language models. Knows no file, no model and no tokenizer: slices in, slices out.
//!
//! # What a kernel may assume
//! - Shapes agree. A safe entry point asserts them, and the message names what it expected and what it
//!   found: a mismatch is an error of the calling program and cannot come from a model file. Bytes that do
//!   come from a file enter through [`MatrixRef`], which returns a [`KernelError`].
//! - Activations are `f32`, and sums of products are `f32` over several lanes. A caller may ask for products of
//!   fewer bits ([`Arithmetic::Reduced`]): in integers with quantized weights, of bf16 with bf16 weights and in
//!   attention where the CPU has instructions for them.
//!   Values that are not finite give results that are not finite, never a panic.
//! - Work is split by shapes alone, and each output is summed by one task in one order, so results are
//!   bit-equal for any number of threads.
//!
//! # How an instruction set is chosen
//! Once, at run time: [`Isa::from_env`] reads `INFER_ISA` and falls back to [`Isa::best`]. An [`Isa`] exists
//! only if this CPU has been asked for it, so carrying one is the proof that its kernels may be called.
//! Tiers differ by the rounding of floats only (to bf16 in reduced products, where a tier has them), and in
//! integer products not at all.
//!
//! # Example
//! A product of one token with a 3 x 4 matrix of bfloat16, on two threads:
//! ```
//! use half::bf16;
//! use infer_kernels::{Arithmetic, Dense, Isa, MatrixRef, Projection, Store, Team, matmul};
//!
//! let values: Vec<bf16> = (0..12).map(|i| bf16::from_f32(i as f32)).collect();
//! let weight = MatrixRef::Bf16(Dense::new(&values, 3, 4)?);
//! let team = Team::new(2, Isa::from_env()?)?;
//! let mut out = [0.0; 3];
//! team.run(|crew| {
//!     let group = [Projection { weight, bias: None }];
//!     matmul(crew, &[1.0, 0.0, 0.0, 1.0], 1, &group, Arithmetic::Exact, Store::Set, &mut out);
//! });
//! assert_eq!(out, [3.0, 11.0, 19.0]);
//! # Ok::<(), infer_kernels::KernelError>(())
//! ```

pub mod cpu;
pub mod error;
pub mod quant;

pub use cpu::Isa;
pub use cpu::activation::{Activation, activate, activate_gated, softcap};
pub use cpu::attention::{AttentionShape, BlockTable, QueryRow, attend};
pub use cpu::crew::Crew;
pub use cpu::kv::{BLOCK_TOKENS, CacheSlot, KvBlocks, KvLayout, KvType, append};
pub use cpu::matmul::{Arithmetic, Gated, Projection, Store, matmul};
pub use cpu::matrix::{Dense, ElementType, MatrixRef};
pub use cpu::moe::{Choice, Routing, route};
pub use cpu::norm::{layer_norm, rms_norm};
pub use cpu::rope::rotate;
pub use cpu::team::Team;
pub use error::KernelError;
