//! The formats of quantized weights, and of activations for integer arithmetic. The scalar code here is their
//! specification.
//!
//! # Panels
//! A packed matrix is cut into panels of 16 rows, one after the other, and a panel into steps of 64 inputs.
//! Codes and scales of a step lie together, so a kernel reads a matrix front to back as one stream, and the
//! layout is the same for every instruction set: within a step, four neighbouring inputs of 16 rows are 64
//! bytes, `byte 4 r + i = input 4 q + i of row r`, which is what an instruction that sums products of four
//! bytes in each lane wants. Rows and inputs that a matrix does not have are zeros. Panels are independent, so
//! any run of whole panels can be packed by itself.

pub mod inputs;
pub mod int4;
pub(crate) mod int4_search;
pub mod int8;
pub(crate) mod product;
pub mod stored;

use std::ops::{Deref, DerefMut};

/// The version of what packed bytes are and mean. Files of packed weights name it, and those of another version are not
/// read: it grows with every change of a layout, a table, or of what a search chooses.
pub const LAYOUT_VERSION: u32 = 2;

/// Rows of a panel.
pub const PANEL_ROWS: usize = 16;

/// Inputs of a step.
pub(crate) const STEP: usize = 64;

/// Neighbouring inputs of one row whose products an instruction sums.
pub(crate) const QUAD: usize = 4;

/// One value for each row of a panel: a register, and a cache line.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C, align(64))]
pub(crate) struct Lanes(pub [f32; PANEL_ROWS]);

// SAFETY: sixteen values of four bytes have the size of the alignment, so there is no padding, and zeros are values.
unsafe impl bytemuck::Zeroable for Lanes {}
// SAFETY: as above, and every bit pattern is a value.
unsafe impl bytemuck::Pod for Lanes {}

impl Deref for Lanes {
    type Target = [f32; PANEL_ROWS];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Lanes {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

/// A weight that the search can work with: what is not finite counts as 0, and magnitudes above 1e30 are cut,
/// so that sums of squares stay finite in double precision and results are defined for any bytes of a file.
#[inline(always)]
fn sanitize(weight: f32) -> f32 {
    if weight.is_finite() { weight.clamp(-1e30, 1e30) } else { 0.0 }
}

/// The rows of each panel of `source`, which has whole rows of `cols` weights.
#[inline(always)]
fn panels(source: &[f32], cols: usize) -> impl Iterator<Item = &[f32]> {
    assert!(cols > 0 && source.len().is_multiple_of(cols), "{} weights in rows of {cols}", source.len());
    source.chunks(PANEL_ROWS * cols)
}
