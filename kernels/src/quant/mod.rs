//! The formats of quantized weights. The scalar code here is their specification.
//!
//! Rows are independent and lie one after the other, so any run of rows can be packed by itself.

pub mod int4;
pub mod int8;

/// The version of what packed bytes are and mean. Files of packed weights name it, and those of another version are not
/// read: it grows with every change of a layout, a table, or of what a search chooses.
pub const LAYOUT_VERSION: u32 = 1;

/// A weight that the search can work with: what is not finite counts as 0, and magnitudes above 1e30 are cut,
/// so that sums of squares stay finite in double precision and results are defined for any bytes of a file.
fn sanitize(weight: f32) -> f32 {
    if weight.is_finite() { weight.clamp(-1e30, 1e30) } else { 0.0 }
}
