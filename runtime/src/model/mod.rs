//! The model: its facts, its weights and its forward pass.

pub(crate) mod engine;
pub(crate) mod forward;
pub(crate) mod linear;
pub(crate) mod rope;
pub mod spec;
pub(crate) mod weights;
