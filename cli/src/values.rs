//! Reads the values of flags. clap puts the flag and the value in front of each message: `invalid value 'nan' for
//! '--temperature <T>': expected a number, 0 or more`.

use std::ops::RangeInclusive;

use anyhow::Result;
use infer_runtime::{Error, Override, Shape};

use crate::exit::wrong_use;

/// Token ids as `1,2,3`; the empty text is the empty list. Not a parser for clap, which would repeat the whole list in
/// its message.
pub fn tokens(flag: &str, text: &str) -> Result<Vec<u32>> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let id = |(index, item): (usize, &str)| {
        item.trim().parse().map_err(|_| {
            let found: String = item.chars().take(20).collect();
            wrong_use(format!("{flag}: expected token ids such as 1,2,3, found {found:?} in place {}", index + 1))
        })
    };
    text.split(',').enumerate().map(id).collect()
}

/// A whole number, 1 or more.
pub fn count(text: &str) -> Result<usize, String> {
    match text.trim().parse() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err("expected a whole number, 1 or more".to_owned()),
    }
}

/// How many threads a machine may sensibly be asked for.
const MAX_THREADS: usize = 1024;

/// A list of numbers such as `1,2`, in rising order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbers(pub Vec<usize>);

fn list(text: &str, expected: &str, range: RangeInclusive<usize>) -> Result<Numbers, String> {
    let number = |item: &str| {
        let number = item.trim().parse().ok().filter(|n| range.contains(n));
        number.ok_or_else(|| format!("expected {expected}"))
    };
    let mut numbers = text.split(',').map(number).collect::<Result<Vec<usize>, String>>()?;
    numbers.sort_unstable();
    numbers.dedup();
    Ok(Numbers(numbers))
}

/// Numbers of threads.
pub fn threads(text: &str) -> Result<Numbers, String> {
    list(text, &format!("a whole number from 1 to {MAX_THREADS}"), 1..=MAX_THREADS)
}

/// The largest number in a list: sums and products of a few are far from overflowing.
const MAX_NUMBER: usize = 1 << 20;

/// Whole numbers.
pub fn numbers(text: &str) -> Result<Numbers, String> {
    list(text, &format!("whole numbers from 0 to {MAX_NUMBER}, such as 128 or 1,512"), 0..=MAX_NUMBER)
}

/// Whole numbers, 1 or more.
pub fn counts(text: &str) -> Result<Numbers, String> {
    const MAX_BATCH: usize = 1024;
    list(text, &format!("whole numbers from 1 to {MAX_BATCH}, such as 8 or 1,8"), 1..=MAX_BATCH)
}

/// The shape of a model.
pub fn shape(text: &str) -> Result<Shape, String> {
    text.parse().map_err(|error| match error {
        Error::InvalidOption { expected, .. } => format!("expected {expected}"),
        other => other.to_string(),
    })
}

/// A number of bytes, with an optional unit: `8G`, `8GB` and `8g` are 8 * 10^9, `8GiB` is 8 * 2^30.
pub fn size(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let scale: Option<u64> = match lower.get(digits.len()..) {
        Some("" | "b") => Some(1),
        Some("k" | "kb") => Some(1_000),
        Some("m" | "mb") => Some(1_000_000),
        Some("g" | "gb") => Some(1_000_000_000),
        Some("t" | "tb") => Some(1_000_000_000_000),
        Some("kib") => Some(1 << 10),
        Some("mib") => Some(1 << 20),
        Some("gib") => Some(1 << 30),
        Some("tib") => Some(1 << 40),
        _ => None,
    };
    let digits = digits.trim_end();
    let is_number = digits.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let bytes = match (digits.parse::<u64>(), scale) {
        (Ok(whole), Some(scale)) => whole.checked_mul(scale),
        (Err(_), Some(scale)) if is_number => {
            let bytes = digits.parse::<f64>().ok().map(|number| number * scale as f64);
            bytes.filter(|&bytes| bytes < u64::MAX as f64).map(|bytes| bytes as u64)
        }
        _ => None,
    };
    let expected = "expected a size such as 8G, 512M or a number of bytes, more than 0";
    bytes.filter(|&bytes| bytes > 0).ok_or_else(|| expected.to_owned())
}

fn number(text: &str, expected: &str, accept: impl Fn(f32) -> bool) -> Result<f32, String> {
    text.trim().parse().ok().filter(|&n: &f32| n.is_finite() && accept(n)).ok_or_else(|| format!("expected {expected}"))
}

/// 0 or more.
pub fn temperature(text: &str) -> Result<f32, String> {
    number(text, "a number, 0 (always the likeliest token) or more", |n| n >= 0.0)
}

/// From 0 to 1.
pub fn probability(text: &str) -> Result<f32, String> {
    number(text, "a number from 0 to 1", |n| (0.0..=1.0).contains(&n))
}

/// 0 or more.
pub fn top_k(text: &str) -> Result<usize, String> {
    text.trim().parse().map_err(|_| "expected a whole number, 0 (off) or more".to_owned())
}

/// Above 0.
pub fn repeat_penalty(text: &str) -> Result<f32, String> {
    number(text, "a number above 0 (1 is off)", |n| n > 0.0)
}

/// From -2 to 2.
pub fn penalty(text: &str) -> Result<f32, String> {
    number(text, "a number from -2 to 2 (0 is off)", |n| (-2.0..=2.0).contains(&n))
}

/// Any whole number that fits 64 bits.
pub fn seed(text: &str) -> Result<u64, String> {
    text.trim().parse().map_err(|_| format!("expected a whole number from 0 to {}", u64::MAX))
}

/// A text that is not empty.
pub fn stop(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("expected a text to stop at, not an empty one".to_owned()) } else { Ok(text.to_owned()) }
}

/// `GLOB=FORMAT`.
pub fn override_of(text: &str) -> Result<Override, String> {
    Override::parse(text).map_err(|error| match error {
        Error::InvalidOption { expected, .. } => format!("expected {expected}"),
        other => other.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_units_and_refuse_the_rest() {
        let cases: [(&str, Option<u64>); 16] = [
            ("1", Some(1)),
            ("17b", Some(17)),
            ("8G", Some(8_000_000_000)),
            ("8 GiB", Some(8 << 30)),
            ("512mb", Some(512_000_000)),
            ("1.5k", Some(1_500)),
            ("0", None),
            ("0G", None),
            ("-1", None),
            ("", None),
            ("G", None),
            ("i", None),
            ("nan", None),
            ("inf", None),
            ("99999999999T", None),
            ("1e3", None),
        ];
        for (text, expected) in cases {
            assert_eq!(size(text).ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn token_lists_may_be_empty_and_name_the_bad_item() {
        assert!(tokens("--ids", "").expect("the empty list").is_empty());
        assert_eq!(tokens("--ids", "1, 2,3").expect("a list"), [1, 2, 3]);
        let cases =
            [("1,x", "\"x\" in place 2"), ("-1", "-1"), ("1,,2", "\"\""), ("4294967296", "429"), ("1.0", "1.0")];
        for (text, bad) in cases {
            let message = tokens("--ids", text).expect_err(text).to_string();
            assert!(message.starts_with("--ids: ") && message.contains(bad), "{text}: {message}");
        }
    }

    #[test]
    fn sampling_values_out_of_range_are_refused() {
        let cases = [
            ("temperature", "nan", temperature("nan").err()),
            ("temperature", "-0.1", temperature("-0.1").err()),
            ("temperature", "inf", temperature("inf").err()),
            ("probability", "1.5", probability("1.5").err()),
            ("probability", "-0.1", probability("-0.1").err()),
            ("probability", "nan", probability("nan").err()),
            ("top_k", "-1", top_k("-1").err()),
            ("repeat_penalty", "0", repeat_penalty("0").err()),
            ("penalty", "2.5", penalty("2.5").err()),
            ("seed", "-1", seed("-1").err()),
            ("stop", "", stop("").err()),
            ("count", "0", count("0").err()),
            ("threads", "0", threads("0").err()),
            ("threads", "1000000", threads("1000000").err()),
        ];
        for (what, value, refusal) in cases {
            let refusal = refusal.unwrap_or_else(|| panic!("{what}: {value:?} must be refused"));
            assert!(refusal.starts_with("expected"), "{what}: {refusal}");
        }
    }
}
