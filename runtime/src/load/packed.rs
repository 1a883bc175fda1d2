//! What a file of packed weights says beside its tensors. It is a safetensors file like others; its packed matrices
//! are tensors of bytes, its norms, biases and other small tensors are what they were. `__metadata__` has:
//!
//! - `format`: [`FORMAT`];
//! - `layout_version`: that of the packed bytes, [`LAYOUT_VERSION`];
//! - `plan`: the flags that it was made with, `q4 model.layers.*.mlp.down_proj=q8`;
//! - `matrices`: a JSON object from the names of packed matrices to `q8` or `q4`;
//! - `tensors`: a JSON object from the names of the tensors that these matrices come from to their dtype and shape,
//!   which are compared with config.json as ever;
//! - `source`: a checksum of the names, sizes, times and headers of the files that it was made from;
//! - `model`, in a cache: the path of the model, for people;
//! - `checksum`: of all that and of the table of tensors.
//!
//! A packed matrix begins at a multiple of 64 bytes in the file and is padded with zeros to one. There is no checksum
//! of the bytes of the matrices, which would have to read them all before the first token. What protects them is that
//! a file gets its name when all of its bytes are on the disk, and not before.

use std::collections::BTreeMap;
use std::path::Path;

use infer_kernels::quant::LAYOUT_VERSION;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::checksum::Checksum;
use crate::error::{Error, Result};
use crate::load::Bytes;
use crate::load::header::{Dtype, Entry, Header};
use crate::load::json::{shown_name, syntax_message};
use crate::options::WeightFormat;

/// The value of the key `format`.
pub(crate) const FORMAT: &str = "infer-packed";
/// The key of the header's checksum.
pub(crate) const CHECKSUM: &str = "checksum";
/// Packed matrices begin and end at multiples of so many bytes.
pub(crate) const ALIGNMENT: usize = 64;

/// The packed matrices of a file.
#[derive(Debug)]
pub(crate) struct Packed {
    /// The flags that it was made with.
    pub summary: String,
    /// The matrices by name.
    pub matrices: BTreeMap<String, PackedMatrix>,
}

/// One packed matrix, not yet compared with its shape.
#[derive(Clone, Debug)]
pub(crate) struct PackedMatrix {
    pub format: WeightFormat,
    /// Padded to a multiple of [`ALIGNMENT`].
    pub bytes: Bytes,
}

/// A tensor that is there in packed form.
#[derive(Deserialize)]
struct Source {
    dtype: Dtype,
    shape: Vec<usize>,
}

impl Packed {
    /// Whether a header says that its file has packed weights.
    pub fn is_packed(header: &Header) -> bool {
        header.metadata.get("format").is_some_and(|format| format == FORMAT)
    }

    /// The format that the plan names first.
    pub fn weights(&self) -> WeightFormat {
        let first = self.summary.split(' ').next();
        first.and_then(WeightFormat::named).unwrap_or_default()
    }

    /// Takes the packed matrices out of the header of a file. What remains are the tensors that the model has; those
    /// that are packed have no bytes.
    ///
    /// # Errors
    /// [`Error::File`] for another version or a damaged header, [`Error::Tensor`] for a matrix that is not there.
    pub fn read(path: &Path, header: Header, file: &Bytes) -> Result<(Packed, BTreeMap<String, Entry>)> {
        let Header { mut entries, metadata } = header;
        let text = |key: &str| metadata.get(key).map_or("", String::as_str);
        if text("layout_version") != LAYOUT_VERSION.to_string() {
            let found = shown_name(text("layout_version"));
            let problem = format!(
                "expected packed weights of layout version {LAYOUT_VERSION}, found {found:?}; quantize the model again"
            );
            return Err(Error::file(path, problem));
        }
        if text(CHECKSUM) != checksum(&metadata, &entries) {
            return Err(Error::file(path, "expected a header that agrees with its checksum, found a damaged one"));
        }
        let formats: BTreeMap<String, String> = json(path, "matrices", text("matrices"))?;
        let sources: BTreeMap<String, Source> = json(path, "tensors", text("tensors"))?;
        let mut matrices = BTreeMap::new();
        for (name, format) in formats {
            let wrong = |expected: &str, found: String| Error::Tensor {
                path: path.to_owned(),
                tensor: shown_name(&name),
                expected: expected.to_owned(),
                found,
            };
            let found = WeightFormat::named(&format).filter(|format| *format != WeightFormat::AsStored);
            let format = found.ok_or_else(|| wrong("q8 or q4", shown_name(&format)))?;
            let entry = entries.remove(&name).ok_or_else(|| wrong("to be in the file", "nothing".to_owned()))?;
            let bytes = file.slice(entry.range).ok_or_else(|| wrong("its bytes", "nothing".to_owned()))?;
            matrices.insert(name, PackedMatrix { format, bytes });
        }
        for (name, Source { dtype, shape }) in sources {
            entries.entry(name).or_insert(Entry { dtype, shape, range: 0..0 });
        }
        Ok((Packed { summary: text("plan").to_owned(), matrices }, entries))
    }
}

fn json<T: DeserializeOwned>(path: &Path, key: &str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| Error::file(path, format!("bad {key}: {}", syntax_message(&error))))
}

/// A checksum of the metadata, but for the checksum itself, and of the table of tensors.
pub(crate) fn checksum(metadata: &BTreeMap<String, String>, entries: &BTreeMap<String, Entry>) -> String {
    let mut checksum = Checksum::new();
    for (key, value) in metadata.iter().filter(|(key, _)| *key != CHECKSUM) {
        checksum.update(key.as_bytes());
        checksum.update(value.as_bytes());
    }
    // The beginning of the data depends on the length of the header, which depends on nothing that is summed here.
    let start = entries.values().map(|entry| entry.range.start).min().unwrap_or(0);
    for (name, Entry { dtype, shape, range }) in entries {
        let (from, to) = (range.start - start, range.end - start);
        checksum.update(format!("{name} {dtype} {shape:?} {from} {to}").as_bytes());
    }
    checksum.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of one packed matrix whose header says what `change` makes of it, with the right checksum.
    fn read(change: impl FnOnce(&mut BTreeMap<String, String>, &mut BTreeMap<String, Entry>)) -> Result<Packed> {
        let texts = [
            ("format", FORMAT),
            ("layout_version", &LAYOUT_VERSION.to_string()),
            ("plan", "q4"),
            ("matrices", r#"{"w":"q4"}"#),
            ("tensors", r#"{"w":{"dtype":"F32","shape":[2,3]}}"#),
        ];
        let mut metadata = texts.map(|(key, text)| (key.to_owned(), text.to_owned())).into();
        let mut entries = BTreeMap::new();
        entries.insert("w".to_owned(), Entry { dtype: Dtype::BYTES, shape: vec![64], range: 0..64 });
        change(&mut metadata, &mut entries);
        metadata.insert(CHECKSUM.to_owned(), checksum(&metadata, &entries));
        let read = Packed::read(Path::new("a"), Header { entries, metadata }, &Bytes::from_vec(vec![0; 64]));
        read.map(|(packed, _)| packed)
    }

    #[test]
    fn headers_that_agree_with_their_checksum_are_checked_all_the_same() {
        let good = read(|_, _| ()).unwrap();
        assert_eq!((good.weights(), good.matrices.len()), (WeightFormat::Int4, 1));
        let set = |key: &'static str, text: &'static str| {
            read(|metadata, _| _ = metadata.insert(key.to_owned(), text.to_owned()))
        };
        let cases = [
            ("no matrices", set("matrices", ""), "bad matrices"),
            ("matrices that are a list", set("matrices", "[]"), "bad matrices"),
            ("an unknown format", set("matrices", r#"{"w":"q3"}"#), "expected q8 or q4, found q3"),
            ("a packed matrix that is not", set("matrices", r#"{"w":"stored"}"#), "expected q8 or q4, found stored"),
            ("another name", set("matrices", r#"{"v":"q4"}"#), "tensor v: expected to be in the file"),
            ("an unknown type", set("tensors", r#"{"w":{"dtype":"X","shape":[]}}"#), "bad tensors"),
            ("a negative size", set("tensors", r#"{"w":{"dtype":"F32","shape":[-1]}}"#), "bad tensors"),
            ("no version", set("layout_version", ""), "layout version"),
            (
                "bytes beyond the file",
                read(|_, entries| {
                    entries.insert("w".to_owned(), Entry { dtype: Dtype::BYTES, shape: vec![65], range: 0..65 });
                }),
                "expected its bytes",
            ),
        ];
        for (what, found, expected) in cases {
            let found = found.expect_err(what).to_string();
            assert!(found.contains(expected), "{what}: {found}");
        }
    }
}
