//! What a forward pass works on: the rows of one batch.

use crate::kv_cache::Sequence;
use crate::model::rope::RopeRows;

/// Rows of one forward pass. A row is one token of one sequence.
pub(crate) struct Batch<'a> {
    /// Token id of each row.
    pub tokens: Vec<u32>,
    /// Position of each row in its sequence.
    pub positions: Vec<usize>,
    /// Index into `sequences` of each row.
    pub row_sequence: Vec<usize>,
    /// The sequences, with room for their new tokens.
    pub sequences: Vec<&'a Sequence>,
    /// Cosines and sines of each row, one entry for each rotary embedding of the model.
    pub ropes: Vec<RopeRows>,
    /// Rows whose logits are wanted, in order.
    pub logit_rows: Vec<usize>,
}

impl Batch<'_> {
    pub fn n_rows(&self) -> usize {
        self.tokens.len()
    }
}
