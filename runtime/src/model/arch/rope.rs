//! Rotary embeddings as configs describe them.
//!
//! Two writings: `rope_theta` and `rope_scaling` beside each other, or both in `rope_parameters`. A `rope_scaling` that
//! is not empty replaces `rope_parameters`; what it does not say is looked up at the top of the config.

use crate::error::Result;
use crate::load::Config;
use crate::model::rope_scaling as scaling;
use crate::model::spec::{Rope, RopeScaling};

/// What a family says about its rotary embedding besides the config.
pub(super) struct RopeFacts {
    pub head_dim: usize,
    /// The base where the config has none.
    pub default_theta: f64,
    /// The rotated share of a head where the config has none; without one, the family rotates all of it and ignores
    /// `partial_rotary_factor`.
    pub default_partial: Option<f64>,
    /// `max_position_embeddings`.
    pub max_position: usize,
    /// Phi-3's: the trained context stands at the top of the config and wins, and `yarn` is an old name of longrope.
    pub phi3_original_context: Option<usize>,
    /// Phi-3.5-MoE's: `short_mscale` and `long_mscale` are the factors on cos and sin.
    pub has_mscales: bool,
}

impl RopeFacts {
    /// Of a family that rotates whole heads and has no habits of its own.
    pub fn new(head_dim: usize, default_theta: f64, max_position: usize) -> RopeFacts {
        RopeFacts {
            head_dim,
            default_theta,
            default_partial: None,
            max_position,
            phi3_original_context: None,
            has_mscales: false,
        }
    }
}

/// The rotary embedding of all layers.
///
/// # Errors
/// [`crate::Error::Config`] if a value is missing, out of range or of an unknown kind.
pub(super) fn rope(config: &Config, facts: &RopeFacts) -> Result<Rope> {
    let scaling = config.optional_section("rope_scaling")?.filter(|scaling| !scaling.is_empty());
    let section = match scaling {
        Some(scaling) => Some(scaling),
        None => config.optional_section("rope_parameters")?,
    };
    let section = section.unwrap_or_else(|| config.empty_section("rope_parameters"));
    rope_of_section(config, &section, facts)
}

/// The rotary embedding that `section` describes; what it does not say stands in `config`.
pub(super) fn rope_of_section(config: &Config, section: &Config, facts: &RopeFacts) -> Result<Rope> {
    let theta_in = if section.get("rope_theta").is_some() { section } else { config };
    let theta = theta_in.optional_positive("rope_theta")?.unwrap_or(facts.default_theta);
    let rotary_dim = rotary_dim(config, section, facts)?;
    let type_key = if section.get("rope_type").is_some() { "rope_type" } else { "type" };
    let kind = match section.optional_text(type_key)?.unwrap_or("default") {
        "su" => "longrope",
        "yarn" if facts.phi3_original_context.is_some() => "longrope",
        kind => kind,
    };
    // The context that the model was trained with before it was stretched, and the section that says so.
    let original_context = || match facts.phi3_original_context {
        Some(original) => Ok(original),
        None => match section.optional_size("original_max_position_embeddings")? {
            Some(original) => Ok(original),
            None => config.size("original_max_position_embeddings", facts.max_position),
        },
    };
    let scaling = match kind {
        "default" => RopeScaling::Default,
        "linear" | "dynamic" | "llama3" | "yarn" if facts.has_mscales => {
            return Err(section.error(type_key, "default or longrope in this family"));
        }
        "linear" => RopeScaling::Linear { factor: section.required_positive("factor")? as f32 },
        "dynamic" => {
            if rotary_dim <= 2 {
                return Err(section.error(type_key, "a kind that can rotate one pair a head"));
            }
            let factor = section.required_positive("factor")? as f32;
            RopeScaling::Dynamic { factor, original_context: facts.max_position }
        }
        "llama3" => {
            let factor = section.required_positive("factor")?;
            let low = section.required_positive("low_freq_factor")?;
            let high = section.required_positive("high_freq_factor")?;
            if high <= low {
                return Err(section.error("high_freq_factor", format!("more than low_freq_factor, which is {low}")));
            }
            let inv_freq = scaling::llama3(rotary_dim, theta, factor, low, high, original_context()?);
            RopeScaling::Fixed { inv_freq, attention_factor: 1.0 }
        }
        "yarn" => yarn(section, theta, rotary_dim, facts, original_context()?)?,
        "longrope" => longrope(section, theta, rotary_dim, facts, original_context()?)?,
        _ => {
            let known = "one of default, linear, dynamic, yarn, llama3, longrope";
            return Err(section.error(type_key, known));
        }
    };
    let rope = Rope { rotary_dim, theta: theta as f32, scaling };
    if !is_finite(&rope.scaling) {
        return Err(theta_in.error("rope_theta", "a base that gives finite frequencies"));
    }
    Ok(rope)
}

/// Heads of published models have at most 256 values; larger ones are refused before tables are made of them.
const LARGEST_HEAD: usize = 1 << 14;

/// int(head_dim * factor), which must be even because values are rotated in pairs.
fn rotary_dim(config: &Config, section: &Config, facts: &RopeFacts) -> Result<usize> {
    let key = "partial_rotary_factor";
    let (partial_in, partial) = match facts.default_partial {
        None => (config, None),
        Some(default) => {
            let partial_in = if section.get(key).is_some() { section } else { config };
            (partial_in, Some(partial_in.optional_positive(key)?.unwrap_or(default)))
        }
    };
    let dim = (facts.head_dim as f64 * partial.unwrap_or(1.0)) as usize;
    let head_key = if config.get("head_dim").is_some() { "head_dim" } else { "num_attention_heads" };
    if facts.head_dim > LARGEST_HEAD {
        let expected = format!("heads of at most {LARGEST_HEAD} values, now {}", facts.head_dim);
        return Err(config.error(head_key, expected));
    }
    if dim == 0 || dim > facts.head_dim || !dim.is_multiple_of(2) {
        return Err(if partial.is_none_or(|partial| partial == 1.0) {
            config.error(head_key, format!("heads of even size, now {}", facts.head_dim))
        } else {
            let expected = format!("a share of head_dim {} that gives an even number, now {dim}", facts.head_dim);
            partial_in.error(key, expected)
        });
    }
    Ok(dim)
}

fn yarn(section: &Config, theta: f64, rotary_dim: usize, facts: &RopeFacts, original: usize) -> Result<RopeScaling> {
    if theta <= 1.0 {
        return Err(section.error("rope_theta", "more than 1 with yarn"));
    }
    let factor = if section.is_null("factor") {
        facts.max_position as f64 / original as f64
    } else {
        section.required_positive("factor")?
    };
    let m = (section.optional_number("mscale")?, section.optional_number("mscale_all_dim")?);
    let attention_factor = match (section.optional_positive("attention_factor")?, m) {
        (Some(attention_factor), _) => attention_factor,
        // Only both together count, and zero is as good as absent.
        (None, (Some(m), Some(m_all))) if m != 0.0 && m_all != 0.0 => {
            scaling::yarn_attention_factor(factor, m) / scaling::yarn_attention_factor(factor, m_all)
        }
        (None, _) => scaling::yarn_attention_factor(factor, 1.0),
    };
    let beta = |key: &str, default: f64| match section.optional_number(key)? {
        None | Some(0.0) => Ok(default),
        Some(_) => section.positive(key, default),
    };
    let yarn = scaling::Yarn {
        factor,
        original_context: original,
        beta_fast: beta("beta_fast", 32.0)?,
        beta_slow: beta("beta_slow", 1.0)?,
        truncate: section.flag("truncate", true)?,
    };
    let inv_freq = scaling::yarn(rotary_dim, theta, &yarn);
    Ok(RopeScaling::Fixed { inv_freq, attention_factor: attention_factor as f32 })
}

fn longrope(
    section: &Config,
    theta: f64,
    rotary_dim: usize,
    facts: &RopeFacts,
    original_context: usize,
) -> Result<RopeScaling> {
    let frequencies = |key: &str| {
        let factors = section.optional_positives(key)?.unwrap_or_default();
        if factors.len() != rotary_dim / 2 {
            let expected = format!("a list of {} numbers, half of the rotated size of a head", rotary_dim / 2);
            return Err(section.error(key, expected));
        }
        Ok(scaling::longrope(rotary_dim, theta, &factors))
    };
    let (short_attention_factor, long_attention_factor) = if facts.has_mscales {
        (section.required_positive("short_mscale")?, section.required_positive("long_mscale")?)
    } else {
        let factor = match section.optional_positive("factor")? {
            Some(factor) => factor,
            None => facts.max_position as f64 / original_context as f64,
        };
        let attention_factor = match section.optional_positive("attention_factor")? {
            Some(attention_factor) => attention_factor,
            None => scaling::longrope_attention_factor(factor, original_context),
        };
        (attention_factor, attention_factor)
    };
    if !short_attention_factor.is_finite() {
        return Err(section.error("original_max_position_embeddings", "more than 1"));
    }
    Ok(RopeScaling::LongRope {
        short_inv_freq: frequencies("short_factor")?,
        long_inv_freq: frequencies("long_factor")?,
        short_attention_factor: short_attention_factor as f32,
        long_attention_factor: long_attention_factor as f32,
        original_context,
    })
}

fn is_finite(scaling: &RopeScaling) -> bool {
    let finite = |values: &[f32]| values.iter().all(|value| value.is_finite());
    match scaling {
        RopeScaling::Default | RopeScaling::Linear { .. } | RopeScaling::Dynamic { .. } => true,
        RopeScaling::Fixed { inv_freq, attention_factor } => finite(inv_freq) && attention_factor.is_finite(),
        RopeScaling::LongRope { short_inv_freq, long_inv_freq, .. } => finite(short_inv_freq) && finite(long_inv_freq),
    }
}
