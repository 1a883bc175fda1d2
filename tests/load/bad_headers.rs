//! Damaged safetensors files: each is refused in one line that says what was expected and what was found.

use std::borrow::Cow;

use infer_runtime::load::{Checkpoint, ModelFiles};

use crate::{assert_refused, file_of, safetensors};

fn open(bytes: Vec<u8>) -> infer_runtime::Result<Checkpoint> {
    Checkpoint::open(&ModelFiles::from_bytes(vec![("model.safetensors".to_owned(), Cow::Owned(bytes))]))
}

/// A header of one F32 tensor `t` with 16 bytes of data.
fn one(shape: &str, offsets: &str) -> Vec<u8> {
    safetensors(&format!(r#"{{"t":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#), 16)
}

fn with_length(length: u64) -> Vec<u8> {
    let mut bytes = file_of(&["t"]);
    bytes[..8].copy_from_slice(&length.to_le_bytes());
    bytes
}

#[test]
fn damaged_headers_are_refused() {
    let a = r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#;
    let two = |b: &str| safetensors(&format!("{{{a},{b}}}"), 16);
    let mut truncated = file_of(&["t"]);
    truncated.pop();
    let mut longer = file_of(&["t"]);
    longer.push(0);
    let mut not_utf8 = file_of(&["t"]);
    not_utf8[10] = 0xff;
    let deep = format!(r#"{{"t":{}"#, "[".repeat(100_000));
    let deep_metadata = format!(r#"{{"__metadata__":{{"x":{}}}}}"#, "[".repeat(100_000));
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", Vec::new(), "is empty"),
        ("7 bytes", vec![1; 7], "expected at least 8 bytes, found 7: truncated"),
        ("length 0", with_length(0), "begins with `{`"),
        ("length 2^63", with_length(1 << 63), "expected a header of 9223372036854775808 bytes, found 58 bytes"),
        ("length 2^64 - 1", with_length(u64::MAX), "expected a header of 18446744073709551615 bytes"),
        ("length beyond the file", with_length(59), "expected a header of 59 bytes, found 58 bytes"),
        ("data missing", truncated, "tensor t: expected its data within the file's 3 bytes of data"),
        ("data left", longer, "found 1 more bytes"),
        ("not UTF-8", not_utf8, "header is not UTF-8 at byte 2"),
        ("not JSON", safetensors("{nonsense}", 0), "bad header: key must be a string at line 1 column 2"),
        ("an array", safetensors("[]", 0), "begins with `{`"),
        ("leading space", safetensors(" {}", 0), "begins with `{`"),
        ("text after it", safetensors("{} x", 0), "trailing characters"),
        ("deep", safetensors(&deep, 0), "bad header: tensor t: "),
        ("deep inside", safetensors(&deep.replace("\"t\":", "\"t\":{\"x\":"), 0), "bad header: tensor t: EOF"),
        ("deep metadata", safetensors(&deep_metadata, 0), "bad header"),
        ("metadata a number", safetensors(r#"{"__metadata__":3}"#, 0), "expected __metadata__ to be an object"),
        ("metadata twice", safetensors(r#"{"__metadata__":{},"__metadata__":{}}"#, 0), "__metadata__ is named twice"),
        ("names twice", two(&a.replace("0,8", "8,16")), "tensor a is named twice"),
        ("a key twice", one("[4]", r#"[0,16],"dtype":"F32""#), "tensor t: duplicate field `dtype`"),
        ("no dtype", safetensors(r#"{"t":{"shape":[],"data_offsets":[0,4]}}"#, 4), "tensor t: missing field `dtype`"),
        (
            "unknown dtype",
            safetensors(r#"{"t":{"dtype":"F7","shape":[],"data_offsets":[0,4]}}"#, 4),
            "unknown variant `F7`",
        ),
        ("dtype a number", safetensors(r#"{"t":{"dtype":7,"shape":[],"data_offsets":[0,4]}}"#, 4), "tensor t: "),
        ("negative offset", one("[4]", "[-16,0]"), "tensor t: invalid value: integer `-16`, expected u64"),
        ("negative size", one("[-4]", "[0,16]"), "tensor t: invalid value: integer `-4`, expected u64"),
        ("fraction", one("[4.0]", "[0,16]"), "tensor t: invalid type: floating point `4.0`"),
        ("size above 64 bits", one("[36893488147419103232]", "[0,16]"), "tensor t: invalid type: floating point"),
        ("three offsets", one("[4]", "[0,8,16]"), "tensor t: "),
        ("one offset", one("[4]", "[0]"), "tensor t: invalid length 1"),
        ("reversed offsets", one("[4]", "[16,0]"), "tensor t: expected data_offsets in order, found 16 to 0"),
        (
            "offsets out of range",
            one("[4]", "[4,20]"),
            "within the file's 16 bytes of data, found data_offsets 4 to 20",
        ),
        ("offsets of 2^63", one("[4]", "[9223372036854775808,9223372036854775824]"), "within the file's 16 bytes"),
        (
            "overflowing shape",
            one("[4294967296,4294967296,4]", "[0,16]"),
            "does not overflow, found shape [4294967296, ",
        ),
        ("shape above bytes", one("[5]", "[0,16]"), "expected 20 bytes for F32 shape [5], found 16 bytes"),
        ("shape below bytes", one("[3]", "[0,16]"), "expected 12 bytes for F32 shape [3], found 16 bytes"),
        ("half a byte", safetensors(r#"{"t":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}}"#, 1), "expected 2 bytes"),
        ("overlap", two(r#""b":{"dtype":"F32","shape":[3],"data_offsets":[4,16]}"#), "an overlap: it begins at 4"),
        ("the same bytes", two(&a.replace("\"a\"", "\"b\"")), "tensor b: expected its data to begin at 8"),
        ("a hole", two(r#""b":{"dtype":"F32","shape":[1],"data_offsets":[12,16]}"#), "a hole: it begins at 12"),
        ("a hole at the start", one("[3]", "[4,16]"), "expected its data to begin at 0"),
    ];
    for (case, bytes, words) in cases {
        assert_refused(open(bytes), words, case);
    }
}

#[test]
fn what_the_format_allows_is_accepted() {
    let cases = [
        ("no tensors", safetensors("{}", 0), 0),
        ("padding after the header", safetensors("{}        ", 0), 0),
        ("metadata", safetensors(r#"{"__metadata__":{"format":"pt"}}"#, 0), 0),
        ("a scalar", safetensors(r#"{"t":{"dtype":"F16","shape":[],"data_offsets":[0,2]}}"#, 2), 1),
        ("no values", safetensors(r#"{"t":{"dtype":"F16","shape":[0,99],"data_offsets":[0,0]}}"#, 0), 1),
        ("other types", safetensors(r#"{"t":{"dtype":"F8_E4M3","shape":[3],"data_offsets":[0,3]}}"#, 3), 1),
        ("names of any kind", file_of(&["", "a b", "ü", r#"\"\\"#]), 4),
        ("unknown keys", safetensors(r#"{"t":{"dtype":"U8","x":[[]],"shape":[1],"data_offsets":[0,1]}}"#, 1), 1),
        (
            "not in order",
            safetensors(
                r#"{"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#,
                3,
            ),
            2,
        ),
    ];
    for (case, bytes, n_tensors) in cases {
        let checkpoint = open(bytes).unwrap_or_else(|error| panic!("{case}: {error}"));
        assert_eq!(checkpoint.len(), n_tensors, "{case}");
    }
}
