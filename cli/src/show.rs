//! `infer show`: what a model is and what it needs.

use std::collections::BTreeMap;

use anyhow::Result;
use infer_runtime::load::TensorView;
use infer_runtime::model::spec::{Attention, Mlp, Spec};
use infer_runtime::quantize::Class;
use infer_runtime::{Compute, MemoryPlan, Outline};
use serde_json::{Value, json};

use crate::args::{ModelArgs, ShowArgs};
use crate::load;
use crate::output;
use crate::terminal::{bytes, escape_controls};

/// Prints it.
pub fn run(args: &ShowArgs, model_args: &ModelArgs) -> Result<()> {
    let outline = load::outline(model_args, load::options(model_args, Compute::Auto)?)?;
    let checkpoint = outline.checkpoint();
    let model = Description {
        tensors: checkpoint.names().filter_map(|name| checkpoint.tensor(name)).collect(),
        plan: outline.memory_plan(),
        outline,
    };
    output::print(&if args.json { format!("{}\n", model.json(args.tensors)) } else { model.lines(args.tensors) })?;
    // The numbers of a model that does not fit are worth seeing; that it does not is still an error.
    model.plan.map(drop).map_err(Into::into)
}

struct Description {
    outline: Outline,
    tensors: Vec<TensorView>,
    plan: infer_runtime::Result<MemoryPlan>,
}

/// Number of elements.
fn elements(tensor: &TensorView) -> u64 {
    tensor.shape.iter().map(|&size| size as u64).product()
}

/// The first layer's attention stands for all.
fn attention(spec: &Spec) -> Option<&Attention> {
    spec.layers.first().map(|layer| &layer.attention)
}

/// Number of experts; 0 for a dense model.
fn n_experts(spec: &Spec) -> usize {
    let experts = |mlp: &Mlp| match mlp {
        Mlp::Dense(_) => 0,
        Mlp::Experts { experts, .. } => experts.len(),
    };
    spec.layers.iter().map(|layer| experts(&layer.mlp)).max().unwrap_or(0)
}

impl Description {
    /// Elements of all tensors that the model uses.
    fn n_parameters(&self) -> u64 {
        let unused = |name: &String| self.outline.unused_tensors().contains(name);
        self.tensors.iter().filter(|tensor| !unused(&tensor.name)).map(elements).sum()
    }

    /// Bytes of each type; tensors that are packed have none.
    fn dtypes(&self) -> BTreeMap<String, u64> {
        let mut sizes = BTreeMap::new();
        for tensor in self.tensors.iter().filter(|tensor| !tensor.bytes.is_empty()) {
            *sizes.entry(tensor.dtype.to_string()).or_default() += tensor.bytes.len() as u64;
        }
        sizes
    }

    /// Bytes of the tensors in each file.
    fn files(&self) -> BTreeMap<String, u64> {
        let checkpoint = self.outline.checkpoint();
        if checkpoint.packed_plan().is_some() {
            return checkpoint.files().map(|file| (file.display().to_string(), checkpoint.total_bytes())).collect();
        }
        let mut sizes = BTreeMap::new();
        for tensor in &self.tensors {
            *sizes.entry(tensor.file.display().to_string()).or_default() += tensor.bytes.len() as u64;
        }
        sizes
    }

    fn json(&self, with_tensors: bool) -> Value {
        let spec = self.outline.spec();
        let attention = attention(spec);
        let mut object = json!({
            "architecture": spec.architecture,
            "parameters": self.n_parameters(),
            "layers": spec.layers.len(),
            "hidden_size": spec.hidden_size,
            "heads": attention.map(|attention| attention.n_heads),
            "kv_heads": attention.map(|attention| attention.n_kv_heads),
            "head_dim": attention.map(|attention| attention.head_dim),
            "experts": n_experts(spec),
            "vocab_size": spec.vocab_size,
            "context_length": spec.context_length,
            "dtypes": self.dtypes(),
            "files": self.files(),
            "unused_tensors": self.outline.unused_tensors(),
            "tokenizer": matches!(self.outline.tokenizer(), Ok(Some(_))),
            "chat_template": matches!(self.outline.chat_template(), Ok(Some(_))),
            "packed": self.outline.checkpoint().packed_plan(),
            "plan": self.outline.quant_plan().summary(),
            "classes": self.outline.quant_plan().classes().iter().map(class_json).collect::<Vec<_>>(),
            "bits_per_weight": self.outline.quant_plan().bits_per_weight(),
            "bits_per_matrix_weight": self.outline.quant_plan().bits_per_matrix_weight(),
            "memory": self.plan.as_ref().ok(),
        });
        if with_tensors && let Some(object) = object.as_object_mut() {
            object.insert("tensors".to_owned(), self.tensors.iter().map(tensor_json).collect());
        }
        object
    }

    fn lines(&self, with_tensors: bool) -> String {
        let spec = self.outline.spec();
        let mut lines = Lines::default();
        lines.add("architecture", &spec.architecture);
        lines.add("parameters", &parameters(self.n_parameters()));
        lines.add("layers", &spec.layers.len().to_string());
        lines.add("hidden size", &spec.hidden_size.to_string());
        if let Some(Attention { n_heads, n_kv_heads, head_dim, .. }) = attention(spec) {
            lines.add("heads", &format!("{n_heads}, {n_kv_heads} for keys and values, {head_dim} wide"));
        }
        if n_experts(spec) > 0 {
            lines.add("experts", &n_experts(spec).to_string());
        }
        lines.add("vocabulary", &spec.vocab_size.to_string());
        lines.add("context", &spec.context_length.map_or("no fixed limit".to_owned(), |n| format!("{n} tokens")));
        if let Some(plan) = self.outline.checkpoint().packed_plan() {
            lines.add("packed", &format!("{plan}, used as it is: no flag is needed"));
        }
        for (dtype, size) in self.dtypes() {
            lines.add("weights", &format!("{} {}", dtype.to_lowercase(), bytes(size)));
        }
        for (file, size) in self.files() {
            lines.add("file", &format!("{file} {}", bytes(size)));
        }
        if !self.outline.unused_tensors().is_empty() {
            lines.add("unused tensors", &self.outline.unused_tensors().len().to_string());
        }
        lines.add(
            "tokenizer",
            &match self.outline.tokenizer() {
                Ok(Some(tokenizer)) => format!("{} tokens", tokenizer.vocab_size()),
                Ok(None) => "none".to_owned(),
                Err(error) => format!("unusable: {error}"),
            },
        );
        lines.add(
            "chat template",
            &match self.outline.chat_template() {
                Ok(Some(template)) => template.path().display().to_string(),
                Ok(None) => "none".to_owned(),
                Err(error) => format!("unusable: {error}"),
            },
        );
        let quant_plan = self.outline.quant_plan();
        for Class { name, format, weights, bytes: size } in quant_plan.classes() {
            let bits = 8.0 * size as f64 / weights as f64;
            lines.add("plan", &format!("{name:20}{:7}{:>9}{bits:7.2} bits", format.name(), bytes(size)));
        }
        let bits = [quant_plan.bits_per_weight(), quant_plan.bits_per_matrix_weight()];
        lines.add("bits per weight", &format!("{:.2} of the whole file, {:.2} of all matrices", bits[0], bits[1]));
        if let Ok(plan) = &self.plan {
            lines.add("context here", &format!("{} tokens", plan.context));
            lines.add("memory", &format!("weights {}", bytes(plan.weights)));
            lines.add("memory", &format!("KV cache {}, taken on demand", bytes(plan.kv_cache)));
            lines.add("memory", &format!("scratch {}", bytes(plan.scratch)));
            lines.add("memory", &format!("together {}", bytes(plan.total())));
            if let Some(available) = plan.available {
                lines.add("memory", &format!("available {}", bytes(available)));
            }
        }
        if with_tensors {
            for tensor in &self.tensors {
                let name = escape_controls(&tensor.name);
                lines.text.push_str(&format!("{name}  {}  {:?}\n", tensor.dtype, tensor.shape));
            }
        }
        lines.text
    }
}

fn class_json(class: &Class) -> Value {
    json!({ "name": class.name, "format": class.format.name(), "weights": class.weights, "bytes": class.bytes })
}

fn tensor_json(tensor: &TensorView) -> Value {
    json!({
        "name": tensor.name,
        "dtype": tensor.dtype.to_string(),
        "shape": tensor.shape,
        "bytes": tensor.bytes.len(),
        "file": tensor.file.display().to_string(),
    })
}

/// `5.6 M`, `8.0 B`.
fn parameters(n: u64) -> String {
    match n {
        0..1_000_000 => n.to_string(),
        1_000_000..1_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.1} B", n as f64 / 1e9),
    }
}

/// Lines of a name and a value. A repeated name is not shown again.
#[derive(Default)]
struct Lines {
    text: String,
    last: &'static str,
}

impl Lines {
    fn add(&mut self, name: &'static str, value: &str) {
        let name = if name == self.last { "" } else { name };
        if !name.is_empty() {
            self.last = name;
        }
        self.text.push_str(&format!("{name:16}{}\n", escape_controls(value)));
    }
}
