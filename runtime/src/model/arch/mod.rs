//! The model families: names and facts, one file each. Each turns a config, and the names that its checkpoint has,
//! into a [`Spec`].

mod experts;
mod gemma;
mod gemma2;
mod gemma3;
mod gpt2;
mod llama;
mod mistral;
mod mixtral;
mod opt;
mod parts;
mod persimmon;
mod phi;
mod phi3;
mod phimoe;
mod qwen;
mod rope;
mod stablelm;

use crate::error::{Error, Result};
use crate::load::json::shown_name;
use crate::load::{Checkpoint, Config};
use crate::model::spec::Spec;

/// Class name, `model_type`, and the function that knows the family.
type Architecture = (&'static str, &'static str, fn(&Config, &Checkpoint) -> Result<Spec>);

/// What can be run.
const ARCHITECTURES: &[Architecture] = &[
    ("LlamaForCausalLM", "llama", llama::spec),
    // As the first checkpoints of Llama spell it.
    ("LLaMAForCausalLM", "llama", llama::spec),
    ("MistralForCausalLM", "mistral", mistral::spec),
    ("MixtralForCausalLM", "mixtral", mixtral::spec),
    ("PhiForCausalLM", "phi", phi::spec),
    ("Phi3ForCausalLM", "phi3", phi3::spec),
    ("PhiMoEForCausalLM", "phimoe", phimoe::spec),
    ("PhimoeForCausalLM", "phimoe", phimoe::spec),
    ("Qwen2ForCausalLM", "qwen2", qwen::qwen2),
    ("Qwen3ForCausalLM", "qwen3", qwen::qwen3),
    ("GemmaForCausalLM", "gemma", gemma::spec),
    ("Gemma2ForCausalLM", "gemma2", gemma2::spec),
    ("Gemma3ForCausalLM", "gemma3_text", gemma3::spec),
    ("Gemma3ForConditionalGeneration", "gemma3", gemma3::spec),
    ("StableLmForCausalLM", "stablelm", stablelm::spec),
    ("GPT2LMHeadModel", "gpt2", gpt2::spec),
    ("OPTForCausalLM", "opt", opt::spec),
    ("PersimmonForCausalLM", "persimmon", persimmon::spec),
];

/// The class names of the architectures that can be run.
pub fn supported_architectures() -> impl Iterator<Item = &'static str> {
    ARCHITECTURES.iter().map(|(class, _, _)| *class)
}

/// The facts of the model that `config` describes. The checkpoint settles what configs leave open: how its tensors
/// are named, and whether experts are stored one by one. That all of them are there is for
/// [`check_tensors`](crate::load::check_tensors) to say.
///
/// # Errors
/// [`Error::Unsupported`] for an architecture that is not there or a checkpoint that is already quantized,
/// [`Error::Config`] for a value that no model can have.
pub fn spec_from(config: &Config, checkpoint: &Checkpoint) -> Result<Spec> {
    refuse_quantized(config)?;
    let classes = config.optional_texts("architectures")?.unwrap_or_default();
    let model_type = config.optional_text("model_type")?;
    let found = match (classes.first(), model_type) {
        (Some(class), _) => ARCHITECTURES.iter().find(|(known, _, _)| known == class),
        (None, Some(model_type)) => ARCHITECTURES.iter().find(|(_, known, _)| *known == model_type),
        (None, None) => return Err(config.error("architectures", "the name of the model's class, or a model_type")),
    };
    let Some((_, _, spec)) = found else {
        let name = shown_name(classes.first().copied().or(model_type).unwrap_or_default());
        let known = supported_architectures().collect::<Vec<_>>().join(", ");
        let what = format!("architecture {name}; supported are {known}");
        return Err(Error::Unsupported { path: config.path().to_owned(), what });
    };
    spec(config, checkpoint)
}

/// Weights that were quantized by another program have layouts of their own.
fn refuse_quantized(config: &Config) -> Result<()> {
    for key in ["quantization_config", "compression_config"] {
        let Some(section) = config.optional_section(key)? else { continue };
        let bitsandbytes = section.flag("load_in_4bit", false)? || section.flag("load_in_8bit", false)?;
        let method = match section.optional_text("quant_method")? {
            Some(method) => shown_name(method),
            None if bitsandbytes => "bitsandbytes".to_owned(),
            None => "an unnamed method".to_owned(),
        };
        let what = format!(
            "checkpoint: it is already quantized with {method}; take the original model, which can be quantized while it is loaded"
        );
        return Err(Error::Unsupported { path: config.path().to_owned(), what });
    }
    Ok(())
}
