//! A loaded model that computes: weights on a backend, the pool of cache blocks, and the forward pass over batches.

use std::sync::Arc;

use crate::backend::batch::Batch;
use crate::backend::{Backend, KvAddress};
use crate::error::{Error, Result};
use crate::generate::CancelToken;
use crate::kv_cache::{KvPool, LayerSlot, Sequence};
use crate::model::clock::Clock;
use crate::model::forward::forward;
use crate::model::rope::{RopeRows, long_factors_beyond};
use crate::model::spec::Spec;
use crate::quantize::keeping::Keeping;
use infer_kernels::cpu::kv::{BLOCK_TOKENS, KvType};

/// The most rows of one forward pass: prefill weights are read once for so many tokens.
pub(crate) const MAX_ROWS: usize = 512;

/// Spec, weights and cache of one model. One forward pass at a time; callers wait.
pub(crate) struct Engine {
    spec: Arc<Spec>,
    backend: Backend,
    pool: Arc<KvPool>,
    slots: Vec<LayerSlot>,
    /// What keeps the weights, if they have just been quantized.
    keeping: Option<Keeping>,
    clock: Clock,
    /// Total length above which longrope uses its long factors.
    long_factors_beyond: Option<usize>,
}

/// New tokens of one sequence in a batch.
pub(crate) struct BatchPart<'a> {
    /// Where they are appended.
    pub sequence: &'a mut Sequence,
    /// The tokens.
    pub tokens: &'a [u32],
    /// Total length that the rotary frequencies are for: the whole prompt in prefill, the current length in decode.
    pub rope_length: usize,
    /// Rows whose logits are wanted.
    pub logits: LogitRows,
}

/// Which rows' logits are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogitRows {
    None,
    Last,
    All,
}

/// Logits of the rows that were asked for, part after part.
#[derive(Debug, Clone)]
pub struct Logits {
    values: Vec<f32>,
    vocab_size: usize,
}

impl Logits {
    pub(crate) fn new(values: Vec<f32>, vocab_size: usize) -> Logits {
        Logits { values, vocab_size }
    }

    /// All values, [n_rows, vocab_size].
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// All values, [n_rows, vocab_size].
    pub fn into_values(self) -> Vec<f32> {
        self.values
    }

    /// Number of values in a row.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.values.len() / self.vocab_size
    }

    /// The logits of one row, `[vocab_size]`.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.vocab_size..(row + 1) * self.vocab_size]
    }
}

impl Engine {
    pub fn new(
        spec: Arc<Spec>,
        backend: Backend,
        pool: Arc<KvPool>,
        slots: Vec<LayerSlot>,
        keeping: Option<Keeping>,
    ) -> Engine {
        let long_factors_beyond = spec.ropes.iter().find_map(long_factors_beyond);
        Engine { spec, backend, pool, slots, keeping, clock: Clock::default(), long_factors_beyond }
    }

    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// What keeps the weights, if they have just been quantized.
    pub fn keeping(&self) -> Option<&Keeping> {
        self.keeping.as_ref()
    }

    /// The clock of its passes.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// An empty sequence.
    pub fn new_sequence(&self) -> Sequence {
        Sequence::new(Arc::clone(&self.pool))
    }

    /// A sequence of `len` tokens whose keys and values are then written by [`Self::write_kv`].
    pub fn sequence_with_room(&self, len: usize, long_factors: bool) -> Result<Sequence> {
        let sequence = Sequence::with_room(Arc::clone(&self.pool), len, long_factors)?;
        self.backend.make_room(&self.pool, [&sequence].into_iter())?;
        Ok(sequence)
    }

    /// What the cache stores a value as.
    pub fn kv_type(&self) -> KvType {
        self.pool.groups().first().map_or(KvType::F32, |group| group.layout.kv_type)
    }

    /// Whether the cached keys carry other longrope factors than a total of `rope_length` tokens needs: the sequence
    /// must then be emptied and its tokens computed anew.
    pub fn needs_recompute(&self, sequence: &Sequence, rope_length: usize) -> bool {
        sequence.len() > 0 && sequence.long_factors() != self.wants_long_factors(rope_length)
    }

    fn wants_long_factors(&self, rope_length: usize) -> bool {
        self.long_factors_beyond.is_some_and(|border| rope_length > border)
    }

    /// Appends tokens to one or several sequences and returns the logits of the rows asked for, part after part and
    /// row after row. Runs in passes of at most [`MAX_ROWS`] rows.
    ///
    /// If it fails half-way or is cancelled, each sequence holds the tokens of the passes that were done; see
    /// [`Sequence::len`].
    pub fn forward(&self, parts: &mut [BatchPart<'_>], cancel: &CancelToken) -> Result<Logits> {
        self.check(parts)?;
        self.keeping().map_or(Ok(()), Keeping::check)?;
        let mut logits = Logits { values: Vec::new(), vocab_size: self.spec.vocab_size };
        let mut done = vec![0; parts.len()];
        loop {
            let mut room = MAX_ROWS;
            let remaining = parts.iter().zip(&done).map(|(part, done)| part.tokens.len() - done);
            let counts: Vec<usize> = remaining
                .map(|remaining| {
                    let count = remaining.min(room);
                    room -= count;
                    count
                })
                .collect();
            if room == MAX_ROWS {
                return Ok(logits);
            }
            self.clock.time_pass(|| self.pass(parts, &done, &counts, &mut logits.values, cancel))?;
            for (done, count) in done.iter_mut().zip(counts) {
                *done += count;
            }
        }
    }

    fn check(&self, parts: &[BatchPart<'_>]) -> Result<()> {
        for part in parts {
            if let Some(token) = part.tokens.iter().find(|&&token| token as usize >= self.spec.vocab_size) {
                return Err(Error::InvalidOption {
                    option: "tokens",
                    expected: format!("ids below {}, the size of the vocabulary", self.spec.vocab_size),
                    found: token.to_string(),
                });
            }
            let needed = part.sequence.len().saturating_add(part.tokens.len());
            if let (Some(_), Some(context)) = (&self.spec.embedding.positions, self.spec.context_length)
                && needed > context
            {
                return Err(Error::ContextFull { needed, context });
            }
            assert!(
                !self.needs_recompute(part.sequence, part.rope_length),
                "a sequence whose keys have other longrope factors must be emptied before more tokens are appended"
            );
        }
        Ok(())
    }

    /// One pass over `counts[i]` tokens of each part i from token `done[i]` on.
    fn pass(
        &self,
        parts: &mut [BatchPart<'_>],
        done: &[usize],
        counts: &[usize],
        logits: &mut Vec<f32>,
        cancel: &CancelToken,
    ) -> Result<()> {
        let mut copies = Vec::new();
        let reserved = parts.iter_mut().zip(counts).filter(|&(_, &count)| count > 0).try_for_each(|(part, &count)| {
            if part.sequence.len() == 0 {
                part.sequence.set_long_factors(self.wants_long_factors(part.rope_length));
            }
            part.sequence.reserve(count, &mut copies)
        });
        if let Err(error) = self.backend.make_room(&self.pool, parts.iter().map(|part| &*part.sequence)) {
            parts.iter_mut().for_each(|part| part.sequence.take_back(&copies));
            return Err(error);
        }
        self.backend.copy_blocks(&copies);
        self.pool.copied(&copies);
        reserved?;

        let mut batch = Batch {
            tokens: Vec::new(),
            positions: Vec::new(),
            row_sequence: Vec::new(),
            sequences: parts.iter().map(|part| &*part.sequence).collect(),
            ropes: vec![RopeRows::default(); self.spec.ropes.len()],
            logit_rows: Vec::new(),
        };
        for (rows, rope) in batch.ropes.iter_mut().zip(&self.spec.ropes) {
            rows.clear(rope);
        }
        for (index, (part, (&done, &count))) in parts.iter().zip(done.iter().zip(counts)).enumerate() {
            let start = part.sequence.len();
            let first_row = batch.tokens.len();
            batch.tokens.extend_from_slice(&part.tokens[done..done + count]);
            batch.positions.extend(start..start + count);
            batch.row_sequence.resize(first_row + count, index);
            for (rows, rope) in batch.ropes.iter_mut().zip(&self.spec.ropes) {
                rows.extend(rope, part.rope_length, start..start + count);
            }
            match part.logits {
                LogitRows::All => batch.logit_rows.extend(first_row..first_row + count),
                LogitRows::Last if count > 0 && done + count == part.tokens.len() => {
                    batch.logit_rows.push(first_row + count - 1);
                }
                LogitRows::Last | LogitRows::None => {}
            }
        }
        let first_value = logits.len();
        let mut finished = false;
        self.backend.run(&self.pool, &batch, logits, |pass| finished = forward(&self.spec, pass, &self.clock, cancel));
        if !finished {
            return Err(Error::Cancelled);
        }
        for (values, &row) in logits[first_value..].chunks_exact(self.spec.vocab_size).zip(&batch.logit_rows) {
            if let Some(token) = values.iter().position(|value| !value.is_finite()) {
                return Err(Error::NotFinite { position: batch.positions[row], token });
            }
        }
        drop(batch);
        for (part, &count) in parts.iter_mut().zip(counts) {
            part.sequence.advance(count);
        }
        Ok(())
    }

    /// The cached key and value, each [n_kv_heads * head_dim], of one token in one layer. `None` where a window has
    /// given the token back.
    pub fn read_kv(&self, sequence: &Sequence, layer: usize, position: usize, kv: (&mut [f32], &mut [f32])) -> bool {
        let Some(address) = self.address(sequence, layer, position) else { return false };
        self.backend.read_kv(address, kv.0, kv.1);
        true
    }

    /// Overwrites the cached key and value of one token in one layer. The sequence must have reserved room for it.
    pub fn write_kv(&self, sequence: &Sequence, layer: usize, position: usize, kv: (&[f32], &[f32])) -> bool {
        let Some(address) = self.address(sequence, layer, position) else { return false };
        self.backend.write_kv(address, kv.0, kv.1);
        true
    }

    fn address(&self, sequence: &Sequence, layer: usize, position: usize) -> Option<KvAddress> {
        let slot = self.slots.get(layer)?;
        let list = sequence.list(slot.group);
        let index = (position / BLOCK_TOKENS).checked_sub(list.first_block)?;
        let block = *list.blocks.get(index)?;
        Some(KvAddress { group: slot.group, block, layer: slot.layer, slot: position % BLOCK_TOKENS })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Compute, LoadOptions, Model};

    /// The largest difference between values that should be near.
    fn difference(a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    fn part<'a>(sequence: &'a mut Sequence, tokens: &'a [u32], logits: LogitRows) -> BatchPart<'a> {
        // One length for all, so that no sequence crosses the border of longrope.
        BatchPart { sequence, tokens, rope_length: 64, logits }
    }

    #[test]
    fn several_sequences_in_one_batch_equal_each_alone() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/models");
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let options = LoadOptions { compute: Compute::F32, threads: Some(2), ..LoadOptions::default() };
            let model = Model::load(&path, options).unwrap();
            let (engine, never) = (model.engine(), CancelToken::default());
            let tokens: Vec<u32> = (0..40).map(|index| 3 + index * 17 % 90).collect();
            // Prompts of several lengths, then one more token for each: one batch of 76 rows, one of 4.
            let prompts = [&tokens[..33], &tokens[3..5], &tokens[..], &tokens[7..8]];
            let next = [[9], [10], [11], [12]];
            let mut together: [Sequence; 4] = std::array::from_fn(|_| engine.new_sequence());
            for texts in [prompts, next.each_ref().map(<[u32; 1]>::as_slice)] {
                let alone = together.iter().zip(texts).map(|(sequence, text)| {
                    let mut fork = sequence.fork();
                    engine.forward(&mut [part(&mut fork, text, LogitRows::All)], &never).unwrap().into_values()
                });
                let alone: Vec<f32> = alone.collect::<Vec<_>>().concat();
                let parts = together.iter_mut().zip(texts);
                let mut parts: Vec<_> = parts.map(|(sequence, text)| part(sequence, text, LogitRows::All)).collect();
                let found = engine.forward(&mut parts, &never).unwrap();
                let difference = difference(found.values(), &alone);
                assert!(difference <= 1e-4, "{}: {difference} apart", path.display());
            }
            let lengths = together.each_ref().map(Sequence::len);
            assert_eq!(lengths, [34, 3, 41, 2], "{}", path.display());
        }
    }

    #[test]
    fn only_the_rows_asked_for_are_computed() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/models/llama-gqa");
        let model = Model::load(folder, LoadOptions::default()).unwrap();
        let (engine, never) = (model.engine(), CancelToken::default());
        let mut sequences: [Sequence; 3] = std::array::from_fn(|_| engine.new_sequence());
        let wanted = [LogitRows::None, LogitRows::Last, LogitRows::All];
        let mut parts: Vec<_> =
            sequences.iter_mut().zip(wanted).map(|(sequence, rows)| part(sequence, &[5, 6, 7], rows)).collect();
        let logits = engine.forward(&mut parts, &never).unwrap();
        assert_eq!(logits.n_rows(), 1 + 3);
        assert_eq!(logits.row(0), logits.row(3), "the last row of two equal sequences");
    }
}
