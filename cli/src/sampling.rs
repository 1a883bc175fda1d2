//! Sampling flags over what the model's generation_config.json says.

use anyhow::Result;
use infer_runtime::SamplingOptions;

use crate::args::SamplingArgs;
use crate::values;

/// The model's defaults with the flags that were given.
pub fn options(args: &SamplingArgs, defaults: &SamplingOptions) -> SamplingOptions {
    SamplingOptions {
        temperature: args.temperature.unwrap_or(defaults.temperature),
        top_k: args.top_k.unwrap_or(defaults.top_k),
        top_p: args.top_p.unwrap_or(defaults.top_p),
        min_p: args.min_p.unwrap_or(defaults.min_p),
        repetition_penalty: args.repeat_penalty.unwrap_or(defaults.repetition_penalty),
        presence_penalty: args.presence_penalty.unwrap_or(defaults.presence_penalty),
        frequency_penalty: args.frequency_penalty.unwrap_or(defaults.frequency_penalty),
        seed: args.seed.or(defaults.seed),
    }
}

/// Sets one option by the name of its flag.
pub fn set(options: &mut SamplingOptions, name: &str, value: &str) -> Result<(), String> {
    match name {
        "temperature" => options.temperature = values::temperature(value)?,
        "top-k" => options.top_k = values::top_k(value)?,
        "top-p" => options.top_p = values::probability(value)?,
        "min-p" => options.min_p = values::probability(value)?,
        "repeat-penalty" => options.repetition_penalty = values::repeat_penalty(value)?,
        "presence-penalty" => options.presence_penalty = values::penalty(value)?,
        "frequency-penalty" => options.frequency_penalty = values::penalty(value)?,
        "seed" if value == "random" => options.seed = None,
        "seed" => options.seed = Some(values::seed(value)?),
        _ => return Err("no such option; /set lists them".to_owned()),
    }
    Ok(())
}

/// Each option by the name of its flag.
pub fn list(options: &SamplingOptions) -> Vec<(&'static str, String)> {
    vec![
        ("temperature", options.temperature.to_string()),
        ("top-k", options.top_k.to_string()),
        ("top-p", options.top_p.to_string()),
        ("min-p", options.min_p.to_string()),
        ("repeat-penalty", options.repetition_penalty.to_string()),
        ("presence-penalty", options.presence_penalty.to_string()),
        ("frequency-penalty", options.frequency_penalty.to_string()),
        ("seed", options.seed.map_or("random".to_owned(), |seed| seed.to_string())),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_option_can_be_set_to_what_is_listed() {
        let mut options = SamplingOptions { top_k: 7, seed: Some(9), ..SamplingOptions::plain() };
        let before = options.clone();
        for (name, value) in list(&before) {
            set(&mut options, name, &value).unwrap_or_else(|problem| panic!("{name} {value}: {problem}"));
        }
        assert_eq!(options, before);
        assert!(set(&mut options, "temperature", "nan").is_err());
        assert!(set(&mut options, "temprature", "1").is_err());
    }
}
