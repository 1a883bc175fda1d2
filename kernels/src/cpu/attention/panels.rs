//! The panels of one step of a head, and asking for those of the next.

use crate::cpu::Isa;
use crate::cpu::isa::STEP_BLOCKS;
use crate::cpu::kv::{BLOCK_TOKENS, PANEL, Stored};

/// The panels of a step as they are stored; behind the n-th there are none.
pub(super) struct Panels<'a, T> {
    pub n: usize,
    pub keys: [&'a [T]; STEP_BLOCKS],
    pub values: [&'a [T]; STEP_BLOCKS],
}

impl<'a, T: Stored> Panels<'a, T> {
    /// What is asked for while the keys of this step are multiplied, and while its values are: the next, or these again
    /// where no next are.
    pub fn ahead(&self, next: &Panels<'a, T>) -> [[&'a [u8]; STEP_BLOCKS]; 2] {
        let of = |own: &[&'a [T]; STEP_BLOCKS], next_panels: &[&'a [T]; STEP_BLOCKS]| {
            std::array::from_fn(|i| bytemuck::cast_slice(if i < next.n { next_panels[i] } else { own[i] }))
        };
        [of(&self.keys, &next.keys), of(&self.values, &next.values)]
    }

    /// Asks for all of them at once.
    pub fn ask(&self, isa: Isa) {
        for (keys, values) in self.keys.iter().zip(self.values) {
            isa.prefetch(keys);
            isa.prefetch(values);
        }
    }
}

/// Sets the values of the slots from `used` on to 0.
pub(super) fn clear_slots<P: Stored>(values: &mut [P], used: usize) {
    for pairs in values.as_chunks_mut::<{ 2 * PANEL }>().0.chunks_exact_mut(BLOCK_TOKENS / 2) {
        for slot in used..BLOCK_TOKENS {
            pairs[slot / 2].iter_mut().skip(slot % 2).step_by(2).for_each(|value| *value = P::default());
        }
    }
}
