//! What can be known of a model before its weights are touched.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use infer_kernels::cpu::matrix::ElementType;

use super::Model;
use super::arch::spec_from;
use super::engine::MAX_ROWS;
use super::load::{check_options, load};
use super::spec::{FeedForward, Linear, Mlp, Spec};
use crate::chat_template::ChatTemplate;
use crate::error::{Error, Result};
use crate::load::{
    Checkpoint, Config, Dtype, MemoryPlan, ModelFiles, PlanOptions, Shape, available_memory, check_tensors, plan_memory,
};
use crate::options::{KvType, LoadOptions};
use crate::quantize::QuantPlan;
use crate::text_files::Companion;
use crate::tokenizer::Tokenizer;

/// Multiply-adds of a chunk of prefill: about a second of work for two cores with quantized weights, three in f32.
/// Progress is told after each chunk, other sessions wait for one at most, and no more is lost when a prefill is
/// cancelled.
const CHUNK_WORK: usize = 600_000_000_000;
/// The least tokens that a matrix should meet in a chunk, on average: with fewer, bringing the weights into form takes a
/// good part of the time.
const LEAST_CHUNK: usize = 256;

/// A model's facts, the table of its tensors, its tokenizer and template: read and checked, without its weights. It
/// is the first half of [`Model::load`](crate::Model::load), and costs a small part of the time.
pub struct Outline {
    pub(crate) files: ModelFiles,
    pub(super) spec: Arc<Spec>,
    pub(super) checkpoint: Checkpoint,
    pub(super) unused_tensors: Vec<String>,
    pub(super) quant_plan: QuantPlan,
    pub(super) tokenizer: Companion<Tokenizer>,
    pub(super) chat_template: Companion<ChatTemplate>,
    pub(crate) options: LoadOptions,
}

impl Outline {
    /// Reads and checks the files of a folder, or of a .safetensors file with the others beside it.
    ///
    /// # Errors
    /// Those of [`Model::load`](crate::Model::load) but [`Error::Memory`].
    pub fn open(path: impl AsRef<Path>, options: LoadOptions) -> Result<Outline> {
        check_options(&options)?;
        Outline::new(ModelFiles::open(path.as_ref())?, options)
    }

    /// The same for files in memory: their names (as in a folder) and contents.
    ///
    /// # Errors
    /// As [`Self::open`]; messages name the files as they are named here.
    pub fn from_bytes(files: Vec<(String, Cow<'static, [u8]>)>, options: LoadOptions) -> Result<Outline> {
        check_options(&options)?;
        Outline::new(ModelFiles::from_bytes(files), options)
    }

    /// A model of this shape with random weights, for measuring speed. It has no tokenizer, and what it says is noise.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for the options.
    pub fn of_shape(shape: &Shape, options: LoadOptions) -> Result<Outline> {
        check_options(&options)?;
        Outline::new(ModelFiles::of_shape(shape), options)
    }

    fn new(files: ModelFiles, options: LoadOptions) -> Result<Outline> {
        let checkpoint = Checkpoint::open(&files)?;
        let config = Config::read(&files)?;
        let spec = Arc::new(spec_from(&config, &checkpoint)?);
        let unused_tensors = check_tensors(&spec, &checkpoint)?.unused;
        let quant_plan = QuantPlan::new(&spec, &checkpoint, options.weights, &options.overrides)?;
        let tokenizer = Companion::tokenizer(&files);
        let chat_template = Companion::chat_template(&files);
        if let Some(tokenizer) = tokenizer.usable()
            && tokenizer.vocab_size() > spec.vocab_size
        {
            let (found, expected) = (tokenizer.vocab_size(), spec.vocab_size);
            let problem = format!("expected ids below {expected}, the rows of the embedding, found id {}", found - 1);
            return Err(Error::Tokenizer { path: tokenizer.path().to_owned(), problem });
        }
        Ok(Outline { files, spec, checkpoint, unused_tensors, quant_plan, tokenizer, chat_template, options })
    }

    /// The second half: loads the weights.
    ///
    /// # Errors
    /// [`Error::Memory`] if they do not fit, and those of generation_config.json and of the weights' values.
    pub fn load(self) -> Result<Model> {
        load(self)
    }

    /// The facts that tell this model from others.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The tensors of its files.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Names of tensors that the files have and the model does not use.
    pub fn unused_tensors(&self) -> &[String] {
        &self.unused_tensors
    }

    /// The tokenizer; `None` if the model has none.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if there is one that cannot be used.
    pub fn tokenizer(&self) -> Result<Option<&Tokenizer>> {
        self.tokenizer.get()
    }

    /// The chat template; `None` if the model has none.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] if there is one that cannot be used.
    pub fn chat_template(&self) -> Result<Option<&ChatTemplate>> {
        self.chat_template.get()
    }

    /// What each matrix becomes.
    pub fn quant_plan(&self) -> &QuantPlan {
        &self.quant_plan
    }

    /// What the model will take of the memory.
    ///
    /// # Errors
    /// [`Error::Memory`] if it does not fit, with the numbers and what would; [`Error::InvalidOption`] for a context
    /// beyond the model's.
    pub fn memory_plan(&self) -> Result<MemoryPlan> {
        let options = &self.options;
        // Weights that stay where they are mapped are taken already.
        let in_place =
            (!self.quant_plan.quantizes() || self.checkpoint.packed().is_some()) && !self.checkpoint.is_random();
        let mapped = if in_place { self.checkpoint.total_bytes() } else { 0 };
        let plan = PlanOptions {
            kv: self.kv_type(),
            context: options.context,
            beyond_context: options.beyond_context,
            chunk: self.prefill_chunk(),
            available: options.memory.or_else(|| available_memory(mapped)),
        };
        plan_memory(&self.spec, &self.checkpoint, &self.quant_plan, &plan)
    }

    pub(super) fn kv_type(&self) -> KvType {
        self.options.kv_type(self.is_stored_as_bf16())
    }

    /// Whether the embedding is stored in bf16, and so, as a rule, everything.
    fn is_stored_as_bf16(&self) -> bool {
        let dtype = self.checkpoint.dtype(&self.spec.embedding.weight.tensor);
        dtype.and_then(Dtype::element_type) == Some(ElementType::Bf16)
    }

    /// Tokens of a chunk of prefill: a matter of the model alone, so that the same prompt gives the same bits anywhere.
    pub(super) fn prefill_chunk(&self) -> usize {
        let linear = |linear: &Linear| linear.weight.rows.saturating_mul(linear.weight.cols);
        let network = |network: &FeedForward| {
            let gate = network.gate.as_ref().map_or(0, linear);
            gate.saturating_add(linear(&network.up)).saturating_add(linear(&network.down))
        };
        let layers = self.spec.layers.iter().map(|layer| {
            let attention = &layer.attention;
            let projections = [&attention.query, &attention.key, &attention.value, &attention.output].map(linear);
            let mlp = match &layer.mlp {
                Mlp::Dense(dense) => network(dense),
                Mlp::Experts { routing, experts, .. } => {
                    experts.first().map_or(0, network).saturating_mul(routing.n_chosen())
                }
            };
            projections.into_iter().fold(mlp, usize::saturating_add)
        });
        let work = layers.fold(0, usize::saturating_add);
        // Of a mixture, an expert meets only a part of the tokens.
        let spread = self.spec.layers.iter().map(|layer| match &layer.mlp {
            Mlp::Dense(_) => 1,
            Mlp::Experts { routing, experts, .. } => experts.len() / routing.n_chosen().max(1),
        });
        let least = LEAST_CHUNK.saturating_mul(spread.max().unwrap_or(1)).clamp(LEAST_CHUNK, MAX_ROWS);
        (CHUNK_WORK / work.max(1) / 16 * 16).clamp(least, MAX_ROWS)
    }
}
