//! Memory that starts with a cache line, for values of any plain type: vectors of 64 bytes that lie across two lines
//! take two loads.

use bytemuck::{Pod, Zeroable};

/// A cache line's bytes.
const LINE: usize = 64;

#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; LINE]);

/// A growing piece of memory, and at first empty.
#[derive(Debug, Default)]
pub(super) struct Lines(Vec<Line>);

impl Lines {
    /// The first `n` values, whatever they are, after making room for them.
    pub fn room<T: Pod>(&mut self, n: usize) -> &mut [T] {
        let n_lines = (n * size_of::<T>()).div_ceil(LINE);
        if self.0.len() < n_lines {
            self.0.resize(n_lines, Line([0; LINE]));
        }
        &mut self.all_mut()[..n]
    }

    /// All values that have room.
    fn all_mut<T: Pod>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}
