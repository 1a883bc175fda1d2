//! Weights of a real model's shape and random values, made tensor by tensor when they are asked for: whoever wants to
//! know how fast a model would be needs no download, and no memory for weights that are quantized on the way in.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use half::bf16;
use serde_json::{Value, json};

use crate::error::Error;
use crate::load::Bytes;

/// The sizes of a published model: what config.json says of it, and the names of its tensors.
#[derive(Clone, Debug)]
pub struct Shape {
    name: String,
    sizes: Sizes,
    n_layers: usize,
}

/// How the tensors of a layer are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Llama,
    Mistral,
    /// q, k, v in one tensor, gate and up in another.
    Phi3,
    /// Eight experts, two for each token.
    Mixtral,
}

#[derive(Clone, Copy, Debug)]
struct Sizes {
    name: &'static str,
    family: Family,
    n_layers: usize,
    hidden: usize,
    intermediate: usize,
    n_heads: usize,
    n_kv_heads: usize,
    vocab: usize,
    tied: bool,
    rope_theta: f64,
    context: usize,
}

const N_EXPERTS: usize = 8;
const EXPERTS_PER_TOKEN: usize = 2;

/// One line of [`SHAPES`]: name and family; layers, hidden, intermediate, heads, key/value heads, vocabulary; whether
/// the head is the embedding; rotary base, context.
const fn sizes(
    name: &'static str,
    family: Family,
    [n_layers, hidden, intermediate, n_heads, n_kv_heads, vocab]: [usize; 6],
    tied: bool,
    rope_theta: f64,
    context: usize,
) -> Sizes {
    Sizes { name, family, n_layers, hidden, intermediate, n_heads, n_kv_heads, vocab, tied, rope_theta, context }
}

const SHAPES: [Sizes; 8] = [
    sizes("tinyllama-1.1b", Family::Llama, [22, 2048, 5632, 32, 4, 32_000], false, 1e4, 2048),
    sizes("llama-3.2-1b", Family::Llama, [16, 2048, 8192, 32, 8, 128_256], true, 5e5, 131_072),
    sizes("llama-3.2-3b", Family::Llama, [28, 3072, 8192, 24, 8, 128_256], true, 5e5, 131_072),
    sizes("llama-2-7b", Family::Llama, [32, 4096, 11_008, 32, 32, 32_000], false, 1e4, 4096),
    sizes("llama-3-8b", Family::Llama, [32, 4096, 14_336, 32, 8, 128_256], false, 5e5, 8192),
    sizes("mistral-7b", Family::Mistral, [32, 4096, 14_336, 32, 8, 32_768], false, 1e6, 32_768),
    sizes("phi-3-mini", Family::Phi3, [32, 3072, 8192, 32, 32, 32_064], false, 1e4, 4096),
    sizes("mixtral-8x7b", Family::Mixtral, [32, 4096, 14_336, 32, 8, 32_000], false, 1e6, 32_768),
];

impl FromStr for Shape {
    type Err = Error;

    /// `NAME`, or `NAME/LAYERS` for a model of fewer layers.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] with the names there are.
    fn from_str(text: &str) -> Result<Shape, Error> {
        let (name, layers) = text.split_once('/').map_or((text, None), |(name, layers)| (name, Some(layers)));
        let refuse = |expected: String| Error::InvalidOption { option: "shape", expected, found: text.to_owned() };
        let sizes = SHAPES.iter().find(|sizes| sizes.name == name).ok_or_else(|| {
            let names = SHAPES.map(|sizes| sizes.name).join(", ");
            refuse(format!("one of {names}, or one of them followed by /LAYERS"))
        })?;
        let n_layers = match layers.map(str::parse) {
            None => sizes.n_layers,
            Some(Ok(n)) if (1..=sizes.n_layers).contains(&n) => n,
            Some(_) => return Err(refuse(format!("from 1 to {} layers behind {name}/", sizes.n_layers))),
        };
        Ok(Shape { name: text.to_owned(), sizes: *sizes, n_layers })
    }
}

impl Shape {
    /// The names of all shapes.
    pub fn names() -> impl Iterator<Item = &'static str> {
        SHAPES.iter().map(|sizes| sizes.name)
    }

    /// The name that it was asked for by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The text of its config.json.
    pub fn config(&self) -> String {
        let Sizes { family, hidden, intermediate, n_heads, n_kv_heads, vocab, tied, rope_theta, context, .. } =
            self.sizes;
        let (class, model_type) = match family {
            Family::Llama => ("LlamaForCausalLM", "llama"),
            Family::Mistral => ("MistralForCausalLM", "mistral"),
            Family::Phi3 => ("Phi3ForCausalLM", "phi3"),
            Family::Mixtral => ("MixtralForCausalLM", "mixtral"),
        };
        let mut config = json!({
            "architectures": [class], "model_type": model_type, "torch_dtype": "bfloat16", "vocab_size": vocab,
            "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": self.n_layers,
            "num_attention_heads": n_heads, "num_key_value_heads": n_kv_heads, "hidden_act": "silu",
            "max_position_embeddings": context, "rms_norm_eps": 1e-5, "rope_theta": rope_theta,
            "tie_word_embeddings": tied, "sliding_window": Value::Null,
        });
        if family == Family::Mixtral {
            config["num_local_experts"] = N_EXPERTS.into();
            config["num_experts_per_tok"] = EXPERTS_PER_TOKEN.into();
        }
        config.to_string()
    }

    /// Names and shapes of its tensors.
    pub fn tensors(&self) -> BTreeMap<String, Vec<usize>> {
        let Sizes { family, hidden, intermediate, n_heads, n_kv_heads, vocab, tied, .. } = self.sizes;
        let kv = hidden / n_heads * n_kv_heads;
        let mut tensors = BTreeMap::new();
        let mut add = |name: String, shape: &[usize]| tensors.insert(format!("{name}.weight"), shape.to_vec());
        add("model.embed_tokens".to_owned(), &[vocab, hidden]);
        for layer in (0..self.n_layers).map(|layer| format!("model.layers.{layer}")) {
            add(format!("{layer}.input_layernorm"), &[hidden]);
            add(format!("{layer}.post_attention_layernorm"), &[hidden]);
            if family == Family::Phi3 {
                add(format!("{layer}.self_attn.qkv_proj"), &[hidden + 2 * kv, hidden]);
            } else {
                add(format!("{layer}.self_attn.q_proj"), &[hidden, hidden]);
                add(format!("{layer}.self_attn.k_proj"), &[kv, hidden]);
                add(format!("{layer}.self_attn.v_proj"), &[kv, hidden]);
            }
            add(format!("{layer}.self_attn.o_proj"), &[hidden, hidden]);
            match family {
                Family::Llama | Family::Mistral => {
                    add(format!("{layer}.mlp.gate_proj"), &[intermediate, hidden]);
                    add(format!("{layer}.mlp.up_proj"), &[intermediate, hidden]);
                    add(format!("{layer}.mlp.down_proj"), &[hidden, intermediate]);
                }
                Family::Phi3 => {
                    add(format!("{layer}.mlp.gate_up_proj"), &[2 * intermediate, hidden]);
                    add(format!("{layer}.mlp.down_proj"), &[hidden, intermediate]);
                }
                Family::Mixtral => {
                    add(format!("{layer}.block_sparse_moe.gate"), &[N_EXPERTS, hidden]);
                    for expert in (0..N_EXPERTS).map(|expert| format!("{layer}.block_sparse_moe.experts.{expert}")) {
                        add(format!("{expert}.w1"), &[intermediate, hidden]);
                        add(format!("{expert}.w2"), &[hidden, intermediate]);
                        add(format!("{expert}.w3"), &[intermediate, hidden]);
                    }
                }
            }
        }
        add("model.norm".to_owned(), &[hidden]);
        if !tied {
            add("lm_head".to_owned(), &[vocab, hidden]);
        }
        tensors
    }
}

/// Makes bf16 tensors. The last one is kept: parts of one tensor are asked for one after the other.
#[derive(Debug, Default)]
pub(crate) struct RandomTensors {
    last: Mutex<Option<(String, Bytes)>>,
}

/// Values that one task makes.
const CHUNK: usize = 1 << 16;

/// The standard deviation of a matrix.
const DEVIATION: f32 = 0.02;

impl RandomTensors {
    /// The bytes of a tensor, the same for the same name and shape. Vectors, which are norms, are ones.
    pub fn bytes(&self, name: &str, shape: &[usize]) -> Bytes {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((last, bytes)) = &*last
            && last == name
        {
            return bytes.clone();
        }
        *last = None;
        let length = shape.iter().product::<usize>() * size_of::<bf16>();
        let made = Bytes::build(length, |out| {
            if shape.len() < 2 {
                out.as_chunks_mut().0.fill(bf16::ONE.to_le_bytes());
            } else {
                fill(seed(name), out);
            }
            Ok::<(), std::convert::Infallible>(())
        });
        let bytes = match made {
            Ok(bytes) => bytes,
            Err(never) => match never {},
        };
        *last = Some((name.to_owned(), bytes.clone()));
        bytes
    }
}

/// FNV-1a (Fowler, Noll and Vo).
fn seed(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// Fills with random values, on all cores; what is written does not depend on their number.
fn fill(seed: u64, out: &mut [u8]) {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let n_chunks = out.len().div_ceil(2 * CHUNK);
    let chunks_each = n_chunks.div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        for (thread, part) in out.chunks_mut(2 * CHUNK * chunks_each).enumerate() {
            scope.spawn(move || {
                for (chunk, out) in part.chunks_mut(2 * CHUNK).enumerate() {
                    fill_chunk(seed.wrapping_add(mix((thread * chunks_each + chunk) as u64 + 1)), out);
                }
            });
        }
    });
}

/// Sums of four random bytes each: nearly Gaussian (Irwin-Hall), of mean 510 and variance 4 (256^2 - 1) / 12.
fn fill_chunk(mut state: u64, out: &mut [u8]) {
    const SCALE: f32 = DEVIATION / 147.80;
    for pair in out.chunks_mut(4) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let bits = mix(state);
        let twos = (bits & 0x00ff_00ff_00ff_00ff) + (bits >> 8 & 0x00ff_00ff_00ff_00ff);
        let fours = (twos & 0x0000_ffff_0000_ffff) + (twos >> 16 & 0x0000_ffff_0000_ffff);
        let value = |sum: u64| bf16::from_f32((sum as u32 as f32 - 510.0) * SCALE).to_le_bytes();
        let [a, b] = [value(fours & 0xffff), value(fours >> 32)];
        pair.copy_from_slice(&[a[0], a[1], b[0], b[1]][..pair.len()]);
    }
}

/// The output function of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LoadOptions, Model, Outline, WeightFormat};

    #[test]
    fn every_shape_is_a_model() {
        for name in Shape::names() {
            let shape: Shape = name.parse().expect(name);
            let outline = Outline::of_shape(&shape, LoadOptions::default()).expect(name);
            assert!(outline.unused_tensors().is_empty(), "{name}: {:?}", outline.unused_tensors());
            assert_eq!(outline.spec().layers.len(), shape.n_layers, "{name}");
        }
    }

    #[test]
    fn a_shape_that_is_not_there_is_refused_with_the_names_of_those_that_are() {
        for text in ["", "gpt-9", "llama-3-8b/", "llama-3-8b/0", "llama-3-8b/33", "llama-3-8b/x", "/3"] {
            let error = text.parse::<Shape>().expect_err(text).to_string();
            assert!(error.contains("shape: expected") && error.contains("la"), "{text:?}: {error}");
        }
    }

    #[test]
    fn values_have_the_deviation_of_weights_and_depend_on_the_name_alone() {
        let values = |name: &str| -> Vec<f32> {
            let bytes = RandomTensors::default().bytes(name, &[301, 500]);
            bytes.as_chunks().0.iter().map(|value| bf16::from_le_bytes(*value).to_f32()).collect()
        };
        let a = values("a");
        assert_eq!(a, values("a"));
        assert_ne!(a, values("b"));
        let mean = a.iter().sum::<f32>() / a.len() as f32;
        let deviation = (a.iter().map(|value| value * value).sum::<f32>() / a.len() as f32).sqrt();
        assert!(mean.abs() < 1e-3 && (deviation - DEVIATION).abs() < 1e-3, "mean {mean}, deviation {deviation}");
    }

    #[test]
    fn a_random_model_computes() {
        let shape: Shape = "tinyllama-1.1b/1".parse().expect("a shape");
        let options = LoadOptions { weights: WeightFormat::Int8, ..LoadOptions::default() };
        let model = Outline::of_shape(&shape, options).and_then(Outline::load).expect("a model");
        let mut session = Model::session(&model);
        session.prefill(&[1, 2, 3]).expect("finite logits");
        assert!(session.logits().is_some_and(|logits| logits.iter().any(|logit| *logit != 0.0)));
    }
}
