//! Weights that a checkpoint stores as two thin factors, `NAME.A.weight` times `NAME.B.weight`.

mod support;

use std::borrow::Cow;
use std::collections::BTreeMap;

use infer_runtime::{LoadOptions, Model, WeightFormat};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use support::{TOLERANCE, difference, exact, root};

const RANK: usize = 5;

/// A tensor of f32.
struct Tensor {
    shape: Vec<usize>,
    values: Vec<f32>,
}

/// The tensors of the plain golden Llama, and its config.
fn plain_llama() -> (BTreeMap<String, Tensor>, Vec<u8>) {
    let folder = root().join("tests/golden/models/llama-gqa");
    let config = std::fs::read(folder.join("config.json")).expect("a config");
    let file = std::fs::read(folder.join("model.safetensors")).expect("weights");
    let stored = safetensors::SafeTensors::deserialize(&file).expect("a safetensors file");
    let tensor = |view: &TensorView<'_>| {
        let values = match view.dtype() {
            Dtype::F32 => view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Dtype::BF16 => {
                view.data().as_chunks::<2>().0.iter().map(|b| half::bf16::from_le_bytes(*b).into()).collect()
            }
            Dtype::F16 => view.data().as_chunks::<2>().0.iter().map(|b| half::f16::from_le_bytes(*b).into()).collect(),
            other => panic!("a golden tensor of type {other:?}"),
        };
        Tensor { shape: view.shape().to_vec(), values }
    };
    (stored.iter().map(|(name, view)| (name.to_owned(), tensor(&view))).collect(), config)
}

fn load(tensors: &BTreeMap<String, Tensor>, config: &[u8], options: LoadOptions) -> infer_runtime::Result<Model> {
    let bytes: BTreeMap<&String, Vec<u8>> = tensors
        .iter()
        .map(|(name, tensor)| (name, tensor.values.iter().flat_map(|value| value.to_le_bytes()).collect()))
        .collect();
    let views = tensors.iter().map(|(name, tensor)| {
        (name, TensorView::new(Dtype::F32, tensor.shape.clone(), &bytes[name]).expect("a tensor"))
    });
    let file = safetensors::serialize(views, None).expect("a safetensors file");
    let files =
        vec![("config.json".to_owned(), Cow::from(config.to_vec())), ("model.safetensors".to_owned(), file.into())];
    Model::from_bytes(files, options)
}

/// The model with factors instead of some weights, and the model with their products.
fn factored_and_whole() -> (BTreeMap<String, Tensor>, BTreeMap<String, Tensor>, Vec<u8>) {
    let (mut factored, config) = plain_llama();
    let (mut whole, _) = plain_llama();
    let names: Vec<String> =
        whole.keys().filter(|name| name.contains("q_proj") || name.contains("mlp.")).cloned().collect();
    assert!(names.len() >= 4, "the golden Llama has projections");
    for name in names {
        let stem = name.strip_suffix(".weight").expect("a weight");
        let Tensor { shape, values } = factored.remove(&name).expect("a tensor");
        let &[rows, cols] = shape.as_slice() else { panic!("{name} is no matrix") };
        // Any factors will do; these keep the size of the weights.
        let outer: Vec<f32> = values[..rows * RANK].to_vec();
        let inner: Vec<f32> = values[values.len() - RANK * cols..].to_vec();
        let product = |row: usize, col: usize| (0..RANK).map(|k| outer[row * RANK + k] * inner[k * cols + col]).sum();
        let values = (0..rows * cols).map(|i| product(i / cols, i % cols)).collect();
        whole.insert(name.clone(), Tensor { shape, values });
        factored.insert(format!("{stem}.A.weight"), Tensor { shape: vec![rows, RANK], values: outer });
        factored.insert(format!("{stem}.B.weight"), Tensor { shape: vec![RANK, cols], values: inner });
    }
    (factored, whole, config)
}

fn logits(model: &Model) -> Vec<f32> {
    let prompt: Vec<u32> = (0..40).map(|i| i * 7 % 90).collect();
    model.session().forward(&prompt).expect("logits").into_values()
}

#[test]
fn factored_weights_compute_what_their_products_compute() {
    let (factored, whole, config) = factored_and_whole();
    let expected = logits(&load(&whole, &config, exact()).expect("the whole model"));
    let found = logits(&load(&factored, &config, exact()).expect("the factored model"));
    let apart = difference(&found, &expected);
    assert!(apart < TOLERANCE, "logits are {apart} apart");
}

#[test]
fn factors_are_quantized_as_weights_are() {
    let (factored, _, config) = factored_and_whole();
    let exact_logits = logits(&load(&factored, &config, exact()).expect("the factored model"));
    let options = LoadOptions { weights: WeightFormat::Int8, ..exact() };
    let quantized = logits(&load(&factored, &config, options).expect("the quantized model"));
    let apart = difference(&quantized, &exact_logits);
    assert!(apart > 0.0 && apart < 1.0, "logits are {apart} apart");
}

#[test]
fn factors_that_do_not_fit_each_other_are_refused() {
    let (mut factored, _, config) = factored_and_whole();
    let name = "model.layers.0.self_attn.q_proj.B.weight";
    let inner = factored.get_mut(name).expect("a factor");
    inner.shape[0] -= 1;
    inner.values.truncate(inner.shape.iter().product());
    let error = load(&factored, &config, exact()).expect_err("an error").to_string();
    assert!(error.contains(name) && error.contains("expected shape [5, "), "{error}");
}
