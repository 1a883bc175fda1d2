//! Values as Python prints them (`str`, `repr`) and as its `json.dumps` writes them.

use minijinja::value::{Kwargs, Rest, Tuple, ValueKind};
use minijinja::{Error, ErrorKind, Output, State, Value};
use serde_json::Value as Json;

use super::arguments::{Arguments, invalid};

/// Values nested deeper are refused when printed; Python stops at about a thousand.
pub(super) const DEEPEST: usize = 200;

/// The context variable that holds characters which `tojson` never escapes: marks around a user's words.
pub(super) const MARKS: &str = "marks of user text";

/// A JSON value as the engine's.
pub(super) fn from_json(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(value) => Value::from(*value),
        Json::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(integer), _, _) => Value::from(integer),
            (_, Some(integer), _) => Value::from(integer),
            (_, _, float) => Value::from(float.unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => Value::from(items.iter().map(from_json).collect::<Vec<_>>()),
        Json::Object(fields) => Value::from_pairs(fields.iter().map(|(key, value)| (key.as_str(), from_json(value)))),
    }
}

/// Prints a value into the output, as Jinja2 does with Python's `str`.
pub(super) fn print(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Number | ValueKind::Seq | ValueKind::Map => {
            let text = str_of(value)?;
            state.consume_fuel((text.len() / 64) as u64)?;
            out.write_str(&text).map_err(|_| Error::from(ErrorKind::WriteFailure))
        }
        _ => minijinja::escape_formatter(out, state, value),
    }
}

/// Python's `str`.
pub(super) fn str_of(value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::String | ValueKind::Undefined => Ok(value.to_string()),
        _ => repr_of(value),
    }
}

/// Python's `repr`.
pub(super) fn repr_of(value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    write_repr(&mut out, value, 0)?;
    Ok(out)
}

fn write_repr(out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > DEEPEST {
        return Err(too_deep());
    }
    match value.kind() {
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::String => write_quoted(out, value.as_str().unwrap_or("")),
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::Seq if value.as_object().is_some() => {
            let is_tuple = value.downcast_object_ref::<Tuple>().is_some() || value.is_tuple();
            let (open, close) = if is_tuple { ('(', ')') } else { ('[', ']') };
            out.push(open);
            let mut count = 0;
            for item in value.try_iter()?.checked() {
                if count > 0 {
                    out.push_str(", ");
                }
                write_repr(out, &item?, depth + 1)?;
                count += 1;
            }
            if is_tuple && count == 1 {
                out.push(',');
            }
            out.push(close);
        }
        ValueKind::Map if is_plain_map(value) => {
            out.push('{');
            for (index, key) in value.try_iter()?.checked().enumerate() {
                let key = key?;
                if index > 0 {
                    out.push_str(", ");
                }
                write_repr(out, &key, depth + 1)?;
                out.push_str(": ");
                write_repr(out, &value.get_item(&key)?, depth + 1)?;
            }
            out.push('}');
        }
        ValueKind::Map if value.as_object().is_some_and(|object| object.type_name().contains("Namespace")) => {
            out.push_str("<Namespace>");
        }
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

/// A dict, and not an object that answers like one (a namespace, the loop).
fn is_plain_map(value: &Value) -> bool {
    value
        .as_object()
        .is_some_and(|object| !object.type_name().contains("Namespace") && !object.type_name().contains("Loop"))
}

/// A number as Python prints it: `1.0`, `1e-05`, `1e+16`.
pub(super) fn number(value: &Value) -> String {
    if value.is_integer() { value.to_string() } else { f64::try_from(value.clone()).map_or(value.to_string(), float) }
}

fn float(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    // Rust's debug format switches to exponents where Python does, but writes `1e16` for Python's `1e+16`.
    let text = format!("{value:?}");
    match text.split_once('e') {
        Some((mantissa, exponent)) => {
            let mantissa = mantissa.strip_suffix(".0").unwrap_or(mantissa);
            let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
            format!("{mantissa}e{sign}{digits:0>2}")
        }
        None => text,
    }
}

/// A text as Python's `repr` writes it.
fn write_quoted(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if is_printable(c) => out.push(c),
            c => out.push_str(&match u32::from(c) {
                code @ 0..0x100 => format!("\\x{code:02x}"),
                code @ 0x100..0x1_0000 => format!("\\u{code:04x}"),
                code => format!("\\U{code:08x}"),
            }),
        }
    }
    out.push(quote);
}

/// Python's `str.isprintable` for the characters that texts have: not controls, separators other than the space,
/// format characters, private use and noncharacters.
pub(super) fn is_printable(character: char) -> bool {
    if character.is_control() || (character.is_whitespace() && character != ' ') {
        return false;
    }
    !matches!(u32::from(character),
        0xad | 0x600..=0x605 | 0x61c | 0x6dd | 0x70f | 0x180e | 0x200b..=0x200f | 0x202a..=0x202e | 0x2060..=0x206f
        | 0xe000..=0xf8ff | 0xfdd0..=0xfdef | 0xfeff | 0xfff0..=0xfffb | 0xfffe | 0xffff | 0xe0000..=0xe00ff | 0xe01f0..=0x10_ffff)
}

/// The reference's `tojson`: `json.dumps` with `ensure_ascii=False`.
pub(super) fn tojson(state: &State, value: &Value, args: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let args = Arguments::of_filter(args, named);
    let ensure_ascii = args.get(0, "ensure_ascii")?.is_some_and(|value| value.is_true());
    let indent = args.get(1, "indent")?.unwrap_or_default();
    let separators = args.get(2, "separators")?.unwrap_or_default();
    let sort_keys = args.get(3, "sort_keys")?.is_some_and(|value| value.is_true());
    args.all_used(4)?;
    let indent = match indent.kind() {
        ValueKind::None | ValueKind::Undefined => None,
        ValueKind::Number => Some(" ".repeat(spaces(&indent)?)),
        _ => Some(indent.as_str().ok_or_else(|| invalid("tojson: indent is neither a number nor a text"))?.to_owned()),
    };
    let (between, colon) = match separators.kind() {
        ValueKind::None | ValueKind::Undefined => {
            (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned())
        }
        _ => {
            let text = |index| separators.get_item_by_index(index).map(|text| text.to_string());
            (text(0)?, text(1)?)
        }
    };
    let marks = state.lookup(MARKS).map(|marks| marks.to_string()).unwrap_or_default();
    let mut writer =
        JsonWriter { out: String::new(), paid: 0, state, ensure_ascii, indent, between, colon, sort_keys, marks };
    writer.write(value, 0)?;
    Ok(writer.out)
}

fn spaces(indent: &Value) -> Result<usize, Error> {
    const WIDEST: i64 = 1000;
    match indent.as_i64() {
        Some(width) if width <= WIDEST => Ok(usize::try_from(width).unwrap_or(0)),
        _ => Err(invalid("tojson: indent is too large")),
    }
}

struct JsonWriter<'a, 'state, 'env> {
    out: String,
    /// How much of `out` the fuel was charged for.
    paid: usize,
    state: &'a State<'state, 'env>,
    ensure_ascii: bool,
    indent: Option<String>,
    between: String,
    colon: String,
    sort_keys: bool,
    marks: String,
}

impl JsonWriter<'_, '_, '_> {
    fn write(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEEPEST {
            return Err(too_deep());
        }
        self.state.consume_fuel(1 + (self.out.len() - self.paid) as u64 / 64)?;
        self.paid = self.out.len();
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&json_number(value)),
            ValueKind::String => self.write_text(value.as_str().unwrap_or("")),
            ValueKind::Seq => {
                let items = value.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?;
                self.write_between('[', ']', depth, items, |this, item| this.write(&item, depth + 1))?;
            }
            ValueKind::Map if is_plain_map(value) => {
                let mut entries = Vec::new();
                for key in value.try_iter()?.checked() {
                    let key = key?;
                    entries.push((json_key(&key)?, value.get_item(&key)?));
                }
                if self.sort_keys {
                    entries.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.write_between('{', '}', depth, entries, |this, (key, value)| {
                    this.write_text(&key);
                    let colon = std::mem::take(&mut this.colon);
                    this.out.push_str(&colon);
                    this.colon = colon;
                    this.write(&value, depth + 1)
                })?;
            }
            kind => return Err(invalid(&format!("tojson: a value of kind {kind} is not JSON serializable"))),
        }
        Ok(())
    }

    fn write_between<T>(
        &mut self,
        open: char,
        close: char,
        depth: usize,
        items: Vec<T>,
        mut write: impl FnMut(&mut Self, T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        let empty = items.is_empty();
        for (index, item) in items.into_iter().enumerate() {
            if index > 0 {
                let between = std::mem::take(&mut self.between);
                self.out.push_str(&between);
                self.between = between;
            }
            self.new_line(depth + 1);
            write(self, item)?;
        }
        if !empty {
            self.new_line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(indent.as_str(), depth));
        }
    }

    fn write_text(&mut self, text: &str) {
        self.out.push('"');
        for character in text.chars() {
            match character {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                c if c < ' ' || self.ensure_ascii && !c.is_ascii() && !self.marks.contains(c) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

fn json_number(value: &Value) -> String {
    match number(value).as_str() {
        "nan" => "NaN".to_owned(),
        "inf" => "Infinity".to_owned(),
        "-inf" => "-Infinity".to_owned(),
        text => text.to_owned(),
    }
}

fn json_key(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or("").to_owned()),
        ValueKind::None => Ok("null".to_owned()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::Number => Ok(json_number(key)),
        _ => Err(invalid("tojson: keys must be texts, numbers, booleans or none")),
    }
}

fn too_deep() -> Error {
    invalid("a value is nested too deeply")
}
