//! A session after any row of operations against a fresh one that is given its tokens at once.

mod support;

use infer_runtime::{LoadOptions, Model};
use support::{TOLERANCE, answer, difference, exact, greedy, root};

/// A small generator of numbers below `n`, the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n
    }

    fn tokens(&mut self, n: usize) -> Vec<u32> {
        (0..n).map(|_| 3 + self.below(90) as u32).collect()
    }
}

#[test]
fn after_any_operations_a_session_equals_a_fresh_one_with_its_tokens() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("session.cache");
    for (seed, name) in ["llama-gqa", "mistral-window", "gemma2", "phi3-longrope-crossing", "phimoe-longrope-crossing"]
        .into_iter()
        .enumerate()
    {
        let options = LoadOptions { context: Some(80), beyond_context: true, ..exact() };
        let model = Model::load(root().join("tests/golden/models").join(name), options).expect("the model loads");
        let mut numbers = Numbers(seed as u64 + 1);
        let (mut session, mut expected) = (model.session(), Vec::new());
        let mut log = Vec::new();
        for _ in 0..60 {
            let room = model.context() - expected.len();
            let operation = numbers.below(7);
            match operation {
                0 | 1 => {
                    let n = room.min(numbers.below(25));
                    let tokens = numbers.tokens(n);
                    session.prefill(&tokens).expect("prefill");
                    expected.extend(tokens);
                }
                2 => {
                    let len = numbers.below(expected.len() + 1);
                    session.truncate(len);
                    expected.truncate(len);
                }
                3 if !expected.is_empty() => {
                    let found = answer(&mut session, greedy(numbers.below(6)));
                    expected.extend(found.ids);
                }
                4 => {
                    expected.truncate(numbers.below(expected.len() + 1));
                    let n = numbers.below(12).min(model.context() - expected.len());
                    expected.extend(numbers.tokens(n));
                    session.sync_to(&expected).expect("sync");
                }
                5 => {
                    let mut fork = session.fork();
                    std::mem::swap(&mut fork, &mut session);
                    fork.truncate(numbers.below(expected.len() + 1));
                    let room = model.context() - fork.tokens().len();
                    fork.prefill(&numbers.tokens(3.min(room))).expect("prefill");
                }
                _ => {
                    session.save(&path).expect("saving");
                    session = model.session();
                    session.restore(&path).expect("restoring");
                }
            }
            log.push((operation, expected.len()));
            assert_eq!(session.tokens(), expected, "{name}: {log:?}");
            if expected.is_empty() {
                continue;
            }
            let mut probe = session.fork();
            probe.prefill(&[]).expect("the last token runs");
            let mut fresh = model.session();
            fresh.prefill(&expected).expect("prefill");
            let difference = difference(probe.logits().expect("logits"), fresh.logits().expect("logits"));
            assert!(difference <= TOLERANCE, "{name}: {difference} apart after {log:?}");
        }
    }
}
