//! Several sessions in one forward pass: the weights are read once for all of them.

use std::time::Instant;

use super::Session;
use crate::error::{Error, Result};
use crate::generate::CancelToken;
use crate::model::Model;
use crate::model::engine::{BatchPart, LogitRows};

impl Model {
    /// Appends tokens to several sessions of this model and runs them through it together, so that the weights are read
    /// once for all. Then [`Session::logits`] of each are those of its last token. Decoding for several users is this
    /// call with one token each:
    ///
    /// ```
    /// use infer_runtime::{LoadOptions, Model, Session};
    ///
    /// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../cli/demo");
    /// let model = Model::load(folder, LoadOptions::default())?;
    /// let mut sessions = [model.session(), model.session()];
    /// let [a, b] = &mut sessions;
    /// model.forward_batch(&mut [(a, &[5, 6, 7]), (b, &[8])])?;
    /// assert!(sessions.iter().all(|session| session.logits().is_some()));
    /// # Ok::<(), infer_runtime::Error>(())
    /// ```
    ///
    /// # Errors
    /// Before anything is computed, those of [`Session::prefill`] for each session, and [`Error::InvalidOption`] for a
    /// session of another model. Half-way [`Error::NotFinite`] or [`Error::Memory`]: [`Session::tokens`] say how far
    /// each came.
    pub fn forward_batch(&self, batch: &mut [(&mut Session, &[u32])]) -> Result<()> {
        for (session, new) in batch.iter() {
            if !self.is_clone_of(&session.model) {
                return Err(Error::InvalidOption {
                    option: "batch",
                    expected: "sessions of this model".to_owned(),
                    found: "one of another".to_owned(),
                });
            }
            session.check(session.tokens.len(), new)?;
        }
        let began = Instant::now();
        let engine = self.engine();
        // What each cache lacks: as a rule the new tokens.
        let mut missing: Vec<Vec<u32>> = Vec::with_capacity(batch.len());
        for (session, new) in batch.iter_mut() {
            let total = session.tokens.len() + new.len();
            if engine.needs_recompute(&session.sequence, total) {
                session.truncate_cache(0);
            }
            // Nothing is new, but the logits are gone.
            if session.sequence.len() == total && session.logits.is_empty() && total > 0 {
                session.truncate_cache(total - 1);
            }
            let old = session.tokens.get(session.sequence.len()..).unwrap_or_default();
            missing.push([old, new].concat());
        }
        let mut parts: Vec<BatchPart<'_>> = Vec::with_capacity(batch.len());
        for ((session, new), missing) in batch.iter_mut().zip(&missing) {
            if !missing.is_empty() {
                session.logits.clear();
            }
            parts.push(BatchPart {
                rope_length: session.tokens.len() + new.len(),
                sequence: &mut session.sequence,
                tokens: missing,
                logits: LogitRows::Last,
            });
        }
        let computed = engine.forward(&mut parts, &CancelToken::default());
        drop(parts);
        for (session, new) in batch.iter_mut() {
            let n_new = session.sequence.len().saturating_sub(session.tokens.len());
            session.tokens.extend_from_slice(new.get(..n_new).unwrap_or_default());
        }
        let logits = computed?;
        let mut rows = (0..logits.n_rows()).map(|row| logits.row(row));
        for ((session, _), missing) in batch.iter_mut().zip(&missing) {
            if !missing.is_empty() {
                session.logits.extend_from_slice(rows.next().unwrap_or_default());
                session.work.n_tokens += missing.len();
                session.work.time += began.elapsed();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Compute, LoadOptions};

    fn demo() -> Model {
        let options = LoadOptions { compute: Compute::F32, threads: Some(2), ..LoadOptions::default() };
        Model::load(concat!(env!("CARGO_MANIFEST_DIR"), "/../cli/demo"), options).expect("the demo")
    }

    fn assert_near(found: Option<&[f32]>, expected: Option<&[f32]>, what: &str) {
        let (found, expected) = (found.expect(what), expected.expect(what));
        let difference = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(found.len() == expected.len() && difference < 1e-4, "{what}: {difference} apart");
    }

    #[test]
    fn sessions_in_one_batch_are_as_each_alone() {
        let model = demo();
        let texts: [&[u32]; 4] = [&[5, 6, 7, 8], &[9], &[], &[10, 11]];
        let mut together: [Session; 4] = std::array::from_fn(|_| model.session());
        let mut alone: [Session; 4] = std::array::from_fn(|_| model.session());
        for round in 0..2 {
            let mut batch: Vec<_> = together.iter_mut().zip(texts).collect();
            model.forward_batch(&mut batch).expect("a pass");
            for (index, (session, text)) in alone.iter_mut().zip(texts).enumerate() {
                session.prefill(text).expect("a pass");
                assert_eq!(together[index].tokens(), session.tokens());
                if index != 2 {
                    assert_near(together[index].logits(), session.logits(), &format!("round {round}, {index}"));
                }
            }
        }
        assert!(together[2].logits().is_none(), "an empty session has no logits");
    }

    #[test]
    fn what_a_batch_finds_missing_is_computed() {
        let model = demo();
        let mut session = model.session();
        session.prefill(&[5, 6, 7]).expect("a pass");
        let expected = session.fork();
        session.truncate(2);
        session.push_drawn(7);
        model.forward_batch(&mut [(&mut session, &[])]).expect("a pass");
        assert_near(session.logits(), expected.logits(), "a token that was drawn");
        session.prefill(&[8]).expect("a pass");
        session.truncate(3);
        model.forward_batch(&mut [(&mut session, &[])]).expect("a pass");
        assert_near(session.logits(), expected.logits(), "logits that were forgotten");
    }

    #[test]
    fn a_batch_with_a_bad_part_changes_nothing() {
        let (model, other) = (demo(), demo());
        let (mut a, mut b, mut foreign) = (model.session(), model.session(), other.session());
        let context = model.context();
        let long = vec![1; context + 1];
        let error = model.forward_batch(&mut [(&mut a, &[1]), (&mut b, &[u32::MAX])]).expect_err("a bad token");
        assert!(matches!(error, Error::InvalidOption { option: "tokens", .. }), "{error}");
        let error = model.forward_batch(&mut [(&mut a, &[1]), (&mut b, &long)]).expect_err("too long");
        assert!(matches!(error, Error::ContextFull { .. }), "{error}");
        let error = model.forward_batch(&mut [(&mut a, &[1]), (&mut foreign, &[1])]).expect_err("another model");
        assert!(matches!(error, Error::InvalidOption { option: "batch", .. }), "{error}");
        assert!(a.tokens().is_empty() && b.tokens().is_empty() && foreign.tokens().is_empty());
    }
}
