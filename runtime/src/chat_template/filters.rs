//! Jinja2's filters, tests and global functions that the engine lacks or has with other results.

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, State, Value};

use super::arguments::{Arguments, invalid};
use super::values::{DEEPEST, repr_of, str_of, tojson};

/// Adds them.
pub(super) fn add(environment: &mut Environment<'_>) {
    environment.add_filter("tojson", tojson);
    environment.add_filter("string", |value: &Value| str_of(value));
    environment.add_filter("pprint", |value: &Value| str_of(value));
    environment.add_filter("center", center);
    environment.add_filter("wordcount", |text: &str| {
        text.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty()).count()
    });
    environment.add_filter("truncate", truncate);
    environment.add_filter("urlencode", urlencode);
    environment.add_filter("striptags", |text: &str| striptags(text));
    environment.add_filter("forceescape", |value: &Value| -> Result<String, Error> { Ok(escaped(&str_of(value)?)) });
    environment.add_filter("filesizeformat", minijinja_contrib::filters::filesizeformat);
    for name in ["e", "escape"] {
        environment.add_filter(name, escape);
    }
    for name in ["default", "d"] {
        environment.add_filter(name, default);
    }
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("indent", indent);
    environment.add_filter("join", join);
    environment.add_filter("format", format);
    environment.add_filter(PERCENT, percent);
    environment.add_filter(ADDEND, addend);
    environment.add_filter(ATTRIBUTE, attribute);
    environment.add_filter(LOOP_VALUES, loop_values);
    environment.add_test("callable", |value: &Value| {
        value
            .as_object()
            .is_some_and(|object| object.type_name().contains("Function") || object.type_name().contains("Macro"))
    });
    // To Python a text can be walked over, and everything with a length and `[]` is a sequence.
    environment.add_test("iterable", |value: &Value| is_sequence(value) || value.kind() == ValueKind::Iterable);
    environment.add_test("sequence", is_sequence);
    environment.add_function("cycler", |items: Rest<Value>| minijinja_contrib::globals::cycler(items.0));
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
    environment.add_function("dict", dict);
    environment.remove_global("debug");
}

/// The filter on the right side of a `+`.
pub(super) const ADDEND: &str = "python_addend";
/// The filter on what is assigned to an attribute of a namespace.
pub(super) const ATTRIBUTE: &str = "python_attribute";

/// The filter on what a loop runs over.
pub(super) const LOOP_VALUES: &str = "python_loop_values";

/// Refuses what Python cannot loop over.
fn loop_values(value: &Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::None => Err(invalid("cannot loop over none")),
        ValueKind::Bool | ValueKind::Number => Err(invalid("cannot loop over a number")),
        _ => Ok(value.clone()),
    }
}

/// Pays for the items that a `+` of lists takes over.
fn addend(state: &State, value: &Value) -> Result<Value, Error> {
    if !matches!(value.kind(), ValueKind::String | ValueKind::Number) {
        state.consume_fuel(value.len().unwrap_or(0) as u64)?;
    }
    Ok(value.clone())
}

/// Refuses a value that holds a namespace.
fn attribute(state: &State, value: &Value) -> Result<Value, Error> {
    fn check(state: &State, value: &Value, depth: usize) -> Result<(), Error> {
        let Some(object) = value.as_object() else { return Ok(()) };
        if depth > DEEPEST || object.type_name().contains("Namespace") {
            return Err(invalid("a namespace cannot hold a namespace, or a value nested this deeply"));
        }
        let is_map = value.kind() == ValueKind::Map;
        if is_map || matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
            for item in value.try_iter()?.checked() {
                let item = item?;
                state.consume_fuel(1)?;
                let held = if is_map { value.get_item(&item)? } else { item };
                check(state, &held, depth + 1)?;
            }
        }
        Ok(())
    }
    check(state, value, 0)?;
    Ok(value.clone())
}

fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Undefined)
}

/// The filter that stands for Python's `%` on a text; see [`super::source`].
pub(super) const PERCENT: &str = "python_percent";

/// `format % operand`: a tuple holds the values, anything else is the one value.
fn percent(state: &State, text: &str, operand: &Value) -> Result<String, Error> {
    let is_tuple = operand.is_tuple();
    let values =
        if is_tuple { operand.try_iter()?.checked().collect::<Result<_, _>>()? } else { vec![operand.clone()] };
    printf(state, text, values)
}

/// The filter `format`: values by place, or by name for `%(name)s`.
fn format(state: &State, text: &str, values: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let names: Vec<String> = named.args().map(str::to_owned).collect();
    if names.is_empty() {
        return printf(state, text, values.0);
    }
    let pairs =
        names.iter().map(|name| Ok((name.as_str(), named.get::<Value>(name)?))).collect::<Result<Vec<_>, Error>>()?;
    printf(state, text, vec![Value::from_pairs(pairs)])
}

/// The engine's printf, with what it lacks: `%r`, floats for `%d`, and Python's way to print a value for `%s`.
fn printf(state: &State, text: &str, mut values: Vec<Value>) -> Result<String, Error> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut next = 0;
    while let Some(start) = rest.find('%') {
        let (before, from) = rest.split_at(start);
        out.push_str(before);
        let Some(end) = from.char_indices().skip(1).find(|(_, c)| c.is_ascii_alphabetic() || "%(".contains(*c)) else {
            break;
        };
        let (spec, behind) = from.split_at(end.0);
        rest = from.get(end.0 + end.1.len_utf8()..).unwrap_or("");
        pay_for_width(state, spec)?;
        out.push_str(spec);
        match (end.1, values.get_mut(next)) {
            ('(', _) => {
                // By name: the values are one dict.
                out.push('(');
                let spec = rest.split_once(')').map_or("", |(_, spec)| spec);
                pay_for_width(state, spec.split(|c: char| c.is_ascii_alphabetic()).next().unwrap_or(""))?;
                continue;
            }
            ('%', _) => {
                out.push('%');
                continue;
            }
            ('r' | 'a', Some(value)) => {
                *value = Value::from(repr_of(value)?);
                out.push('s');
            }
            ('s', Some(value)) if value.kind() != ValueKind::Map => {
                *value = Value::from(str_of(value)?);
                out.push('s');
            }
            ('d' | 'i' | 'u', Some(value)) if value.is_number() && !value.is_integer() => {
                *value = Value::from(f64::try_from(value.clone())?.trunc() as i64);
                out.push('d');
            }
            (code, _) => out.push_str(behind.get(..code.len_utf8()).unwrap_or("")),
        }
        next += 1 + spec.matches('*').count();
    }
    out.push_str(rest);
    minijinja::formatting::format(minijinja::formatting::FormatStyle::Printf, &out, &values)
}

/// `dict(mapping or pairs, **fields)`.
fn dict(args: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let mut pairs = Vec::new();
    if let Some(first) = args.0.first() {
        for item in first.try_iter()?.checked() {
            let item = item?;
            pairs.push(match first.kind() {
                ValueKind::Map => (item.clone(), first.get_item(&item)?),
                _ => (item.get_item_by_index(0)?, item.get_item_by_index(1)?),
            });
        }
    }
    let names: Vec<String> = named.args().map(str::to_owned).collect();
    for name in &names {
        pairs.push((Value::from(name.as_str()), named.get(name)?));
    }
    Ok(Value::from_pairs(pairs))
}

/// Pays for the widths and precisions of a format spec: the engine fills them up before it asks.
pub(super) fn pay_for_width(state: &State, spec: &str) -> Result<(), Error> {
    let widths = spec.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    let most = widths.map(|digits| digits.parse().unwrap_or(u64::MAX)).max().unwrap_or(0);
    state.consume_fuel(most / 8)
}

/// `e`: the entities that Python's markupsafe writes; what is safe stays.
fn escape(value: &Value) -> Result<Value, Error> {
    if value.is_safe() { Ok(value.clone()) } else { Ok(Value::from_safe_string(escaped(&str_of(value)?))) }
}

fn default(value: &Value, args: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let args = Arguments::of_filter(args, named);
    let other = args.given(0, "default_value")?.unwrap_or_else(|| Value::from(""));
    let boolean = args.get(1, "boolean")?.is_some_and(|value| value.is_true());
    args.all_used(2)?;
    Ok(if value.is_undefined() || boolean && !value.is_true() { other } else { value.clone() })
}

fn int(value: &Value, args: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let args = Arguments::of_filter(args, named);
    let other = args.given(0, "default")?.unwrap_or_else(|| Value::from(0));
    let base = args.integer(1, "base")?.unwrap_or(10);
    args.all_used(2)?;
    let parsed = match value.as_str() {
        Some(text) => {
            let digits = text.trim().replace('_', "");
            let lower = digits.to_ascii_lowercase();
            let (base, digits) = match (base, lower.get(..2)) {
                (0 | 16, Some("0x")) => (16, digits.get(2..).unwrap_or("")),
                (0 | 8, Some("0o")) => (8, digits.get(2..).unwrap_or("")),
                (0 | 2, Some("0b")) => (2, digits.get(2..).unwrap_or("")),
                (0, _) => (10, digits.as_str()),
                (base, _) => (base, digits.as_str()),
            };
            let base = u32::try_from(base).ok().filter(|base| (2..=36).contains(base));
            let integer = base.and_then(|base| i128::from_str_radix(digits, base).ok()).map(Value::from);
            integer.or_else(|| parse_float(text).map(truncated))
        }
        None if value.is_integer() => Some(value.clone()),
        None if value.kind() == ValueKind::Bool => Some(Value::from(i64::from(value.is_true()))),
        None => f64::try_from(value.clone()).ok().map(truncated),
    };
    Ok(parsed.unwrap_or(other))
}

fn float(value: &Value, args: Rest<Value>, named: Kwargs) -> Result<Value, Error> {
    let args = Arguments::of_filter(args, named);
    let other = args.given(0, "default")?.unwrap_or_else(|| Value::from(0.0));
    args.all_used(1)?;
    let parsed = match value.as_str() {
        Some(text) => parse_float(text),
        None if value.kind() == ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        None => f64::try_from(value.clone()).ok(),
    };
    Ok(parsed.map_or(other, Value::from))
}

fn parse_float(text: &str) -> Option<f64> {
    text.trim().replace('_', "").parse().ok()
}

/// Toward zero, as Python's `int`; what no 128-bit integer holds stays at its limit.
fn truncated(value: f64) -> Value {
    Value::from(value.trunc() as i128)
}

fn indent(state: &State, text: &str, args: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let args = Arguments::of_filter(args, named);
    let width = args.get(0, "width")?;
    let first = args.get(1, "first")?.is_some_and(|value| value.is_true());
    let blank = args.get(2, "blank")?.is_some_and(|value| value.is_true());
    args.all_used(3)?;
    let lines = text.matches('\n').count() + 1;
    let indentation = match width.as_ref().and_then(Value::as_str) {
        Some(indentation) => indentation.to_owned(),
        None => {
            let width = width
                .map_or(Some(4), |width| width.as_i64())
                .ok_or_else(|| invalid("indent: the width is not a number"))?;
            let width = usize::try_from(width).unwrap_or(0);
            state.consume_fuel((width / 64) as u64)?;
            " ".repeat(width)
        }
    };
    state.consume_fuel((lines.saturating_mul(indentation.len()) / 64) as u64)?;
    let mut out = String::new();
    for (index, line) in text.split('\n').enumerate() {
        if index > 0 {
            out.push('\n');
        }
        if if index == 0 { first } else { blank || !line.is_empty() } {
            out.push_str(&indentation);
        }
        out.push_str(line);
    }
    Ok(out)
}

fn join(state: &mut State, values: &Value, args: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let args = Arguments::of_filter(args, named);
    let separator = args.get(0, "d")?.map(|value| str_of(&value)).transpose()?.unwrap_or_default();
    let attribute = args.get(1, "attribute")?;
    args.all_used(2)?;
    if values.is_undefined() {
        return Ok(String::new());
    }
    let values = match attribute {
        Some(attribute) => {
            let named = std::iter::once(("attribute", attribute)).collect::<Kwargs>();
            state.apply_filter("map", &[values.clone(), Value::from(named)])?
        }
        None => values.clone(),
    };
    let mut out = String::new();
    for (index, value) in values.try_iter()?.checked().enumerate() {
        let text = str_of(&value?)?;
        state.consume_fuel(((text.len() + separator.len()) / 64) as u64)?;
        if index > 0 {
            out.push_str(&separator);
        }
        out.push_str(&text);
    }
    Ok(out)
}

fn center(state: &mut State, value: &Value, width: Option<i64>) -> Result<Value, Error> {
    value.call_method(state, "center", &[Value::from(width.unwrap_or(80))])
}

fn truncate(text: &str, args: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let args = Arguments::of_filter(args, named);
    let size = |index, name, default: usize| -> Result<usize, Error> {
        Ok(args.integer(index, name)?.map_or(default, |value| usize::try_from(value).unwrap_or(0)))
    };
    let length = size(0, "length", 255)?;
    let kill_words = args.get(1, "killwords")?.is_some_and(|value| value.is_true());
    let end = args.text(2, "end")?.unwrap_or_else(|| "...".to_owned());
    let leeway = size(3, "leeway", 5)?;
    args.all_used(4)?;
    let kept = length
        .checked_sub(end.chars().count())
        .ok_or_else(|| invalid("truncate: the length is below that of its end"))?;
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(text.to_owned());
    }
    let cut = text.char_indices().nth(kept).map_or(text.len(), |(at, _)| at);
    let start = text.get(..cut).unwrap_or("");
    let start = if kill_words { start } else { start.rsplit_once(' ').map_or(start, |(words, _)| words) };
    Ok(format!("{start}{end}"))
}

fn urlencode(value: &Value) -> Result<String, Error> {
    if value.kind() == ValueKind::Map {
        let mut pairs = Vec::new();
        for key in value.try_iter()?.checked() {
            let key = key?;
            let value = value.get_item(&key)?;
            let quoted = |value: &Value| -> Result<String, Error> { Ok(quote(&str_of(value)?, " ").replace(' ', "+")) };
            pairs.push(format!("{}={}", quoted(&key)?, quoted(&value)?));
        }
        return Ok(pairs.join("&"));
    }
    Ok(quote(&str_of(value)?, "/"))
}

/// Percent-encodes all but letters, digits, `_.-~` and the characters of `safe`.
fn quote(text: &str, safe: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"_.-~".contains(&byte) || safe.as_bytes().contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// Text outside of `<…>`, with white space folded.
fn striptags(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, tag)) = rest.split_once('<') {
        let Some((_, behind)) = tag.split_once('>') else { break };
        out.push_str(before);
        rest = behind;
    }
    out.push_str(rest);
    out.split_whitespace().collect::<Vec<_>>().join(" ")
}
