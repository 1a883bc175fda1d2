//! What a model's files say about generation: the end tokens, and how its makers want tokens to be chosen.

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::load::{LARGEST_CONFIG, ModelFiles};
use crate::sampling::SamplingOptions;

/// The key of the end tokens, in config.json and in generation_config.json.
const EOS: &str = "eos_token_id";

/// The end tokens that config.json and generation_config.json name, and the sampling that the latter asks for, or the
/// default.
pub(crate) fn read(files: &ModelFiles) -> Result<(Vec<u32>, SamplingOptions)> {
    let (mut ids, mut options) = (Vec::new(), None);
    for name in ["config.json", "generation_config.json"] {
        let Some(json) = files.read_json(name, LARGEST_CONFIG)? else { continue };
        let path = files.path(name);
        if !json.is_object() {
            return Err(Error::file(&path, "expected a JSON object"));
        }
        ids.extend(end_tokens(&path, &json)?);
        if name == "generation_config.json" {
            options = sampling(&path, &json)?;
        }
    }
    Ok((ids, options.unwrap_or_default()))
}

/// The end tokens that a JSON file names: a number or a list of numbers. Negative ones mean none.
fn end_tokens(path: &Path, json: &Value) -> Result<Vec<u32>> {
    let refuse = |found: &Value| wrong(path, EOS, found, "a token id or a list of token ids");
    let id = |value: &Value| match value.as_i64() {
        Some(negative) if negative < 0 => Ok(None),
        Some(id) => u32::try_from(id).map(Some).map_err(|_| refuse(value)),
        None => Err(refuse(value)),
    };
    match json.get(EOS) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(ids)) => Ok(ids.iter().map(id).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect()),
        Some(value) => Ok(id(value)?.into_iter().collect()),
    }
}

/// The sampling that generation_config.json asks for: nothing if it does not say `do_sample`. What it leaves out has
/// the reference library's defaults: temperature 1, top-k 50, no other filter and no penalty.
fn sampling(path: &Path, json: &Value) -> Result<Option<SamplingOptions>> {
    match json.get("do_sample") {
        Some(Value::Bool(true)) => {}
        None | Some(Value::Null | Value::Bool(false)) => return Ok(None),
        Some(other) => return Err(wrong(path, "do_sample", other, "true or false")),
    }
    let number = |key: &str, default: f32, expected: &str| match json.get(key) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => match value.as_f64() {
            Some(number) => Ok(number as f32),
            None => Err(wrong(path, key, value, expected)),
        },
    };
    let top_k = match json.get("top_k") {
        None | Some(Value::Null) => 50,
        Some(value) => {
            let k = value.as_u64().and_then(|k| usize::try_from(k).ok());
            k.ok_or_else(|| wrong(path, "top_k", value, "a whole number, 0 or more"))?
        }
    };
    let options = SamplingOptions {
        temperature: number("temperature", 1.0, "a number, 0 or more")?,
        top_k,
        top_p: number("top_p", 1.0, "a number from 0 to 1")?,
        min_p: number("min_p", 0.0, "a number from 0 to 1")?,
        repetition_penalty: number("repetition_penalty", 1.0, "a number above 0")?,
        ..SamplingOptions::plain()
    };
    match options.validate() {
        Ok(()) => Ok(Some(options)),
        Err(Error::InvalidOption { option, expected, found }) => {
            Err(Error::Config { path: path.to_owned(), key: option.to_owned(), found, expected })
        }
        Err(other) => Err(other),
    }
}

fn wrong(path: &Path, key: &str, found: &Value, expected: &str) -> Error {
    Error::Config {
        path: path.to_owned(),
        key: key.to_owned(),
        found: crate::fence::one_line(&found.to_string()),
        expected: expected.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn path() -> &'static Path {
        Path::new("generation_config.json")
    }

    #[test]
    fn end_tokens_are_a_number_a_list_or_nothing() {
        for (value, expected) in [
            (json!({}), Some(vec![])),
            (json!({"eos_token_id": null}), Some(vec![])),
            (json!({"eos_token_id": 2}), Some(vec![2])),
            (json!({"eos_token_id": [128001, 128009]}), Some(vec![128001, 128009])),
            (json!({"eos_token_id": [-1, 3]}), Some(vec![3])),
            (json!({"eos_token_id": -1}), Some(vec![])),
            (json!({"eos_token_id": "2"}), None),
            (json!({"eos_token_id": [2, null]}), None),
            (json!({"eos_token_id": 2.5}), None),
            (json!({"eos_token_id": 4294967296u64}), None),
        ] {
            let found = end_tokens(path(), &value);
            match expected {
                Some(ids) => assert_eq!(found.expect("end tokens"), ids, "{value}"),
                None => {
                    assert!(matches!(found, Err(Error::Config { ref key, .. }) if key == EOS), "{value}: {found:?}")
                }
            }
        }
    }

    #[test]
    fn sampling_follows_the_file_only_where_it_says_do_sample() {
        let plain = SamplingOptions::plain();
        for (value, expected) in [
            (json!({"temperature": 0.6}), None),
            (json!({"do_sample": false, "temperature": 0.6}), None),
            (json!({"do_sample": true}), Some(SamplingOptions { top_k: 50, ..plain.clone() })),
            (
                json!({"do_sample": true, "temperature": 0.6, "top_p": 0.9, "top_k": 0, "min_p": 0.05,
                       "repetition_penalty": 1.1}),
                Some(SamplingOptions {
                    temperature: 0.6,
                    top_p: 0.9,
                    min_p: 0.05,
                    repetition_penalty: 1.1,
                    ..plain.clone()
                }),
            ),
            (json!({"do_sample": true, "top_k": null, "top_p": null}), Some(SamplingOptions { top_k: 50, ..plain })),
        ] {
            assert_eq!(sampling(path(), &value).expect("valid"), expected, "{value}");
        }
    }

    #[test]
    fn a_value_out_of_range_is_named_by_its_key() {
        for (value, expected_key) in [
            (json!({"do_sample": 1}), "do_sample"),
            (json!({"do_sample": true, "temperature": -1}), "temperature"),
            (json!({"do_sample": true, "temperature": "hot"}), "temperature"),
            (json!({"do_sample": true, "top_p": 1.5}), "top_p"),
            (json!({"do_sample": true, "top_k": -1}), "top_k"),
            (json!({"do_sample": true, "min_p": 2}), "min_p"),
            (json!({"do_sample": true, "repetition_penalty": 0}), "repetition_penalty"),
        ] {
            let found = sampling(path(), &value);
            assert!(matches!(&found, Err(Error::Config { key, .. }) if key == expected_key), "{value}: {found:?}");
        }
    }
}
