//! JSON as Python writes it, read into values with one-line errors that name the file.

use std::borrow::Cow;
use std::path::Path;

use serde_json::error::Category;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::load::content;

/// Parses a JSON text. Numbers that are not finite (`NaN`, `Infinity`, `1e999`: Python reads and writes them) become
/// texts, so that a key that matters can name its value and one that does not matter is harmless.
///
/// # Errors
/// [`Error::File`] if the text is not UTF-8, not JSON or nested too deeply.
pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Value> {
    if let Some(problem) = content::foreign(bytes) {
        return Err(Error::file(path, problem));
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|error| Error::file(path, format!("is not UTF-8 at byte {}", error.valid_up_to())))?;
    if text.trim_ascii().is_empty() {
        return Err(Error::file(path, "is empty"));
    }
    serde_json::from_str(&quote_non_finite(text)).map_err(|error| syntax_error(path, &error))
}

/// As [`parse`], for a file that must hold an object.
///
/// # Errors
/// Those of [`parse`], and [`Error::File`] if the value is something else.
pub(crate) fn parse_object(path: &Path, bytes: &[u8]) -> Result<Map<String, Value>> {
    match parse(path, bytes)? {
        Value::Object(map) => Ok(map),
        other => Err(Error::file(path, format!("expected a JSON object, found {}", shortened(&other)))),
    }
}

/// The error of a text that does not parse.
pub(crate) fn syntax_error(path: &Path, error: &serde_json::Error) -> Error {
    let message = syntax_message(error);
    if message.starts_with("recursion limit exceeded") {
        return Error::file(path, format!("is nested too deeply (at line {})", error.line()));
    }
    let problem = match error.classify() {
        Category::Data => "does not have the form that it must have",
        _ => "is not valid JSON",
    };
    Error::file(path, format!("{problem}: {message}"))
}

/// What a parser says, which may quote its text, on one line.
pub(crate) fn syntax_message(error: &serde_json::Error) -> String {
    shown_name(&crate::fence::one_line(&error.to_string()))
}

/// A value as it stands in its file, cut to a length that fits a message.
pub(crate) fn shortened(value: &Value) -> String {
    const LONGEST: usize = 60;
    match value {
        // No need to print a million entries in order to show sixty characters.
        Value::Array(items) if items.len() > LONGEST => format!("a list of {} values", items.len()),
        Value::Object(map) if map.len() > LONGEST => format!("an object of {} keys", map.len()),
        _ => {
            let text = shown_name(&value.to_string());
            match text.char_indices().nth(LONGEST) {
                Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
                None => text,
            }
        }
    }
}

/// A name out of a file as a message shows it: of bounded length, and without characters that move the cursor.
pub(crate) fn shown_name(name: &str) -> String {
    const LONGEST: usize = 120;
    let mut shown = String::new();
    for (i, character) in name.chars().enumerate() {
        if i == LONGEST {
            shown.push('…');
            break;
        }
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// Puts quotes around numbers outside of texts that are not finite.
fn quote_non_finite(text: &str) -> Cow<'_, str> {
    let mut out = String::new();
    let mut copied = 0;
    let mut rest = text.bytes().enumerate().peekable();
    while let Some((start, byte)) = rest.next() {
        if byte == b'"' {
            while let Some((_, byte)) = rest.next() {
                match byte {
                    b'"' => break,
                    b'\\' => _ = rest.next(),
                    _ => {}
                }
            }
            continue;
        }
        if !(byte.is_ascii_alphanumeric() || byte == b'-') {
            continue;
        }
        let mut end = start + 1;
        while rest.next_if(|(_, byte)| byte.is_ascii_alphanumeric() || b"+-._".contains(byte)).is_some() {
            end += 1;
        }
        let word = text.get(start..end).unwrap_or_default();
        let non_finite = matches!(word, "NaN" | "Infinity" | "-Infinity")
            || (!byte.is_ascii_alphabetic() && word.parse::<f64>().is_ok_and(f64::is_infinite));
        if non_finite {
            out.push_str(text.get(copied..start).unwrap_or_default());
            out.push('"');
            out.push_str(word);
            out.push('"');
            copied = end;
        }
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(text.get(copied..).unwrap_or_default());
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_not_finite_are_kept_as_texts() {
        let path = Path::new("config.json");
        let text = br#"{"a": NaN, "b": [-Infinity, 1e999], "c": "NaN \" NaN", "d": -1e-999, "e": true}"#;
        let found = parse(path, text).unwrap();
        assert_eq!(found.to_string(), r#"{"a":"NaN","b":["-Infinity","1e999"],"c":"NaN \" NaN","d":-0.0,"e":true}"#);
    }

    #[test]
    fn bad_texts_are_named() {
        let deep = "[".repeat(100_000);
        let cases: [(&[u8], &str); 8] = [
            (b"", "is empty"),
            (b" \n", "is empty"),
            (b"{\"a\": \xff}", "not UTF-8 at byte 6"),
            (b"{\"a\": 1,}", "not valid JSON: trailing comma at line 1 column 9"),
            (b"{\"a\": nan}", "not valid JSON"),
            (b"[1]", "expected a JSON object, found [1]"),
            (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"),
            (deep.as_bytes(), "nested too deeply"),
        ];
        for (text, expected) in cases {
            let found = parse_object(Path::new("config.json"), text).unwrap_err().to_string();
            assert!(found.starts_with("config.json: ") && found.contains(expected), "expected {expected}, got {found}");
        }
    }

    #[test]
    fn long_values_are_shortened_in_messages() {
        for value in [Value::from("é".repeat(1000)), Value::from(vec![1; 1000])] {
            assert!(shortened(&value).chars().count() <= 61, "{}", shortened(&value));
        }
    }
}
