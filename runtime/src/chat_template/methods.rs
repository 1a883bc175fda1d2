//! Methods of Python's `str`, `list` and `dict` that the engine's own collection lacks, or has with other details
//! (what counts as white space, as a line end, optional arguments).

use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

use super::arguments::{Arguments, invalid};
use super::filters::pay_for_width;
use super::values::is_printable;

/// Python's methods; called by the engine for a method that a value does not have.
pub(super) fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let arguments = Arguments::new(args)?;
    let found = match value.kind() {
        ValueKind::String => string_method(state, value.as_str().unwrap_or(""), name, &arguments)?,
        ValueKind::Seq => sequence_method(value, name, &arguments)?,
        ValueKind::Map => match name {
            "copy" if args.is_empty() => Some(value.clone()),
            _ => None,
        },
        ValueKind::Number => match name {
            "is_integer" => Some(Value::from(f64::try_from(value.clone()).is_ok_and(|value| value.fract() == 0.0))),
            "bit_length" => {
                i128::try_from(value.clone()).ok().map(|value| Value::from(128 - value.unsigned_abs().leading_zeros()))
            }
            _ => None,
        },
        ValueKind::Undefined => {
            return Err(Error::new(ErrorKind::UndefinedError, format!("cannot call {name} of an undefined value")));
        }
        _ => None,
    };
    match found {
        Some(result) => Ok(result),
        None => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// A method of a text; None if it is not one that differs from the engine's collection.
fn string_method(state: &State, text: &str, name: &str, args: &Arguments) -> Result<Option<Value>, Error> {
    let result = match name {
        "strip" | "lstrip" | "rstrip" => {
            let chars = args.text(0, "chars")?;
            let is_cut = |c: char| chars.as_ref().map_or(is_space(c), |chars| chars.contains(c));
            Value::from(match name {
                "strip" => text.trim_matches(is_cut),
                "lstrip" => text.trim_start_matches(is_cut),
                _ => text.trim_end_matches(is_cut),
            })
        }
        "split" | "rsplit" => {
            let limit = args.integer(1, "maxsplit")?.and_then(|limit| usize::try_from(limit).ok());
            let parts = match args.text(0, "sep")? {
                Some(separator) if separator.is_empty() => return Err(invalid("empty separator")),
                Some(separator) => split_at(text, &separator, limit, name == "rsplit"),
                None => split_words(text, limit, name == "rsplit"),
            };
            Value::from(parts.into_iter().map(Value::from).collect::<Vec<_>>())
        }
        "splitlines" => {
            let keep = args.get(0, "keepends")?.is_some_and(|keep| keep.is_true());
            Value::from(lines(text, keep).into_iter().map(Value::from).collect::<Vec<_>>())
        }
        "partition" | "rpartition" => {
            let separator = args.needed(0, "sep")?;
            if separator.is_empty() {
                return Err(invalid("empty separator"));
            }
            let from_end = name == "rpartition";
            let found = if from_end { text.rsplit_once(&*separator) } else { text.split_once(&*separator) };
            let parts = match found {
                Some((before, behind)) => [before, &separator, behind],
                None if from_end => ["", "", text],
                None => [text, "", ""],
            };
            Value::from(Tuple::new(parts.map(Value::from).to_vec()))
        }
        "startswith" | "endswith" => {
            let part = slice(text, args.integer(1, "start")?, args.integer(2, "end")?);
            let affix = args.get(0, "prefix")?.ok_or_else(|| Error::new(ErrorKind::MissingArgument, "prefix"))?;
            let test = |affix: &Value| match affix.as_str() {
                Some(affix) if name == "startswith" => Ok(part.starts_with(affix)),
                Some(affix) => Ok(part.ends_with(affix)),
                None => Err(invalid(&format!("{name} takes a text or a tuple of texts"))),
            };
            Value::from(if affix.is_tuple() {
                affix.try_iter()?.checked().try_fold(false, |found, affix| Ok::<_, Error>(found | test(&affix?)?))?
            } else {
                test(&affix)?
            })
        }
        "find" | "rfind" | "index" | "rindex" => {
            let needle = args.needed(0, "sub")?;
            let start = args.integer(1, "start")?;
            let part = slice(text, start, args.integer(2, "end")?);
            let skipped = char_offset(text, part);
            let found = if name.starts_with('r') { part.rfind(&*needle) } else { part.find(&*needle) };
            let position = found.and_then(|at| part.get(..at)).map(|before| skipped + before.chars().count());
            match position {
                Some(position) => Value::from(position),
                None if name.ends_with("index") => return Err(invalid("substring not found")),
                None => Value::from(-1),
            }
        }
        "count" => {
            let needle = args.needed(0, "sub")?;
            let part = slice(text, args.integer(1, "start")?, args.integer(2, "end")?);
            Value::from(part.matches(&*needle).count())
        }
        "removeprefix" => {
            let affix = args.needed(0, "prefix")?;
            Value::from(text.strip_prefix(&*affix).unwrap_or(text))
        }
        "removesuffix" => {
            let affix = args.needed(0, "suffix")?;
            Value::from(text.strip_suffix(&*affix).unwrap_or(text))
        }
        "center" | "ljust" | "rjust" | "zfill" => {
            let width = args.integer(0, "width")?.ok_or_else(|| Error::new(ErrorKind::MissingArgument, "width"))?;
            let fill = if name == "zfill" { Some("0".to_owned()) } else { args.text(1, "fillchar")? };
            Value::from(pad(state, text, name, width, &fill.unwrap_or_else(|| " ".to_owned()))?)
        }
        "format" => {
            for spec in text.split('{').skip(1) {
                pay_for_width(state, spec.split_once('}').map_or("", |(spec, _)| spec))?;
            }
            return Ok(None);
        }
        "expandtabs" => {
            let width = usize::try_from(args.integer(0, "tabsize")?.unwrap_or(8)).unwrap_or(0);
            state.consume_fuel((text.matches('\t').count().saturating_mul(width) / 64) as u64)?;
            Value::from(expand_tabs(text, width))
        }
        "swapcase" => Value::from(text.chars().fold(String::new(), |mut out, c| {
            if c.is_uppercase() {
                out.extend(c.to_lowercase())
            } else {
                out.extend(c.to_uppercase())
            }
            out
        })),
        "title" => Value::from(title(text)),
        "capitalize" => {
            let mut chars = text.chars();
            let mut out: String = chars.next().map(title_case).unwrap_or_default();
            out.push_str(&chars.as_str().to_lowercase());
            Value::from(out)
        }
        "casefold" => Value::from(text.to_lowercase().replace('ß', "ss")),
        "isdecimal" | "isdigit" => {
            let is_digit = |c: char| {
                c.is_numeric() && (c.is_ascii_digit() || name == "isdigit" && is_superscript(c) || is_decimal(c))
            };
            Value::from(!text.is_empty() && text.chars().all(is_digit))
        }
        "isspace" => Value::from(!text.is_empty() && text.chars().all(is_space)),
        "isprintable" => Value::from(text.chars().all(is_printable)),
        "isidentifier" => {
            let mut chars = text.chars();
            let starts = chars.next().is_some_and(|c| c.is_alphabetic() || c == '_');
            Value::from(starts && chars.all(|c| c.is_alphanumeric() || c == '_'))
        }
        "istitle" => Value::from(is_title(text)),
        "join" => {
            let items = args.get(0, "iterable")?.ok_or_else(|| Error::new(ErrorKind::MissingArgument, "iterable"))?;
            let mut out = String::new();
            for (index, item) in items.try_iter()?.checked().enumerate() {
                let item = item?;
                let item =
                    item.as_str().ok_or_else(|| invalid(&format!("sequence item {index}: expected str instance")))?;
                state.consume_fuel(((text.len() + item.len()) / 64) as u64)?;
                if index > 0 {
                    out.push_str(text);
                }
                out.push_str(item);
            }
            Value::from(out)
        }
        _ => return Ok(None),
    };
    Ok(Some(result))
}

fn sequence_method(value: &Value, name: &str, args: &Arguments) -> Result<Option<Value>, Error> {
    Ok(match name {
        "index" => {
            let wanted = args.positional.first().ok_or_else(|| Error::new(ErrorKind::MissingArgument, "value"))?;
            for (index, item) in value.try_iter()?.checked().enumerate() {
                if item? == *wanted {
                    return Ok(Some(Value::from(index)));
                }
            }
            return Err(invalid("the value is not in the list"));
        }
        "copy" if !value.is_tuple() => Some(value.clone()),
        _ => None,
    })
}

/// White space as Python's `str.isspace` has it: Unicode's, and the four ASCII separators.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn is_superscript(c: char) -> bool {
    matches!(c, '²' | '³' | '¹' | '⁰' | '⁴'..='⁹' | '₀'..='₉')
}

/// Whether a numeric character is a decimal digit of some script: these stand in rows of ten.
fn is_decimal(c: char) -> bool {
    c.is_ascii_digit()
        || matches!(u32::from(c), 0x660..=0x669 | 0x6f0..=0x6f9 | 0x966..=0x96f | 0x9e6..=0x9ef | 0xe50..=0xe59 | 0xff10..=0xff19)
}

fn split_at(text: &str, separator: &str, limit: Option<usize>, from_end: bool) -> Vec<String> {
    let limit = limit.map_or(usize::MAX, |limit| limit.saturating_add(1));
    if from_end {
        let mut parts: Vec<String> = text.rsplitn(limit, separator).map(str::to_owned).collect();
        parts.reverse();
        parts
    } else {
        text.splitn(limit, separator).map(str::to_owned).collect()
    }
}

/// Splits at runs of white space; what is left when the limit is reached keeps the white space at its far end.
fn split_words(text: &str, limit: Option<usize>, from_end: bool) -> Vec<String> {
    let mut parts = Vec::new();
    let trim =
        |text| if from_end { str::trim_end_matches(text, is_space) } else { str::trim_start_matches(text, is_space) };
    let mut rest = trim(text);
    while !rest.is_empty() {
        if limit == Some(parts.len()) {
            parts.push(rest.to_owned());
            break;
        }
        let found = if from_end {
            rest.char_indices().rfind(|(_, c)| is_space(*c))
        } else {
            rest.char_indices().find(|(_, c)| is_space(*c))
        };
        let (word, behind) = match found {
            None => (rest, ""),
            Some((at, c)) if from_end => {
                let (behind, word) = rest.split_at(at + c.len_utf8());
                (word, behind)
            }
            Some((at, _)) => rest.split_at(at),
        };
        parts.push(word.to_owned());
        rest = trim(behind);
    }
    if from_end {
        parts.reverse();
    }
    parts
}

/// The lines of a text, by all of Python's line ends.
fn lines(text: &str, keep_ends: bool) -> Vec<String> {
    let is_end = |c: char| {
        matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
    };
    let mut result = Vec::new();
    let mut line = String::new();
    let mut chars = text.chars().peekable();
    let mut open = false;
    while let Some(c) = chars.next() {
        open = true;
        if !is_end(c) {
            line.push(c);
            continue;
        }
        if keep_ends {
            line.push(c);
        }
        if c == '\r' && chars.next_if_eq(&'\n').is_some() && keep_ends {
            line.push('\n');
        }
        result.push(std::mem::take(&mut line));
        open = false;
    }
    if open {
        result.push(line);
    }
    result
}

/// `text[start:end]` in characters, negative counts from the end.
fn slice(text: &str, start: Option<i64>, end: Option<i64>) -> &str {
    if start.is_none() && end.is_none() {
        return text;
    }
    let length = text.chars().count();
    let place = |index: Option<i64>, default: usize| match index {
        None => default,
        Some(index) if index < 0 => length.saturating_sub(usize::try_from(index.unsigned_abs()).unwrap_or(length)),
        Some(index) => usize::try_from(index).unwrap_or(length).min(length),
    };
    let byte = |index: usize| text.char_indices().nth(index).map_or(text.len(), |(at, _)| at);
    let (start, end) = (byte(place(start, 0)), byte(place(end, length)));
    text.get(start..end).unwrap_or("")
}

/// How many characters of `text` stand before `part`, a slice of it.
fn char_offset(text: &str, part: &str) -> usize {
    let at = (part.as_ptr() as usize).saturating_sub(text.as_ptr() as usize);
    text.get(..at).map_or(0, |before| before.chars().count())
}

fn pad(state: &State, text: &str, name: &str, width: i64, fill: &str) -> Result<String, Error> {
    if fill.chars().count() != 1 {
        return Err(invalid("the fill character must be exactly one character long"));
    }
    let missing = usize::try_from(width).unwrap_or(0).saturating_sub(text.chars().count());
    // Paid before it is made.
    state.consume_fuel((missing.saturating_mul(fill.len()) / 64) as u64)?;
    let (left, right) = match name {
        "ljust" => (0, missing),
        // Python puts the odd one on the left if the width is odd.
        "center" => {
            let left = missing / 2 + (missing & usize::try_from(width).unwrap_or(0) & 1);
            (left, missing - left)
        }
        _ => (missing, 0),
    };
    let (sign, rest) = match text.strip_prefix(['+', '-']) {
        Some(rest) if name == "zfill" => text.split_at(text.len() - rest.len()),
        _ => ("", text),
    };
    Ok(format!("{sign}{}{rest}{}", fill.repeat(left), fill.repeat(right)))
}

fn expand_tabs(text: &str, width: usize) -> String {
    let mut out = String::new();
    let mut column = 0;
    for c in text.chars() {
        match c {
            '\t' => {
                let spaces = if width == 0 { 0 } else { width - column % width };
                out.extend(std::iter::repeat_n(' ', spaces));
                column += spaces;
            }
            _ => {
                out.push(c);
                column = if c == '\n' || c == '\r' { 0 } else { column + 1 };
            }
        }
    }
    out
}

/// A character that begins a word: `ß` becomes `Ss`.
fn title_case(c: char) -> String {
    let mut upper = c.to_uppercase();
    let mut out: String = upper.next().into_iter().collect();
    out.extend(upper.flat_map(char::to_lowercase));
    out
}

fn title(text: &str) -> String {
    let mut out = String::new();
    let mut in_word = false;
    for c in text.chars() {
        if in_word {
            out.extend(c.to_lowercase())
        } else {
            out.push_str(&title_case(c))
        }
        in_word = c.is_lowercase() || c.is_uppercase();
    }
    out
}

fn is_title(text: &str) -> bool {
    let (mut in_word, mut any) = (false, false);
    for c in text.chars() {
        if c.is_uppercase() {
            if in_word {
                return false;
            }
            (in_word, any) = (true, true);
        } else if c.is_lowercase() {
            if !in_word {
                return false;
            }
        } else {
            in_word = false;
        }
    }
    any
}
