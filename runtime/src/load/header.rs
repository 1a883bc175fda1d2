//! The header of a safetensors file: 8 bytes of length, then JSON from tensor names to dtype, shape and offsets.
//!
//! The crate `safetensors` gives the types of elements and their sizes. The header itself is read here, because that
//! crate's own reader keeps the last of two entries of one name, and its errors name neither file nor values.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use infer_kernels::cpu::matrix::ElementType;
use serde::Deserialize;
use serde::de::{self, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::error::{Error, Result};
use crate::load::json::{shown_name, syntax_message};

/// The largest header that the format allows.
const LARGEST_HEADER: u64 = 100_000_000;

/// The type of a tensor's elements, as the file names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Dtype(safetensors::Dtype);

impl Dtype {
    /// The upper half of a binary32.
    pub(crate) const BF16: Dtype = Dtype(safetensors::Dtype::BF16);
    /// Bytes that only their reader knows the meaning of.
    pub(crate) const BYTES: Dtype = Dtype(safetensors::Dtype::U8);

    /// The kernels' name of this type; none if they cannot compute with it.
    pub fn element_type(self) -> Option<ElementType> {
        match self.0 {
            safetensors::Dtype::F32 => Some(ElementType::F32),
            safetensors::Dtype::F16 => Some(ElementType::F16),
            safetensors::Dtype::BF16 => Some(ElementType::Bf16),
            _ => None,
        }
    }

    /// Bits of one element.
    pub fn bits(self) -> usize {
        self.0.bitsize()
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a header says of one tensor, checked.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Where its bytes lie in the file.
    pub range: Range<usize>,
}

/// An entry as it is written. A key that stands there twice is an error, others than these three are ignored.
#[derive(Deserialize)]
struct RawEntry {
    dtype: safetensors::Dtype,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// A header, checked.
#[derive(Debug)]
pub(crate) struct Header {
    /// The tensors by name.
    pub entries: BTreeMap<String, Entry>,
    /// The texts of `__metadata__`.
    pub metadata: BTreeMap<String, String>,
}

struct RawHeader {
    entries: BTreeMap<String, RawEntry>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> std::result::Result<RawHeader, D::Error> {
        struct HeaderVisitor;
        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object from tensor names to dtype, shape and data_offsets")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<RawHeader, A::Error> {
                let mut entries = BTreeMap::new();
                let mut metadata = None;
                while let Some(name) = map.next_key::<String>()? {
                    let about =
                        |error: A::Error| de::Error::custom(format_args!("tensor {}: {error}", shown_name(&name)));
                    let twice = if name == "__metadata__" {
                        metadata.replace(map.next_value::<Metadata>()?.0).is_some()
                    } else {
                        let entry = map.next_value::<RawEntry>().map_err(about)?;
                        entries.insert(name.clone(), entry).is_some()
                    };
                    if twice {
                        return Err(de::Error::custom(format_args!("tensor {} is named twice", shown_name(&name))));
                    }
                }
                Ok(RawHeader { entries, metadata: metadata.unwrap_or_default() })
            }
        }
        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// `__metadata__`: an object whose values are texts. Other values, which some tools write, are left out.
struct Metadata(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> std::result::Result<Metadata, D::Error> {
        struct MetadataVisitor;
        impl<'de> Visitor<'de> for MetadataVisitor {
            type Value = Metadata;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("__metadata__ to be an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Metadata, A::Error> {
                let mut texts = BTreeMap::new();
                while let Some((key, Text(text))) = map.next_entry::<String, Text>()? {
                    if let Some(text) = text {
                        texts.insert(key, text);
                    }
                }
                Ok(Metadata(texts))
            }

            // Some tools write null where there is nothing to say.
            fn visit_unit<E: de::Error>(self) -> std::result::Result<Metadata, E> {
                Ok(Metadata(BTreeMap::new()))
            }
        }
        deserializer.deserialize_any(MetadataVisitor)
    }
}

/// A text; none for any other value.
struct Text(Option<String>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> std::result::Result<Text, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<Text, E> {
                Ok(Text(Some(text.to_owned())))
            }

            fn visit_unit<E: de::Error>(self) -> std::result::Result<Text, E> {
                Ok(Text(None))
            }

            fn visit_bool<E: de::Error>(self, _: bool) -> std::result::Result<Text, E> {
                Ok(Text(None))
            }

            fn visit_i64<E: de::Error>(self, _: i64) -> std::result::Result<Text, E> {
                Ok(Text(None))
            }

            fn visit_u64<E: de::Error>(self, _: u64) -> std::result::Result<Text, E> {
                Ok(Text(None))
            }

            fn visit_f64<E: de::Error>(self, _: f64) -> std::result::Result<Text, E> {
                Ok(Text(None))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Text, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Text(None))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Text, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Text(None))
            }
        }
        deserializer.deserialize_any(TextVisitor)
    }
}

/// Reads and checks the header of `file`. The tensors cover the rest of the file without holes and overlaps.
///
/// # Errors
/// [`Error::File`] or [`Error::Tensor`] with what was expected and found. Nothing is allocated in proportion to a size
/// that the file only claims to have.
pub(crate) fn read(path: &Path, file: &[u8]) -> Result<Header> {
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(Error::file(path, format!("expected at least 8 bytes, found {}: truncated", file.len())));
    };
    let length = u64::from_le_bytes(*length);
    if length > rest.len() as u64 {
        let problem =
            format!("expected a header of {length} bytes, found {} bytes: truncated or not safetensors", rest.len());
        return Err(Error::file(path, problem));
    }
    if length > LARGEST_HEADER {
        return Err(Error::file(path, format!("expected a header of at most {LARGEST_HEADER} bytes, found {length}")));
    }
    // The cast cannot cut: `length` is at most the length of a slice.
    let (json, data) = rest.split_at(length as usize);
    let data_start = file.len() - data.len();
    if json.first() != Some(&b'{') {
        return Err(Error::file(path, "expected a safetensors header that begins with `{`, found something else"));
    }
    let json = std::str::from_utf8(json)
        .map_err(|error| Error::file(path, format!("header is not UTF-8 at byte {}", error.valid_up_to())))?;
    let RawHeader { entries: raw, metadata } = serde_json::from_str(json)
        .map_err(|error| Error::file(path, format!("bad header: {}", syntax_message(&error))))?;
    let mut entries = BTreeMap::new();
    for (name, raw) in raw {
        let entry = check_entry(path, &name, raw, data.len(), data_start)?;
        entries.insert(name, entry);
    }
    check_cover(path, &entries, data_start, file.len())?;
    Ok(Header { entries, metadata })
}

/// The length and the header of a file that has been read.
pub(crate) fn bytes(file: &[u8]) -> &[u8] {
    let length = file.first_chunk::<8>().map_or(0, |length| u64::from_le_bytes(*length));
    let end = usize::try_from(length).ok().and_then(|length| length.checked_add(8));
    end.and_then(|end| file.get(..end)).unwrap_or(file)
}

fn check_entry(path: &Path, name: &str, raw: RawEntry, data_len: usize, data_start: usize) -> Result<Entry> {
    let wrong = |expected: String, found: String| Error::Tensor {
        path: path.to_owned(),
        tensor: shown_name(name),
        expected,
        found,
    };
    let [start, end] = raw.data_offsets;
    if start > end {
        return Err(wrong("data_offsets in order".to_owned(), format!("{start} to {end}")));
    }
    if end > data_len as u64 {
        let found = format!("data_offsets {start} to {end} (truncated?)");
        return Err(wrong(format!("its data within the file's {data_len} bytes of data"), found));
    }
    let dtype = Dtype(raw.dtype);
    let bits = raw.shape.iter().try_fold(raw.dtype.bitsize() as u64, |bits, &size| bits.checked_mul(size));
    let Some(bits) = bits else {
        return Err(wrong("a shape whose size does not overflow".to_owned(), shown_shape(&raw.shape)));
    };
    let has = end - start;
    if !bits.is_multiple_of(8) || bits / 8 != has {
        let needed = format!("{} bytes for {dtype} {}", bits.div_ceil(8), shown_shape(&raw.shape));
        return Err(wrong(needed, format!("{has} bytes (data_offsets {start} to {end})")));
    }
    // A dimension beside a zero may be of any size; no such tensor is of use, so it need not be represented.
    let shape: Option<Vec<usize>> = raw.shape.iter().map(|&size| usize::try_from(size).ok()).collect();
    let shape = shape.ok_or_else(|| wrong("dimensions that fit this machine".to_owned(), shown_shape(&raw.shape)))?;
    // Both are at most `data_len`.
    Ok(Entry { dtype, shape, range: data_start + start as usize..data_start + end as usize })
}

/// The format allows neither overlaps nor holes nor bytes after the last tensor.
fn check_cover(path: &Path, entries: &BTreeMap<String, Entry>, data_start: usize, file_len: usize) -> Result<()> {
    let mut in_order: Vec<(&String, &Range<usize>)> =
        entries.iter().map(|(name, entry)| (name, &entry.range)).collect();
    in_order.sort_by_key(|(_, range)| (range.start, range.end));
    let mut covered = data_start;
    for (name, range) in in_order {
        if range.start != covered {
            let kind = if range.start < covered { "an overlap" } else { "a hole" };
            return Err(Error::Tensor {
                path: path.to_owned(),
                tensor: shown_name(name),
                expected: format!("its data to begin at {}, where the one before ends", covered - data_start),
                found: format!("{kind}: it begins at {}", range.start - data_start),
            });
        }
        covered = range.end;
    }
    if covered != file_len {
        let problem =
            format!("expected the file to end after its last tensor, found {} more bytes", file_len - covered);
        return Err(Error::file(path, problem));
    }
    Ok(())
}

/// A shape as a message shows it: a file may claim a million dimensions.
pub(crate) fn shown_shape(shape: &[impl fmt::Debug]) -> String {
    match shape.get(..8) {
        Some(first) if shape.len() > 8 => format!("{} dimensions, first {first:?}", shape.len()),
        _ => format!("shape {shape:?}"),
    }
}
