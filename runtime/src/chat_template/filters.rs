//! Jinja2's filters, tests and global functions that the engine lacks or has with other results.

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, State, Value};

use super::arguments::{Arguments, invalid};
use super::values::{str_of, tojson};

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
    environment.add_filter("forceescape", |value: &Value| -> Result<String, Error> { Ok(escape(&str_of(value)?)) });
    environment.add_filter("filesizeformat", minijinja_contrib::filters::filesizeformat);
    environment.add_filter(PERCENT, percent);
    environment.add_test("callable", |value: &Value| {
        value
            .as_object()
            .is_some_and(|object| object.type_name().contains("Function") || object.type_name().contains("Macro"))
    });
    // To Python a text can be walked over, and everything with a length and `[]` is a sequence.
    environment.add_test("iterable", |value: &Value| is_sequence(value) || value.kind() == ValueKind::Iterable);
    environment.add_test("sequence", is_sequence);
    environment.add_function("cycler", minijinja_contrib::globals::cycler);
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
    environment.remove_global("debug");
}

fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Undefined)
}

/// The filter that stands for Python's `%` on a text; see [`super::source`].
pub(super) const PERCENT: &str = "python_percent";

/// `format % operand`: a tuple holds the values, anything else is the one value.
fn percent(format: &str, operand: &Value) -> Result<String, Error> {
    let values = if operand.is_tuple() {
        operand.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?
    } else {
        vec![operand.clone()]
    };
    minijinja::formatting::format(minijinja::formatting::FormatStyle::Printf, format, &values)
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
            pairs.push(format!("{}={}", quote(&str_of(&key)?, ""), quote(&str_of(&value)?, "")));
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

fn escape(text: &str) -> String {
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
