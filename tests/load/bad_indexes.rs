//! Indexes that are damaged, leave their folder, or disagree with their shards.

use crate::{assert_refused, file_of, folder, open};

const INDEX: &str = "model.safetensors.index.json";

#[test]
fn indexes_that_do_not_fit_their_shards_are_refused() {
    let map = |entries: &str| format!(r#"{{"metadata":{{"total_size":8}},"weight_map":{{{entries}}}}}"#);
    let cases: [(&str, String, &str); 18] = [
        ("empty", String::new(), "index.json: is empty"),
        ("not JSON", "{".to_owned(), "is not valid JSON"),
        (
            "not an object",
            "[]".to_owned(),
            "does not have the form that it must have: invalid length 0, expected struct",
        ),
        ("no weight_map", "{}".to_owned(), "missing field `weight_map`"),
        (
            "a list",
            r#"{"weight_map":[]}"#.to_owned(),
            "expected weight_map to be an object from tensor names to file names",
        ),
        ("a number", map(r#""a":1"#), "invalid type: integer `1`, expected a string"),
        ("deep", format!(r#"{{"weight_map":{{"a":{}"#, "[".repeat(100_000)), "does not have the form"),
        ("nothing in it", map(""), "weight_map is empty"),
        ("a name twice", map(r#""a":"1.safetensors","a":"1.safetensors""#), "tensor a is named twice"),
        ("parent", map(r#""a":"../1.safetensors""#), "file names inside its folder, found `../1.safetensors`"),
        ("parent inside", map(r#""a":"x/../../1.safetensors""#), "file names inside its folder"),
        ("absolute", map(r#""a":"/etc/passwd""#), "file names inside its folder, found `/etc/passwd`"),
        ("a line break", map(r#""a":"1.\nsafetensors""#), "file names inside its folder, found `1.\\nsafetensors`"),
        ("no name", map(r#""a":"""#), "file names inside its folder"),
        ("missing shard", map(r#""a":"1.safetensors","c":"3.safetensors""#), "3.safetensors: shard is missing"),
        (
            "a name that no shard has",
            map(r#""a":"1.safetensors","b":"2.safetensors","x":"1.safetensors","y":"2.safetensors""#),
            "names 2 tensors that no shard has: x, y",
        ),
        ("the wrong shard", map(r#""a":"2.safetensors","b":"1.safetensors""#), ": expected in "),
        ("a shard that is not named is not opened", map(r#""a":"1.safetensors""#), ""),
    ];
    let (one, two) = (file_of(&["a"]), file_of(&["b"]));
    for (case, index, words) in &cases {
        let files = [("1.safetensors", one.as_slice()), ("2.safetensors", two.as_slice()), (INDEX, index.as_bytes())];
        let folder = folder(&files);
        if words.is_empty() {
            assert!(open(folder.path()).is_ok_and(|checkpoint| checkpoint.len() == 1), "{case}");
            continue;
        }
        assert_refused(open(folder.path()), words, case);
    }
}

#[test]
fn a_tensor_that_the_index_does_not_name_or_two_shards_hold_is_refused() {
    let index = |entries: &str| format!(r#"{{"weight_map":{{{entries}}}}}"#);
    let one = file_of(&["a", "extra"]);
    let files = [("1.safetensors", one.as_slice()), (INDEX, &index(r#""a":"1.safetensors""#).into_bytes())];
    assert_refused(open(folder(&files).path()), "tensor extra: expected to be named by the index", "not named");
    let (one, two) = (file_of(&["a", "b"]), file_of(&["b"]));
    let map = index(r#""a":"1.safetensors","b":"2.safetensors""#).into_bytes();
    let files = [("1.safetensors", one.as_slice()), ("2.safetensors", &two), (INDEX, &map)];
    assert_refused(open(folder(&files).path()), "tensor b: expected in one file only, found also in 1.s", "twice");
}
