//! Sessions of the demo model: threads, forks, undoing, cancelling, and where answers end.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use infer_runtime::{
    CancelToken, Error, Event, GenerateOptions, LoadOptions, Model, SamplingOptions, StopReason, StopTokens,
    WeightFormat,
};
use rayon::prelude::*;
use support::{answer, bits, demo, encode, exact, exact_demo, greedy, root, session_with};

/// Options for text that a seed decides.
fn sampled(seed: u64) -> GenerateOptions {
    let sampling = SamplingOptions { temperature: 0.9, top_p: 0.95, seed: Some(seed), ..SamplingOptions::plain() };
    GenerateOptions { sampling: Some(sampling), ..greedy(24) }
}

/// The answer to prompt number `index`, with the bits of the last logits.
fn run_prompt(model: &Model, index: usize) -> (String, Vec<u32>) {
    const PROMPTS: [&str; 4] = ["Once upon a time", "The fox said to the wolf", "There was a king", "In a deep forest"];
    let mut session = session_with(model, PROMPTS[index % PROMPTS.len()]);
    let answer = answer(&mut session, sampled(index as u64));
    session.prefill(&[]).expect("the last token runs");
    (answer.text, bits(session.logits()))
}

#[test]
fn four_sessions_on_four_threads_over_a_team_of_two_equal_one_after_the_other() {
    let model = exact_demo();
    let serial: Vec<_> = (0..4).map(|index| run_prompt(&model, index)).collect();
    let parallel: Vec<_> = std::thread::scope(|scope| {
        let model = &model;
        let threads: Vec<_> = (0..4).map(|index| scope.spawn(move || run_prompt(model, index))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a session")).collect()
    });
    assert_eq!(parallel, serial);
}

#[test]
fn eight_sessions_from_rayons_global_pool_equal_one_after_the_other() {
    let model = exact_demo();
    let serial: Vec<_> = (0..8).map(|index| run_prompt(&model, index)).collect();
    let parallel: Vec<_> = (0..8usize).into_par_iter().map(|index| run_prompt(&model, index)).collect();
    assert_eq!(parallel, serial);
}

#[test]
fn a_session_goes_on_in_another_thread_after_its_models_handle_is_gone() {
    let model = exact_demo();
    let expected = answer(&mut session_with(&model, "Once upon a time"), greedy(10));
    let mut session = session_with(&model, "Once upon a time");
    drop(model);
    let thread = std::thread::spawn(move || answer(&mut session, greedy(10)));
    assert_eq!(thread.join().expect("a thread"), expected);
}

#[test]
fn text_is_the_same_for_any_number_of_threads() {
    for weights in [WeightFormat::AsStored, WeightFormat::Int8, WeightFormat::Int4] {
        let with = |threads| {
            let options = LoadOptions { weights, threads: Some(threads), ..LoadOptions::default() };
            run_prompt(&Model::load(demo(), options).expect("the demo model loads"), 1)
        };
        let one = with(1);
        for threads in [2, 3] {
            assert_eq!(with(threads), one, "{weights:?}: {threads} threads differ from one");
        }
    }
}

#[test]
fn a_model_from_memory_equals_the_one_from_its_folder() {
    let entries = std::fs::read_dir(demo()).expect("the demo model");
    let files = entries.map(|entry| {
        let path = entry.expect("an entry").path();
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
        (name, std::fs::read(&path).expect("a file").into())
    });
    let model = Model::from_bytes(files.collect(), exact()).expect("the demo model loads from memory");
    assert_eq!(run_prompt(&model, 0), run_prompt(&exact_demo(), 0));
}

#[test]
fn the_same_seed_gives_the_same_text_and_another_seed_another() {
    let model = exact_demo();
    let text = |seed| answer(&mut session_with(&model, "Once upon a time"), sampled(seed)).text;
    assert_eq!(text(1), text(1));
    assert_ne!(text(1), text(2));
}

#[test]
fn a_fork_goes_its_own_way_and_leaves_the_first_as_it_was() {
    let model = exact_demo();
    let expected = answer(&mut session_with(&model, "Once upon a time"), greedy(40));
    let mut first = session_with(&model, "Once upon a time");
    let mut second = first.fork();
    // In turn, so that each writes while the other holds shared blocks.
    for _ in 0..20 {
        answer(&mut second, sampled(7));
        second.truncate(first.tokens().len());
        answer(&mut first, greedy(2));
        second = first.fork();
    }
    let prompt = encode(&model, "Once upon a time").len();
    assert_eq!(first.tokens()[prompt..], expected.ids);
    drop(first);
    assert_eq!(second.tokens()[prompt..], expected.ids, "a fork outlives the session it was made from");
    answer(&mut second, greedy(3));
}

#[test]
fn forks_that_write_at_once_do_not_meet() {
    let model = exact_demo();
    let base = session_with(&model, "Once upon a time there was a poor miller who had a daughter");
    let alone = |index: usize| {
        let mut tokens = base.tokens()[..base.tokens().len() - 1 - index % 3].to_vec();
        tokens.extend([300 + index as u32, 301]);
        tokens
    };
    let expected: Vec<Vec<u32>> = (0..64)
        .map(|index| {
            let mut session = model.session();
            session.prefill(&alone(index)).expect("prefill");
            answer(&mut session, greedy(3)).ids
        })
        .collect();
    // From four threads at once: each fork copies the shared last block and writes into its own.
    let found: Vec<Vec<u32>> = std::thread::scope(|scope| {
        let (base, alone) = (&base, &alone);
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                scope.spawn(move || {
                    let indices = thread * 16..(thread + 1) * 16;
                    let run = |index| {
                        let mut fork = base.fork();
                        fork.sync_to(&alone(index)).expect("sync");
                        answer(&mut fork, greedy(3)).ids
                    };
                    indices.map(run).collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a thread")).collect()
    });
    assert_eq!(found, expected);
}

#[test]
fn truncating_and_generating_again_gives_the_same() {
    let model = exact_demo();
    let mut session = session_with(&model, "The king had three sons");
    let prompt_len = session.tokens().len();
    let first = answer(&mut session, greedy(40));
    for keep in [prompt_len, prompt_len + 1, prompt_len + 17] {
        session.truncate(keep);
        assert_eq!(session.logits(), None, "logits of a token that is gone");
        let again = answer(&mut session, greedy(40 - (keep - prompt_len)));
        assert_eq!(again.ids, first.ids[keep - prompt_len..], "after truncating to {keep}");
    }
    session.truncate(0);
    assert!(session.tokens().is_empty());
    session.prefill(&encode(&model, "The king had three sons")).expect("prefill");
    assert_eq!(answer(&mut session, greedy(40)), first);
}

#[test]
fn an_answer_in_parts_equals_one_in_one() {
    let model = exact_demo();
    let whole = answer(&mut session_with(&model, "Once upon a time"), greedy(30));
    let mut session = session_with(&model, "Once upon a time");
    let mut ids = Vec::new();
    for n in [1, 0, 9, 20] {
        let part = answer(&mut session, greedy(n));
        assert_eq!(part.reason, StopReason::MaxTokens);
        ids.extend(part.ids);
    }
    assert_eq!(ids, whole.ids);
}

#[test]
fn a_dropped_generation_leaves_the_tokens_that_were_given_out() {
    let model = exact_demo();
    let whole = answer(&mut session_with(&model, "Once upon a time"), greedy(12));
    for taken in [0, 1, 5] {
        let mut session = session_with(&model, "Once upon a time");
        let prompt_len = session.tokens().len();
        let events: Vec<_> = session.generate(greedy(12)).expect("generation begins").take(taken).collect();
        assert!(events.iter().all(|event| matches!(event, Ok(Event::Token { .. }))));
        assert_eq!(session.tokens()[prompt_len..], whole.ids[..taken], "{taken} tokens taken");
        assert_eq!(answer(&mut session, greedy(12 - taken)).ids, whole.ids[taken..], "after {taken} tokens");
    }
}

#[test]
fn a_chat_goes_on_with_only_what_is_new() {
    let model = exact_demo();
    let mut session = session_with(&model, "<|user|>Tell me about a king.<|end|><|assistant|>");
    let first = answer(&mut session, greedy(10));
    let mut conversation = session.tokens().to_vec();
    let known = conversation.len();
    conversation.extend(encode(&model, "<|end|><|user|>And then?<|end|><|assistant|>").split_off(1));
    // The last token of the answer was not run through the model yet.
    assert_eq!(session.sync_to(&conversation).expect("sync"), known - 1);
    assert_eq!(session.tokens(), conversation);
    let mut fresh = model.session();
    fresh.prefill(&conversation).expect("prefill");
    assert_eq!(answer(&mut session, greedy(10)).ids, answer(&mut fresh, greedy(10)).ids);

    let edited = encode(&model, "<|user|>Tell me about a fox.<|end|><|assistant|>");
    let common = session.tokens().iter().zip(&edited).take_while(|(a, b)| a == b).count();
    assert_eq!(session.sync_to(&edited).expect("sync"), common);
    assert_eq!(session.sync_to(&edited).expect("sync"), edited.len(), "nothing to do");
    let shorter = &edited[..edited.len() - 2];
    assert_eq!(session.sync_to(shorter).expect("sync"), shorter.len() - 1, "the last row's logits are computed anew");
    assert_eq!(session.tokens(), shorter);
    assert!(!first.ids.is_empty());
}

#[test]
fn a_cancelled_prefill_keeps_what_is_done_and_can_go_on() {
    let model = exact_demo();
    let prompt: Vec<u32> = (0..model.context() as u32 - 20).map(|index| 300 + index * 7 % 3000).collect();
    let mut whole = model.session();
    whole.prefill(&prompt).expect("prefill");

    let cancel = CancelToken::default();
    let mut session = model.session();
    session.prefill(&prompt[..100]).expect("prefill");
    cancel.cancel();
    let cancelled = session.prefill_with(&prompt[100..], &cancel, |_| panic!("nothing is computed"));
    assert!(matches!(cancelled, Err(Error::Cancelled)), "{cancelled:?}");
    assert_eq!(session.tokens(), &prompt[..100]);
    cancel.reset();
    let mut last = None;
    session.prefill_with(&prompt[100..], &cancel, |progress| last = Some(progress)).expect("prefill goes on");
    assert_eq!(
        last.map(|progress| (progress.done, progress.total)),
        Some(((prompt.len() - 100) as u64, (prompt.len() - 100) as u64))
    );
    assert_eq!(answer(&mut session, greedy(10)), answer(&mut whole, greedy(10)));
}

#[test]
fn cancelling_in_the_middle_of_a_pass_leaves_a_session_that_can_go_on() {
    let model = exact_demo();
    let prompt: Vec<u32> = (0..490).map(|index| 300 + index * 7 % 3000).collect();
    let mut whole = model.session();
    whole.prefill(&prompt).expect("prefill");
    let expected = answer(&mut whole, greedy(5));
    for delay in 0..20 {
        let cancel = CancelToken::default();
        let mut session = model.session();
        session.prefill(&prompt[..3]).expect("prefill");
        let outcome = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(std::time::Duration::from_millis(delay));
                cancel.cancel();
            });
            session.prefill_with(&prompt[3..], &cancel, |_| {})
        });
        assert!(matches!(outcome, Ok(()) | Err(Error::Cancelled)), "{outcome:?}");
        assert!(prompt.starts_with(session.tokens()));
        assert_eq!(session.tokens().len() == prompt.len(), outcome.is_ok());
        session.sync_to(&prompt).expect("the rest of the prompt");
        assert_eq!(answer(&mut session, greedy(5)), expected, "cancelled after {delay} ms");
    }
}

#[test]
fn a_cancelled_generation_says_so_and_can_go_on() {
    let model = exact_demo();
    let whole = answer(&mut session_with(&model, "Once upon a time"), greedy(12));
    let mut session = session_with(&model, "Once upon a time");
    let cancel = CancelToken::default();
    let options = GenerateOptions { cancel: cancel.clone(), ..greedy(12) };
    let mut ids = Vec::new();
    let mut reason = None;
    for event in session.generate(options).expect("generation begins") {
        match event.expect("an event") {
            Event::Token { id, .. } => ids.push(id),
            Event::Done { reason: why, stats, .. } => {
                assert_eq!(stats.generated_tokens, 4);
                reason = Some(why);
            }
            other => panic!("unknown event {other:?}"),
        }
        if ids.len() == 4 {
            cancel.cancel();
        }
    }
    assert_eq!((ids.as_slice(), reason), (&whole.ids[..4], Some(StopReason::Cancelled)));
    assert_eq!(answer(&mut session, greedy(8)).ids, whole.ids[4..]);
}

#[test]
fn answers_end_where_they_should() {
    let model = exact_demo();
    let whole = answer(&mut session_with(&model, "Once upon a time there was a"), greedy(48));
    let third_word: String = whole.text.split_whitespace().nth(2).expect("three words").to_owned();
    let from_third = whole.text.find(&third_word).expect("the third word");
    // Across the joint of two tokens: the end of one word and the beginning of the next.
    let joint = whole.text[from_third - 2..from_third + 2].to_owned();
    for (what, options, reason, text) in [
        ("no token", greedy(0), StopReason::MaxTokens, ""),
        (
            "an end token",
            GenerateOptions { stop_tokens: Some(StopTokens::new([whole.ids[0]])), ..greedy(48) },
            StopReason::EndToken(whole.ids[0]),
            "",
        ),
        (
            "a stop string",
            GenerateOptions { stop: vec![third_word.clone()], ..greedy(48) },
            StopReason::StopString(third_word.clone()),
            &whole.text[..from_third],
        ),
        (
            "a stop string across a joint",
            GenerateOptions { stop: vec!["never there".to_owned(), joint.clone()], ..greedy(48) },
            StopReason::StopString(joint.clone()),
            &whole.text[..from_third - 2],
        ),
    ] {
        let found = answer(&mut session_with(&model, "Once upon a time there was a"), options);
        assert_eq!((found.reason, found.text.as_str()), (reason, text), "{what}");
    }
}

#[test]
fn a_full_context_ends_the_answer_and_refuses_a_prompt_before_computing() {
    let model = Model::load(demo(), LoadOptions { context: Some(20), ..exact() }).expect("the demo model loads");
    assert_eq!(model.context(), 20);
    let mut session = model.session();
    let error = session.prefill(&[300; 21]).expect_err("too long");
    assert!(matches!(error, Error::ContextFull { needed: 21, context: 20 }), "{error}");
    assert!(session.tokens().is_empty());
    session.prefill(&[300; 15]).expect("prefill");
    let found = answer(&mut session, greedy(48));
    assert_eq!((found.ids.len(), found.reason), (5, StopReason::ContextFull));
    assert_eq!(session.tokens().len(), 20);
    assert!(matches!(session.forward(&[300]), Err(Error::ContextFull { needed: 21, context: 20 })));
    assert!(matches!(session.sync_to(&[301; 21]), Err(Error::ContextFull { .. })));
    assert_eq!(session.tokens().len(), 20, "a refused sync changes nothing");
    session.prefill(&[]).expect("the last token runs");
}

#[test]
fn wrong_use_is_named() {
    let model = exact_demo();
    let mut session = model.session();
    let option = |error: Error| match error {
        Error::InvalidOption { option, .. } => option,
        other => panic!("{other}"),
    };
    assert_eq!(option(session.prefill(&[1, 4096]).expect_err("no such id")), "tokens");
    assert_eq!(option(session.forward(&[u32::MAX]).expect_err("no such id")), "tokens");
    assert_eq!(option(session.generate(greedy(1)).expect_err("nothing to continue")), "tokens");
    session.prefill(&[0, 300]).expect("prefill");
    let hot = SamplingOptions { temperature: f32::NAN, ..SamplingOptions::plain() };
    let options = GenerateOptions { sampling: Some(hot), ..GenerateOptions::default() };
    assert_eq!(option(session.generate(options).expect_err("NaN")), "temperature");
    let options = GenerateOptions { stop: vec![String::new()], ..GenerateOptions::default() };
    assert_eq!(option(session.generate(options).expect_err("an empty stop")), "stop");
    for (options, expected) in [
        (LoadOptions { threads: Some(0), ..exact() }, "threads"),
        (LoadOptions { context: Some(0), ..exact() }, "context"),
        (LoadOptions { context: Some(513), ..exact() }, "context"),
    ] {
        let error = Model::load(demo(), options.clone()).err().unwrap_or_else(|| panic!("{options:?} is refused"));
        assert_eq!(option(error), expected, "{options:?}");
    }
}

#[test]
fn a_window_or_a_border_of_longrope_recomputes_what_the_cache_lacks() {
    for name in ["mistral-window", "mixtral-window", "gemma2", "phi3-longrope-crossing", "phi3-longrope-su"] {
        let model = Model::load(root().join("tests/golden/models").join(name), exact()).expect("the model loads");
        let prompt: Vec<u32> = (0..64).map(|index| 5 + index * 11 % 90).collect();
        for keep in [3, 20, 47, 50] {
            let mut fresh = model.session();
            fresh.prefill(&prompt[..keep]).expect("prefill");
            let expected = answer(&mut fresh, greedy(4));
            let mut session = model.session();
            session.prefill(&prompt).expect("prefill");
            let mut fork = session.fork();
            session.truncate(keep);
            assert_eq!(answer(&mut session, greedy(4)).ids, expected.ids, "{name}: truncated to {keep}");
            fork.sync_to(&prompt[..keep]).expect("sync");
            assert_eq!(answer(&mut fork, greedy(4)).ids, expected.ids, "{name}: synced to {keep}");
        }
    }
}

#[test]
fn loading_reports_progress_up_to_its_total() {
    let last = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&last);
    let progress = move |progress: infer_runtime::Progress| {
        let before = seen.swap(progress.done, Ordering::Relaxed);
        assert!(before <= progress.done && progress.done <= progress.total, "{progress:?} after {before}");
    };
    let options = LoadOptions { progress: Some(Arc::new(progress)), weights: WeightFormat::Int4, ..exact() };
    Model::load(demo(), options).expect("the demo model loads");
    assert!(last.load(Ordering::Relaxed) > 10_000_000, "the demo model has 11 MB of weights");
}

#[test]
fn memory_is_refused_with_numbers_and_a_full_cache_leaves_sessions_usable() {
    let with = |memory| Model::load(demo(), LoadOptions { memory: Some(memory), ..exact() });
    let error = with(15_000_000).expect_err("11 MB of weights and 8 MB of scratch");
    assert!(matches!(error, Error::Memory(_)) && error.to_string().contains("--q4"), "{error}");
    let whole = with(1 << 40).expect("a terabyte is enough");
    // Room for the cache of one sequence as long as the context.
    let model = with(whole.memory_plan().total()).expect("what the plan says is enough");
    assert_eq!(model.context(), whole.context());
    let mut first = model.session();
    first.prefill(&vec![300; model.context() - 10]).expect("one sequence fits");
    let mut second = model.session();
    let error = second.prefill(&[301; 40]).expect_err("no room for another");
    assert!(matches!(error, Error::Memory(_)), "{error}");
    assert!(second.tokens().is_empty());
    assert_eq!(answer(&mut first, greedy(10)).ids.len(), 10);
    drop(first);
    second.prefill(&[301; 40]).expect("the first session has given its blocks back");
}
