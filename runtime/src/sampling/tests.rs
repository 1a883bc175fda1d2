use super::*;

fn sampler(options: SamplingOptions) -> Sampler {
    Sampler::new(SamplingOptions { seed: Some(options.seed.unwrap_or(1)), ..options }).expect("valid options")
}

/// The ids that `options` can draw from `logits`, with how often in 4000 draws.
fn histogram(options: SamplingOptions, logits: &[f32], tokens: &[u32], prompt_len: usize) -> Vec<usize> {
    let mut sampler = sampler(options);
    let mut counts = vec![0; logits.len()];
    for _ in 0..4000 {
        let id = sampler.sample(&mut logits.to_vec(), tokens, prompt_len).expect("finite logits");
        counts[id as usize] += 1;
    }
    counts
}

fn drawn(options: SamplingOptions, logits: &[f32]) -> Vec<usize> {
    let counts = histogram(options, logits, &[], 0);
    (0..counts.len()).filter(|&id| counts[id] > 0).collect()
}

#[test]
fn greedy_takes_the_lowest_id_among_equals() {
    let mut greedy = sampler(SamplingOptions::greedy());
    for (logits, expected) in
        [(vec![1.0, 3.0, 3.0], 1), (vec![-2.0, -2.0], 0), (vec![f32::MIN, f32::MAX], 1), (vec![-0.0, 0.0], 0)]
    {
        assert_eq!(greedy.sample(&mut logits.clone(), &[], 0).expect("finite"), expected, "{logits:?}");
    }
}

#[test]
fn every_filter_keeps_what_its_definition_says() {
    let log = |p: &[f32]| -> Vec<f32> { p.iter().map(|p| p.ln()).collect() };
    let plain = SamplingOptions::plain;
    let even = log(&[0.1, 0.4, 0.3, 0.2]);
    for (name, options, logits, expected) in [
        ("no filter", plain(), even.clone(), vec![0, 1, 2, 3]),
        ("top-k", SamplingOptions { top_k: 2, ..plain() }, even.clone(), vec![1, 2]),
        ("top-k keeps equals", SamplingOptions { top_k: 1, ..plain() }, vec![1.0, 2.0, 2.0], vec![1, 2]),
        ("top-k beyond the vocabulary", SamplingOptions { top_k: 9, ..plain() }, even.clone(), vec![0, 1, 2, 3]),
        ("top-p stops when the sum is reached", SamplingOptions { top_p: 0.65, ..plain() }, even.clone(), vec![1, 2]),
        ("top-p keeps at least one", SamplingOptions { top_p: 0.0, ..plain() }, even.clone(), vec![1]),
        ("min-p", SamplingOptions { min_p: 0.6, ..plain() }, even.clone(), vec![1, 2]),
        ("min-p of 1 keeps the best", SamplingOptions { min_p: 1.0, ..plain() }, even.clone(), vec![1]),
        ("top-p counts what top-k left", SamplingOptions { top_k: 2, top_p: 0.57, ..plain() }, even.clone(), vec![1]),
        ("a tiny temperature is greedy", SamplingOptions { temperature: 1e-30, ..plain() }, even, vec![1]),
    ] {
        assert_eq!(drawn(options, &logits), expected, "{name}");
    }
}

#[test]
fn top_p_over_a_flat_large_vocabulary_keeps_its_share() {
    let logits = vec![0.0; 5000];
    let mut sampler = sampler(SamplingOptions { top_p: 0.5, ..SamplingOptions::plain() });
    sampler.weigh(&logits, 0.0);
    let least = sampler.keep_top_p();
    let kept: Vec<usize> = (0..5000).filter(|&id| sampler.weights[id] > 0.0 && sampler.weights[id] >= least).collect();
    assert_eq!(kept, (0..2500).collect::<Vec<_>>(), "the lowest ids among equals");
}

#[test]
fn filters_of_a_large_vocabulary_keep_what_a_full_sort_would() {
    let noise = |i: usize| ((i * 7919 + i * i % 313) % 10_007) as f32 / 10_007.0;
    // Nearly flat, falling, and with many equals.
    let shapes: [fn(f32) -> f32; 3] = [|x| x, |x| 20.0 * x * x * x, |x| (8.0 * x).floor()];
    for (shape, value) in shapes.into_iter().enumerate() {
        for n in [100, 3000, 20_000] {
            let logits: Vec<f32> = (0..n).map(|i| value(noise(i))).collect();
            let largest = logits.iter().copied().fold(f32::MIN, f32::max);
            for (top_k, top_p) in [(0, 0.3), (0, 0.95), (0, 0.9999), (40, 1.0), (40, 0.7), (2000, 0.9)] {
                let mut sampler = sampler(SamplingOptions { top_k, top_p, ..SamplingOptions::plain() });
                assert!(block_maxima(sampler.isa, &logits, &mut sampler.maxima));
                sampler.weigh(&logits, largest);
                let ids = if sampler.kept.0.is_empty() { (0..n as u32).collect() } else { sampler.kept.0.clone() };
                let mut weights = vec![0.0; n];
                for (id, weight) in ids.iter().zip(&sampler.weights) {
                    weights[*id as usize] = f64::from(*weight);
                }
                let least = sampler.keep_top_p();
                let kept = ids.iter().zip(&sampler.weights).filter(|(_, weight)| **weight >= least && **weight > 0.0);
                let kept: Vec<u32> = kept.map(|(id, _)| *id).collect();

                let mut sorted: Vec<u32> = (0..n as u32).collect();
                sorted.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
                if top_k > 0 && top_k < n {
                    let kth = logits[sorted[top_k - 1] as usize];
                    sorted.retain(|id| logits[*id as usize] >= kth);
                }
                let weight = |id: &u32| weights[*id as usize];
                let needed = f64::from(top_p) * sorted.iter().map(weight).sum::<f64>();
                let mut before = 0.0;
                let mut expected: Vec<u32> = sorted
                    .into_iter()
                    .take_while(|id| {
                        let keep = before < needed || top_p == 1.0;
                        before += weight(id);
                        keep
                    })
                    .collect();
                expected.sort_unstable();
                assert_eq!(kept, expected, "shape {shape}, {n} logits, top-k {top_k}, top-p {top_p}");
            }
        }
    }
}

#[test]
fn draws_follow_the_probabilities() {
    let logits: Vec<f32> = [0.1f32, 0.4, 0.3, 0.2].iter().map(|p| p.ln()).collect();
    let counts = histogram(SamplingOptions::plain(), &logits, &[], 0);
    for (count, expected) in counts.iter().zip([400.0, 1600.0, 1200.0, 800.0]) {
        // Four standard deviations of a binomial with n = 4000.
        assert!((*count as f64 - expected).abs() < 130.0, "{counts:?}");
    }
}

#[test]
fn penalties_see_the_tokens_that_they_are_defined_over() {
    let greedy = |options: SamplingOptions| SamplingOptions { temperature: 0.0, ..options };
    let plain = SamplingOptions::plain;
    for (name, options, logits, tokens, prompt_len, expected) in [
        (
            "repetition divides positive logits, prompt included",
            SamplingOptions { repetition_penalty: 2.0, ..plain() },
            vec![3.0, 2.0],
            vec![0],
            1,
            1,
        ),
        (
            "repetition multiplies negative logits",
            SamplingOptions { repetition_penalty: 2.0, ..plain() },
            vec![-1.0, -1.5],
            vec![0],
            0,
            1,
        ),
        (
            "repetition counts once",
            SamplingOptions { repetition_penalty: 2.0, ..plain() },
            vec![3.0, 1.0],
            vec![0, 0, 0],
            0,
            0,
        ),
        (
            "presence ignores the prompt",
            SamplingOptions { presence_penalty: 2.0, ..plain() },
            vec![3.0, 2.0],
            vec![0],
            1,
            0,
        ),
        (
            "presence counts once",
            SamplingOptions { presence_penalty: 0.6, ..plain() },
            vec![3.0, 2.0],
            vec![0, 0],
            0,
            0,
        ),
        (
            "frequency counts each",
            SamplingOptions { frequency_penalty: 0.6, ..plain() },
            vec![3.0, 2.0],
            vec![0, 0],
            0,
            1,
        ),
        (
            "ids beyond the logits are ignored",
            SamplingOptions { repetition_penalty: 2.0, ..plain() },
            vec![3.0, 2.0],
            vec![9],
            0,
            0,
        ),
    ] {
        let id = sampler(greedy(options)).sample(&mut logits.clone(), &tokens, prompt_len).expect("finite");
        assert_eq!(id, expected, "{name}");
    }
}

#[test]
fn the_same_seed_draws_the_same_tokens_and_a_missing_one_is_told() {
    let logits: Vec<f32> = (0..100).map(|i| (i as f32 * 0.7).sin()).collect();
    let run = |seed| {
        let mut sampler = Sampler::new(SamplingOptions { seed, ..SamplingOptions::default() }).expect("valid");
        let ids: Vec<u32> = (0..50).map(|_| sampler.sample(&mut logits.clone(), &[], 0).expect("finite")).collect();
        (sampler.seed(), ids)
    };
    assert_eq!(run(Some(7)), run(Some(7)));
    assert_ne!(run(Some(7)).1, run(Some(8)).1);
    let (seed, ids) = run(None);
    assert_eq!(run(Some(seed)).1, ids, "the seed taken from the system can be given again");
}

#[test]
fn logits_that_are_not_finite_name_position_and_token() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for options in [SamplingOptions::greedy(), SamplingOptions::default()] {
            match sampler(options).sample(&mut [0.0, bad, 1.0], &[5, 6, 7], 2) {
                Err(Error::NotFinite { position: 2, token: 1 }) => {}
                other => panic!("{bad}: {other:?}"),
            }
        }
    }
    assert!(sampler(SamplingOptions::plain()).sample(&mut [], &[], 0).is_err(), "no logits");
}

#[test]
fn values_out_of_range_are_named() {
    let plain = SamplingOptions::plain;
    for (option, options) in [
        ("temperature", SamplingOptions { temperature: -0.1, ..plain() }),
        ("temperature", SamplingOptions { temperature: f32::NAN, ..plain() }),
        ("temperature", SamplingOptions { temperature: f32::INFINITY, ..plain() }),
        ("top_p", SamplingOptions { top_p: 1.1, ..plain() }),
        ("top_p", SamplingOptions { top_p: f32::NAN, ..plain() }),
        ("min_p", SamplingOptions { min_p: -0.5, ..plain() }),
        ("repetition_penalty", SamplingOptions { repetition_penalty: 0.0, ..plain() }),
        ("repetition_penalty", SamplingOptions { repetition_penalty: f32::INFINITY, ..plain() }),
        ("presence_penalty", SamplingOptions { presence_penalty: 2.5, ..plain() }),
        ("frequency_penalty", SamplingOptions { frequency_penalty: f32::NAN, ..plain() }),
    ] {
        match Sampler::new(options) {
            Err(Error::InvalidOption { option: named, .. }) => assert_eq!(named, option),
            other => panic!("{option}: {other:?}"),
        }
    }
}

#[test]
fn extreme_values_do_not_end_in_infinities() {
    let tokens = [0, 1];
    for penalty in [f32::MIN_POSITIVE, f32::MAX] {
        let options = SamplingOptions { repetition_penalty: penalty, ..SamplingOptions::plain() };
        let mut logits = [f32::MAX, f32::MIN, 1.0];
        assert!(sampler(options).sample(&mut logits, &tokens, 0).is_ok(), "penalty {penalty}");
        assert!(logits.iter().all(|l| l.is_finite()), "penalty {penalty}: {logits:?}");
    }
}
