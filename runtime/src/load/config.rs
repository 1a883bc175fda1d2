//! config.json as typed values. An error names the key as the file spells it, its value, and what would be accepted.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::load::files::ModelFiles;
use crate::load::json;

/// The largest config.json or generation_config.json read; those of published models have a few thousand bytes, and
/// values take some thirty times their text in memory.
pub(crate) const LARGEST_CONFIG: u64 = 256 << 10;

/// The largest size accepted. Products of two sizes fit 64 bits; those of more are checked where they are taken.
const LARGEST_SIZE: u64 = i32::MAX as u64;

/// config.json, or an object inside it.
#[derive(Clone, Debug)]
pub struct Config {
    path: PathBuf,
    /// The keys that lead here, each followed by a dot.
    prefix: String,
    map: Map<String, Value>,
}

impl Config {
    /// Reads config.json.
    ///
    /// # Errors
    /// [`Error::File`] if it is missing, not JSON, or not an object.
    pub fn read(files: &ModelFiles) -> Result<Config> {
        match files.read("config.json", LARGEST_CONFIG)? {
            Some(file) => Config::parse(&file.path, &file.bytes),
            None => {
                let problem = "no such file; it lies beside the weights in a Hugging Face folder";
                Err(Error::file(&files.path("config.json"), problem))
            }
        }
    }

    /// Parses the text of a config; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::File`] if it is not JSON or not an object.
    pub fn parse(path: &Path, text: &[u8]) -> Result<Config> {
        Ok(Config { path: path.to_owned(), prefix: String::new(), map: json::parse_object(path, text)? })
    }

    /// Where the config came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A value that is there and not null.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key is there with the value null.
    pub(crate) fn is_null(&self, key: &str) -> bool {
        self.map.get(key).is_some_and(Value::is_null)
    }

    /// Whether there is no key at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// An object inside this one that is not there.
    pub(crate) fn empty_section(&self, key: &str) -> Config {
        Config { path: self.path.clone(), prefix: format!("{}{key}.", self.prefix), map: Map::new() }
    }

    /// The error of a value that no model can have.
    pub(crate) fn error(&self, key: &str, expected: impl Into<String>) -> Error {
        let found = match self.map.get(key) {
            None => "missing".to_owned(),
            // How `json::parse` keeps numbers that are not finite.
            Some(Value::String(text)) if matches!(text.as_str(), "NaN" | "Infinity" | "-Infinity") => text.clone(),
            Some(value) => json::shortened(value),
        };
        Error::Config {
            path: self.path.clone(),
            key: format!("{}{key}", self.prefix),
            found,
            expected: expected.into(),
        }
    }

    /// A size from 1 up. Only an absent key takes the default.
    pub(crate) fn size(&self, key: &str, default: usize) -> Result<usize> {
        match self.map.get(key) {
            None => Ok(default),
            Some(value) => self.whole_number(key, value, 1),
        }
    }

    /// A size from 1 up; none if the key is absent or null.
    pub(crate) fn optional_size(&self, key: &str) -> Result<Option<usize>> {
        self.get(key).map(|value| self.whole_number(key, value, 1)).transpose()
    }

    /// A number of things, which may be none.
    pub(crate) fn count(&self, key: &str, default: usize) -> Result<usize> {
        self.get(key).map_or(Ok(default), |value| self.whole_number(key, value, 0))
    }

    fn whole_number(&self, key: &str, value: &Value, least: u64) -> Result<usize> {
        match value.as_u64() {
            Some(size) if (least..=LARGEST_SIZE).contains(&size) => Ok(size as usize),
            _ => Err(self.error(key, format!("a whole number from {least} to {LARGEST_SIZE}"))),
        }
    }

    /// A number above zero that is finite as f32, too. Only an absent key takes the default.
    pub(crate) fn positive(&self, key: &str, default: f64) -> Result<f64> {
        match self.map.get(key) {
            None => Ok(default),
            Some(value) => self.positive_number(key, value),
        }
    }

    /// A number above zero; none if the key is absent or null.
    pub(crate) fn optional_positive(&self, key: &str) -> Result<Option<f64>> {
        self.get(key).map(|value| self.positive_number(key, value)).transpose()
    }

    /// A number above zero that must be there.
    pub(crate) fn required_positive(&self, key: &str) -> Result<f64> {
        self.optional_positive(key)?.ok_or_else(|| self.error(key, "a number above zero"))
    }

    fn positive_number(&self, key: &str, value: &Value) -> Result<f64> {
        match value.as_f64() {
            Some(number) if (number as f32).is_finite() && number as f32 > 0.0 => Ok(number),
            _ => Err(self.error(key, "a finite number above zero")),
        }
    }

    /// A finite number; none if the key is absent or null.
    pub(crate) fn optional_number(&self, key: &str) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) if (number as f32).is_finite() => Ok(Some(number)),
                _ => Err(self.error(key, "a finite number")),
            },
        }
    }

    /// A list of numbers above zero; none if the key is absent or null.
    pub(crate) fn optional_positives(&self, key: &str) -> Result<Option<Vec<f64>>> {
        let wrong = || self.error(key, "a list of finite numbers above zero");
        let Some(value) = self.get(key) else { return Ok(None) };
        let numbers = value.as_array().ok_or_else(wrong)?.iter().map(|value| match value.as_f64() {
            Some(number) if (number as f32).is_finite() && number as f32 > 0.0 => Ok(number),
            _ => Err(wrong()),
        });
        numbers.collect::<Result<_>>().map(Some)
    }

    /// true or false. An absent key or null takes the default.
    pub(crate) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.error(key, "true or false")),
        }
    }

    /// A text; none if the key is absent or null.
    pub(crate) fn optional_text(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| self.error(key, "a text")),
        }
    }

    /// A list of texts; none if the key is absent or null.
    pub(crate) fn optional_texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let texts = value.as_array().and_then(|values| values.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        texts.map(Some).ok_or_else(|| self.error(key, "a list of texts"))
    }

    /// An object inside this one; none if the key is absent or null.
    pub(crate) fn optional_section(&self, key: &str) -> Result<Option<Config>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => {
                let prefix = format!("{}{key}.", self.prefix);
                Ok(Some(Config { path: self.path.clone(), prefix, map: map.clone() }))
            }
            Some(_) => Err(self.error(key, "an object")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::parse(Path::new("config.json"), text.as_bytes()).unwrap()
    }

    #[test]
    fn bad_values_are_named_by_their_key_and_value() {
        let sizes = ["0", "-1", "\"32\"", "1.5", "32.0", "1000000000000", "1e30", "[]", "true", "null", "NaN"];
        for value in sizes {
            let found = config(&format!(r#"{{"hidden_size": {value}}}"#)).size("hidden_size", 7).unwrap_err();
            let found = found.to_string();
            assert!(found.starts_with("config.json: hidden_size is "), "{value}: {found}");
            assert!(found.ends_with("expected a whole number from 1 to 2147483647"), "{value}: {found}");
        }
        for value in ["0", "-1e-5", "NaN", "Infinity", "1e999", "1e-999", "1e300", "1e-60", "\"1\"", "null"] {
            let found = config(&format!(r#"{{"rope": {{"factor": {value}}}}}"#));
            let found =
                found.optional_section("rope").unwrap().unwrap().positive("factor", 1.0).unwrap_err().to_string();
            assert!(found.starts_with("config.json: rope.factor is "), "{value}: {found}");
            assert!(found.ends_with("expected a finite number above zero"), "{value}: {found}");
        }
        assert!(config(r#"{"theta": NaN}"#).positive("theta", 1.0).unwrap_err().to_string().contains("theta is NaN,"));
    }

    #[test]
    fn absent_values_take_the_default() {
        let config = config(r#"{"kv": null, "eps": 1e-5, "n": 3}"#);
        assert_eq!(config.size("hidden_size", 7).unwrap(), 7);
        assert_eq!(config.optional_size("kv").unwrap(), None);
        assert_eq!(config.positive("eps", 1.0).unwrap(), 1e-5);
        assert_eq!(config.positive("n", 1.0).unwrap(), 3.0);
        assert!(config.flag("tied", true).unwrap());
        assert!(config.flag("n", true).unwrap_err().to_string().contains("n is 3, expected true or false"));
    }
}
