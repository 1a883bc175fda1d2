//! Writes a Llama folder with random bfloat16 weights of a real model's shape, for measuring speed without a download:
//!
//! ```text
//! cargo run --release -p infer-runtime --example random_model -- tinyllama-1.1b /tmp/tinyllama
//! ```
//!
//! The text it makes is noise. There is no tokenizer: measure with `infer logits`, which needs none.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::json;

/// What differs between the shapes: layers, hidden, intermediate, heads, key/value heads, vocabulary.
const SHAPES: [(&str, [usize; 6]); 2] =
    [("tinyllama-1.1b", [22, 2048, 5632, 32, 4, 32_000]), ("llama-3-8b", [32, 4096, 14_336, 32, 8, 128_256])];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let names = SHAPES.map(|(name, _)| name).join(", ");
    let [shape, folder] = arguments.as_slice() else {
        return Err(format!("usage: random_model SHAPE FOLDER, with SHAPE one of {names}").into());
    };
    let Some((_, sizes)) = SHAPES.iter().find(|(name, _)| name == shape) else {
        return Err(format!("unknown shape {shape:?}, expected one of {names}").into());
    };
    let [layers, hidden, intermediate, heads, kv_heads, vocab] = *sizes;
    let folder = Path::new(folder);
    std::fs::create_dir_all(folder)?;
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "vocab_size": vocab,
        "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
    });
    std::fs::write(folder.join("config.json"), serde_json::to_string_pretty(&config)?)?;

    let kv_size = hidden / heads * kv_heads;
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![vocab, hidden])];
    for layer in 0..layers {
        let mut add = |name: &str, shape: &[usize]| {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
        };
        add("input_layernorm", &[hidden]);
        add("self_attn.q_proj", &[hidden, hidden]);
        add("self_attn.k_proj", &[kv_size, hidden]);
        add("self_attn.v_proj", &[kv_size, hidden]);
        add("self_attn.o_proj", &[hidden, hidden]);
        add("post_attention_layernorm", &[hidden]);
        add("mlp.gate_proj", &[intermediate, hidden]);
        add("mlp.up_proj", &[intermediate, hidden]);
        add("mlp.down_proj", &[hidden, intermediate]);
    }
    tensors.push(("model.norm.weight".to_owned(), vec![hidden]));
    tensors.push(("lm_head.weight".to_owned(), vec![vocab, hidden]));
    write_safetensors(&folder.join("model.safetensors"), &tensors)
}

/// Matrices are uniform in +-0.035 (a standard deviation of 0.02), norms are 1.
fn write_safetensors(path: &Path, tensors: &[(String, Vec<usize>)]) -> Result<(), Box<dyn std::error::Error>> {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in tensors {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        header.insert(name.clone(), json!({ "dtype": "BF16", "shape": shape, "data_offsets": [start, end] }));
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for (_, shape) in tensors {
        for _ in 0..shape.iter().product::<usize>() {
            // xorshift64 (Marsaglia, "Xorshift RNGs", 2003)
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let uniform = (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
            let value = if shape.len() == 1 { 1.0 } else { 0.035 * uniform };
            file.write_all(&half::bf16::from_f32(value).to_le_bytes())?;
        }
    }
    file.into_inner()?.sync_all()?;
    Ok(())
}
