//! What quantizing costs on a text that people wrote: perplexities and divergences, recorded, so that they cannot get
//! worse unnoticed, and what integer arithmetic adds to them. The demo model is always there; others are measured where
//! `../shared` has them.

mod support;

use std::path::Path;

use infer_runtime::{AddSpecial, Compute, KvType, LoadOptions, Model, WeightFormat};
use support::{exact, log_probabilities, mean_divergence, root, trained_models};

/// Tokens of a window, the begin token included, and how many windows of the text there are.
const WINDOW: usize = 512;
const N_WINDOWS: usize = 4;

/// The two ways through a model, whose arithmetic differs: many tokens in a pass, and one.
const PATHS: [(&str, usize); 2] = [("prefill", WINDOW), ("decode", 1)];

/// The logarithms of the probabilities that follow each token, and the tokens that did follow.
struct Predictions {
    rows: Vec<Vec<f64>>,
    next: Vec<Option<u32>>,
}

impl Predictions {
    /// Of each window by itself, read in pieces of `piece` tokens.
    fn new(model: &Model, piece: usize) -> Predictions {
        let text = std::fs::read_to_string(root().join("tests/golden/fairy-tales.txt")).expect("the text");
        let tokenizer = model.tokenizer().expect("a tokenizer");
        let tokens = tokenizer.encode(&text, AddSpecial::No).expect("ids");
        let begin = tokenizer.bos_token().and_then(|token| tokenizer.token_to_id(token)).expect("a begin token");
        assert!(tokens.len() >= N_WINDOWS * (WINDOW - 1), "the text has {} tokens", tokens.len());
        let mut predictions = Predictions { rows: Vec::new(), next: Vec::new() };
        for window in tokens.chunks(WINDOW - 1).take(N_WINDOWS) {
            let mut session = model.session();
            for piece in [&[begin], window].concat().chunks(piece) {
                let logits = session.forward(piece).expect("a forward pass");
                predictions.rows.extend((0..piece.len()).map(|row| log_probabilities(logits.row(row))));
            }
            predictions.next.extend(window.iter().copied().map(Some).chain([None]));
        }
        predictions
    }

    fn perplexity(&self) -> f64 {
        let scored =
            self.rows.iter().zip(&self.next).filter_map(|(row, next)| Some(-row[next.as_ref().copied()? as usize]));
        let losses: Vec<f64> = scored.collect();
        (losses.iter().sum::<f64>() / losses.len() as f64).exp()
    }

    /// The mean Kullback-Leibler divergence of `other` from these.
    fn divergence(&self, other: &Predictions) -> f64 {
        mean_divergence(&self.rows, &other.rows)
    }
}

fn load(folder: &Path, options: LoadOptions) -> Model {
    Model::load(folder, options).unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
}

/// What a user gets: integer and bf16 arithmetic, a cache of 16 bits.
fn usual(weights: WeightFormat) -> LoadOptions {
    LoadOptions { weights, compute: Compute::Auto, kv: None, ..exact() }
}

/// Perplexity and mean KL divergence from exact arithmetic with the stored weights, of [`PATHS`]. A router that tips over
/// to another expert can double int8's divergence, and treble that of activations in bf16: of fairy-mixtral the larger
/// that is seen is recorded.
type Recorded = (&'static str, WeightFormat, [(f64, f64); 2]);

const RECORDED: [Recorded; 12] = [
    ("fairy-llama", WeightFormat::AsStored, [(33.164, 9.71e-6), (33.164, 9.74e-6)]),
    ("fairy-llama", WeightFormat::Int8, [(33.200, 4.37e-4), (33.200, 4.37e-4)]),
    ("fairy-llama", WeightFormat::Int4, [(33.355, 1.49e-2), (33.323, 1.46e-2)]),
    ("fairy-mixtral", WeightFormat::AsStored, [(36.326, 5.51e-5), (36.326, 1.70e-5)]),
    ("fairy-mixtral", WeightFormat::Int8, [(36.291, 4.52e-4), (36.302, 4.60e-4)]),
    ("fairy-mixtral", WeightFormat::Int4, [(36.622, 6.19e-3), (36.590, 6.25e-3)]),
    ("fairy-phi", WeightFormat::AsStored, [(32.354, 5.73e-6), (32.354, 5.72e-6)]),
    ("fairy-phi", WeightFormat::Int8, [(32.355, 1.53e-4), (32.350, 1.56e-4)]),
    ("fairy-phi", WeightFormat::Int4, [(32.643, 5.66e-3), (32.631, 5.65e-3)]),
    ("stories260k", WeightFormat::AsStored, [(17.050, 3.80e-6), (17.050, 3.74e-6)]),
    ("stories260k", WeightFormat::Int8, [(17.077, 1.48e-3), (17.091, 1.48e-3)]),
    ("stories260k", WeightFormat::Int4, [(17.663, 6.29e-2), (17.607, 6.22e-2)]),
];

/// The divergence that is no worse than a recorded one. A share of it for quantizations that are as good and not the
/// same; and what rounding to bf16 may cost wherever it saves time (activations, scores, cache): its error is a sixth of
/// that of 8 bits in blocks of 256, and the divergence goes with the square.
fn most_divergence(recorded: f64) -> f64 {
    1.15 * recorded + 3e-5
}

/// The perplexity that is no worse than a recorded one. The losses that two models of divergence D give a token differ
/// with a variance of about 2 D, so two quantizations of equal quality, such as two that break ties differently, have
/// mean losses over N tokens that scatter by sqrt(2 D / N): for int4 0.3 %. Twice that is allowed.
fn most_perplexity(recorded: f64, divergence: f64) -> f64 {
    let n_scored = (N_WINDOWS * (WINDOW - 1)) as f64;
    recorded * (2.0 * (2.0 * divergence / n_scored).sqrt()).exp()
}

#[test]
fn perplexities_of_what_users_run_do_not_get_worse() {
    let mut worse: Vec<String> = Vec::new();
    for (name, folder) in trained_models() {
        let reference = Predictions::new(&load(&folder, exact()), WINDOW);
        for weights in [WeightFormat::AsStored, WeightFormat::Int8, WeightFormat::Int4] {
            let recorded = RECORDED.iter().find(|(model, format, _)| (*model, *format) == (name, weights));
            let model = load(&folder, usual(weights));
            for (i, (path, piece)) in PATHS.into_iter().enumerate() {
                let predictions = Predictions::new(&model, piece);
                let (perplexity, divergence) = (predictions.perplexity(), reference.divergence(&predictions));
                println!("{name}, {weights:?}, {path}: perplexity {perplexity:.3}, KL divergence {divergence:.2e}");
                let Some((_, _, recorded)) = recorded else {
                    worse.push(format!("{name}, {weights:?}, {path}: nothing is recorded"));
                    continue;
                };
                let most_divergence = most_divergence(recorded[i].1);
                let most = most_perplexity(recorded[i].0, most_divergence);
                if perplexity > most || divergence > most_divergence {
                    worse.push(format!(
                        "{name}, {weights:?}, {path}: perplexity {perplexity:.3}, at most {most:.3}; \
                         KL divergence {divergence:.2e}, at most {most_divergence:.2e}"
                    ));
                }
            }
        }
    }
    assert!(
        worse.is_empty(),
        "worse than recorded; if only prefill is, look at its tiles and at attention, if only decode is, at its kernels, \
         if both are, at the weights:\n{}",
        worse.join("\n")
    );
}

#[test]
fn integer_arithmetic_adds_little_to_what_quantized_weights_change() {
    for (name, folder) in trained_models() {
        let reference = Predictions::new(&load(&folder, exact()), WINDOW);
        for (weights, share) in [(WeightFormat::Int8, 2.0), (WeightFormat::Int4, 0.1)] {
            let exactly = Predictions::new(&load(&folder, LoadOptions { weights, ..exact() }), WINDOW);
            let of_weights = reference.divergence(&exactly);
            // The cache of 16 bits has a divergence of its own.
            let model = load(&folder, LoadOptions { kv: Some(KvType::F32), ..usual(weights) });
            for (path, piece) in PATHS {
                let added = exactly.divergence(&Predictions::new(&model, piece));
                println!(
                    "{name}, {weights:?}, {path}: {added:.2e} added to {of_weights:.2e}: {:.3}",
                    added / of_weights
                );
                assert!(
                    added <= share * of_weights,
                    "{name}, {weights:?}, {path}: activations in 8 bits add a KL divergence of {added:.2e} to the \
                     weights' own {of_weights:.2e}, at most {share} times that is allowed: look at how activations are \
                     quantized, and at attention"
                );
            }
        }
    }
}

#[test]
fn small_caches_and_attention_in_bf16_change_predictions_little() {
    for (name, folder) in trained_models() {
        let reference = Predictions::new(&load(&folder, exact()), WINDOW);
        // Prefill with Auto has attention and activations in bf16: they add to a 16-bit cache's 1e-5 up to 6e-5, where
        // routers tip over. Int8 weights add 2e-4 to 4e-4.
        for (kv, most) in [(KvType::F16, 1e-4), (KvType::Bf16, 1e-4), (KvType::Int8, 3e-4)] {
            // The tiny stories model has the largest scores, and all that rounds them costs more.
            let most = if name.starts_with("fairy") { most } else { 20.0 * most };
            for ((path, piece), compute) in PATHS.into_iter().zip([Compute::Auto, Compute::F32]) {
                let model = load(&folder, LoadOptions { compute, kv: Some(kv), ..exact() });
                let divergence = reference.divergence(&Predictions::new(&model, piece));
                println!("{name}, {kv:?} cache, {compute:?}, {path}: {divergence:.2e}");
                assert!(
                    divergence < most,
                    "{name}, {kv:?} cache, {compute:?}, {path}: KL divergence {divergence:.2e}, at most {most:.0e}: look at \
                     how the cache is rounded, and at what prefill rounds to bf16"
                );
            }
        }
    }
}
