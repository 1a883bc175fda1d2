//! What a model will take of the memory, before any of it is taken.

use std::fmt;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::kv_cache::{bytes_for_context, group_layers};
use crate::load::Checkpoint;
use crate::model::spec::{Mlp, Spec};
use crate::options::{KvType, WeightFormat};
use crate::quantize::QuantPlan;

/// The context of a model that has no limit of its own, if memory does not set one.
const UNLIMITED_CONTEXT: usize = 1 << 20;

/// Formats that may be smaller, and the program's flags for them.
const FORMATS: [(&str, WeightFormat); 2] = [("--q8", WeightFormat::Int8), ("--q4", WeightFormat::Int4)];

/// What the caller wants.
#[derive(Clone, Copy, Debug)]
pub struct PlanOptions {
    /// The type of cached keys and values.
    pub kv: KvType,
    /// The longest sequence, in tokens; none asks for the model's own or what fits.
    pub context: Option<usize>,
    /// Whether `context` may exceed what the model was made for, where it can (learned positions end).
    pub beyond_context: bool,
    /// The most tokens of one forward pass.
    pub chunk: usize,
    /// Bytes that may be taken; none if that is not known.
    pub available: Option<u64>,
}

/// Bytes that a model takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryPlan {
    /// The weights; those that stay mapped count as well.
    pub weights: u64,
    /// The cache of one sequence of `context` tokens. Its blocks are taken on demand.
    pub kv_cache: u64,
    /// Activations of the largest forward pass.
    pub scratch: u64,
    /// Bytes that may be taken; none if that is not known.
    pub available: Option<u64>,
    /// The longest sequence, in tokens.
    pub context: usize,
}

impl MemoryPlan {
    /// Weights, cache and scratch together.
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.kv_cache).saturating_add(self.scratch)
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [weights, kv_cache, scratch, total] = [self.weights, self.kv_cache, self.scratch, self.total()].map(Amount);
        write!(f, "weights {weights} + cache {kv_cache} for {} tokens + scratch {scratch} = {total}", self.context)?;
        match self.available {
            Some(available) => write!(f, ", available {}", Amount(available)),
            None => Ok(()),
        }
    }
}

/// Bytes for a person: three digits and a decimal unit.
pub(crate) struct Amount(pub u64);

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0 as f64;
        let (value, unit) = match self.0 {
            0..1_000 => return write!(f, "{} B", self.0),
            1_000..1_000_000 => (bytes / 1e3, "kB"),
            1_000_000..1_000_000_000 => (bytes / 1e6, "MB"),
            1_000_000_000..1_000_000_000_000 => (bytes / 1e9, "GB"),
            _ => (bytes / 1e12, "TB"),
        };
        write!(f, "{value:.*} {unit}", if value < 10.0 { 2 } else { usize::from(value < 100.0) })
    }
}

/// Plans the memory of a model whose tensors have been checked.
///
/// # Errors
/// [`Error::Memory`] with the numbers and with what would fit, [`Error::InvalidOption`] for a context beyond the model's.
pub fn plan_memory(
    spec: &Spec,
    checkpoint: &Checkpoint,
    weights: &QuantPlan,
    options: &PlanOptions,
) -> Result<MemoryPlan> {
    let (groups, _) = group_layers(spec, options.kv);
    let mut smaller_weights = Vec::new();
    let formats = if checkpoint.packed().is_some() { &[][..] } else { &FORMATS };
    for &(flag, format) in formats {
        let bytes = QuantPlan::new(spec, checkpoint, format, weights.overrides())?.memory_bytes();
        if bytes < weights.memory_bytes() {
            smaller_weights.push((flag, bytes));
        }
    }
    let costs = Costs {
        weights: weights.memory_bytes(),
        smaller_weights,
        scratch: scratch_bytes(spec, options.chunk),
        cache: &|context| bytes_for_context(&groups, context, options.chunk),
    };
    let can_go_on = options.beyond_context && options.context.is_some() && spec.embedding.positions.is_none();
    costs.plan(options.available, options.context, spec.context_length.filter(|_| !can_go_on))
}

/// Values that attention keeps for a query beside the sums of values: the largest score, the sum of weights, padding.
const ATTENTION_EXTRA: usize = 16;

/// What a value of the widest input of a projection takes beside itself: its code and its share of scales and sums, for
/// int8 and for int4 weights (see [`infer_kernels::quant::inputs`]).
const QUANTIZED_BYTES: u64 = 3;

/// What an entry of the vocabulary takes: the logit as it is computed, in the session and in the sampler (4 bytes each),
/// its probability (8), and its count (4).
const LOGIT_BYTES: u64 = 24;

/// Bytes of activations of a pass of `rows` tokens that asks for the logits of the last, and of drawing a token.
fn scratch_bytes(spec: &Spec, rows: usize) -> u64 {
    let widest = |layer: &dyn Fn(&crate::model::spec::Layer) -> usize| spec.layers.iter().map(layer).max().unwrap_or(0);
    let attention = widest(&|layer| {
        let attention = &layer.attention;
        let heads = attention.n_heads.saturating_add(attention.n_kv_heads);
        // Of each head the query, the sums of values with their weights, and the output; of each KV head key and value.
        heads
            .saturating_mul(2)
            .saturating_mul(attention.head_dim)
            .saturating_add(attention.n_heads.saturating_mul(attention.head_dim.saturating_add(ATTENTION_EXTRA)))
    });
    let mlp = widest(&|layer| match &layer.mlp {
        Mlp::Dense(network) => network.up.rows().saturating_mul(3),
        Mlp::Experts { experts, routing, .. } => {
            let expert = experts.first().map_or(0, |expert| expert.up.rows().saturating_mul(3));
            // Every row may go to one expert; the inputs and outputs of all that it chose are kept.
            let gathered = spec.hidden_size.saturating_mul(2).saturating_mul(routing.n_chosen());
            expert.saturating_add(gathered).saturating_add(experts.len()).saturating_add(2 * routing.n_chosen())
        }
    });
    // The residual stream, its normed copy, and the output of a half-layer.
    let row = spec.hidden_size.saturating_mul(3).saturating_add(attention).saturating_add(mlp);
    let values = (row.saturating_mul(rows) as u64).saturating_mul(size_of::<f32>() as u64);
    let widest_input = widest(&|layer| {
        let attended = layer.attention.n_heads.saturating_mul(layer.attention.head_dim);
        let intermediate = match &layer.mlp {
            Mlp::Dense(network) => network.up.rows(),
            Mlp::Experts { experts, .. } => experts.first().map_or(0, |expert| expert.up.rows()),
        };
        attended.max(intermediate).max(spec.hidden_size)
    });
    let quantized = (widest_input.saturating_mul(rows) as u64).saturating_mul(QUANTIZED_BYTES);
    values.saturating_add(quantized).saturating_add((spec.vocab_size as u64).saturating_mul(LOGIT_BYTES))
}

/// What decides a plan.
struct Costs<'a> {
    weights: u64,
    /// Formats that would be smaller: the program's flag, and bytes.
    smaller_weights: Vec<(&'static str, u64)>,
    scratch: u64,
    /// The cache of so many tokens.
    cache: &'a dyn Fn(usize) -> u64,
}

impl Costs<'_> {
    fn plan(&self, available: Option<u64>, context: Option<usize>, longest: Option<usize>) -> Result<MemoryPlan> {
        let wanted = context.or(longest).unwrap_or(UNLIMITED_CONTEXT);
        let room = available.unwrap_or(u64::MAX);
        let cache_room = |weights: u64| room.checked_sub(weights.saturating_add(self.scratch));
        let fitting = cache_room(self.weights).map_or(0, |room| self.largest_context(room, wanted));
        if fitting == 0 || context.is_some_and(|context| fitting < context) {
            return Err(self.refusal(self.of_context(wanted, available), fitting, &cache_room));
        }
        match (context, longest) {
            (Some(context), Some(longest)) if context > longest => Err(Error::InvalidOption {
                option: "context",
                expected: format!("at most {longest}, which the model was made for"),
                found: context.to_string(),
            }),
            _ => Ok(self.of_context(fitting, available)),
        }
    }

    fn of_context(&self, context: usize, available: Option<u64>) -> MemoryPlan {
        let kv_cache = (self.cache)(context);
        MemoryPlan { weights: self.weights, kv_cache, scratch: self.scratch, available, context }
    }

    /// The largest context of at most `longest` tokens whose cache fits `room`; 0 if not even that of one token does.
    fn largest_context(&self, room: u64, longest: usize) -> usize {
        let fits = |context: usize| (self.cache)(context) <= room;
        let (mut fitting, mut too_long) = (0, longest.saturating_add(1));
        while too_long - fitting > 1 {
            let middle = fitting + (too_long - fitting) / 2;
            if fits(middle) { fitting = middle } else { too_long = middle }
        }
        fitting
    }

    fn refusal(&self, plan: MemoryPlan, fitting: usize, cache_room: &dyn Fn(u64) -> Option<u64>) -> Error {
        let mut would_fit = Vec::new();
        if fitting > 0 {
            would_fit.push(format!("--ctx {fitting}"));
        }
        for (flag, weights) in &self.smaller_weights {
            let context = cache_room(*weights).map_or(0, |room| self.largest_context(room, plan.context));
            if context == plan.context {
                would_fit.push((*flag).to_owned());
            } else if context > fitting {
                would_fit.push(format!("{flag} --ctx {context}"));
            }
        }
        let advice = if would_fit.is_empty() {
            "nothing smaller fits either".to_owned()
        } else {
            format!("would fit: {}", would_fit.join(", or "))
        };
        Error::Memory(format!("{plan}; {advice}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    /// A cache of 1024 bytes for every 16 tokens.
    fn costs(smaller_weights: Vec<(&'static str, u64)>) -> Costs<'static> {
        let cache = &|context: usize| (context as u64).div_ceil(16).saturating_mul(1024);
        Costs { weights: 10_000, smaller_weights, scratch: 1_000, cache }
    }

    #[test]
    fn the_context_is_the_models_or_what_fits() {
        let cases = [
            // available, asked for, the model's: planned
            (None, None, Some(100), 100),
            (None, None, None, UNLIMITED_CONTEXT),
            (Some(1_000_000), None, Some(100), 100),
            (Some(1_000_000), Some(7), Some(100), 7),
            (Some(1_000_000), Some(500), None, 500),
            (Some(11_000 + 1024), None, Some(100), 16),
            (Some(11_000 + 2047), None, Some(100), 16),
            (Some(11_000 + 2048), None, Some(100), 32),
            (Some(11_000 + 7 * 1024), None, None, 112),
        ];
        for (available, context, longest, expected) in cases {
            let plan = costs(Vec::new()).plan(available, context, longest).unwrap();
            assert_eq!(plan.context, expected, "available {available:?}, asked {context:?}, model's {longest:?}");
            assert_eq!(plan.kv_cache, expected.div_ceil(16) as u64 * 1024);
            assert!(plan.total() <= available.unwrap_or(u64::MAX));
        }
    }

    #[test]
    fn refusals_give_the_numbers_and_what_would_fit() {
        let cases = [
            (
                Some(12_100),
                Some(64),
                "weights 10.0 kB + cache 4.10 kB for 64 tokens + scratch 1.00 kB = 15.1 kB, available 12.1 kB; \
                 would fit: --ctx 16, or --q8 --ctx 48, or --q4",
            ),
            (
                Some(9_000),
                None,
                "for 100 tokens + scratch 1.00 kB = 18.2 kB, available 9.00 kB; would fit: --q4 --ctx 48",
            ),
            (Some(500), None, "available 500 B; nothing smaller fits either"),
        ];
        for (available, context, expected) in cases {
            let found = costs(vec![("--q8", 7_700), ("--q4", 4_000)]).plan(available, context, Some(100));
            let found = found.unwrap_err().to_string();
            assert!(found.starts_with("not enough memory: ") && found.contains(expected), "found: {found}");
        }
    }

    #[test]
    fn a_context_beyond_the_models_is_wrong_use_unless_it_is_beyond_the_memory() {
        let found = costs(Vec::new()).plan(Some(1_000_000), Some(101), Some(100)).unwrap_err();
        assert_eq!(found.to_string(), "context: expected at most 100, which the model was made for, found 101");
        let found = costs(Vec::new()).plan(Some(1_000_000), Some(usize::MAX), Some(100)).unwrap_err();
        assert!(matches!(found, Error::Memory(_)), "{found}");
    }

    #[test]
    fn amounts_have_three_digits() {
        let cases = [
            (999, "999 B"),
            (1_000, "1.00 kB"),
            (25_600, "25.6 kB"),
            (14_960_000_000, "15.0 GB"),
            (u64::MAX, "18446744 TB"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(Amount(bytes).to_string(), expected);
        }
    }
}
