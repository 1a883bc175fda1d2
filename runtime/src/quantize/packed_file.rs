//! Writes files of packed weights (their format is in `load/packed.rs`): what is in them is known before anything is
//! quantized, so they are written from front to back, a band of rows at a time.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::Write;
use std::path::Path;

use infer_kernels::KernelError;
use infer_kernels::quant::LAYOUT_VERSION;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::load::header::{Dtype, Entry};
use crate::load::json::shown_name;
use crate::load::packed::{ALIGNMENT, CHECKSUM, FORMAT, checksum};
use crate::load::{Checkpoint, TensorView};
use crate::model::spec::{Matrix, Spec};
use crate::model::walk::{Parameter, for_each_parameter};
use crate::options::WeightFormat;
use crate::quantize::QuantPlan;
use crate::quantize::plan::packed_bytes;
use crate::quantize::source::SourceMatrix;

/// Bytes of an unchanged tensor that are copied at once.
const COPIED_BYTES: usize = 8 << 20;

/// The file is written in multiples of this, from multiples of it: then a system that keeps files in large pages keeps
/// this one in them, and weights are read up to a fifth faster. What is read from the disk later is in large pages anyway.
const WRITTEN_BYTES: usize = 2 << 20;

/// A file of packed weights that is not written yet.
pub(crate) struct PackedFile<'a> {
    checkpoint: &'a Checkpoint,
    header: Vec<u8>,
    contents: Vec<Content<'a>>,
    data_bytes: usize,
}

/// What follows the header, in order.
enum Content<'a> {
    Packed(&'a Matrix, WeightFormat),
    Stored(TensorView),
}

impl<'a> PackedFile<'a> {
    /// Lays out the file of a model whose tensors have been checked: packed matrices in the order in which a token
    /// meets them, then what stays as it is, that of the widest elements first, so that all are aligned. `model` is
    /// what a cache calls the model.
    ///
    /// # Errors
    /// [`Error::File`] if two tensors would have one name, [`Error::Kernel`] for a size that overflows.
    pub fn new(
        spec: &'a Spec,
        checkpoint: &'a Checkpoint,
        plan: &QuantPlan,
        model: Option<&Path>,
    ) -> Result<PackedFile<'a>> {
        let mut packed: Vec<(String, &Matrix, WeightFormat)> = Vec::new();
        let mut stored: Vec<TensorView> = Vec::new();
        let mut seen: HashSet<String> = HashSet::new();
        for_each_parameter(spec, &mut |parameter| {
            let names = match parameter {
                Parameter::Matrix(matrix, _) => {
                    let name = matrix.name();
                    let format = plan.format_of(&name);
                    if format != WeightFormat::AsStored {
                        if seen.insert(name.clone()) {
                            packed.push((name, matrix, format));
                        }
                        return;
                    }
                    std::slice::from_ref(&matrix.tensor)
                }
                Parameter::Vector(vector) => vector.tensors.as_slice(),
            };
            let new = names.iter().filter(|name| seen.insert((*name).clone()));
            stored.extend(new.filter_map(|name| checkpoint.tensor(name)));
        });
        stored.sort_by(|a, b| (b.dtype.bits(), &a.name).cmp(&(a.dtype.bits(), &b.name)));

        let mut table = Table::default();
        for (name, matrix, format) in &packed {
            let too_large = KernelError::TooLarge { rows: matrix.rows, cols: matrix.cols };
            let length = packed_bytes(*format, matrix.rows, matrix.cols);
            let length = length.and_then(|length| length.checked_next_multiple_of(ALIGNMENT)).ok_or(too_large)?;
            table.add(checkpoint, name, Dtype::BYTES, vec![length], length)?;
        }
        for tensor in &stored {
            table.add(checkpoint, &tensor.name, tensor.dtype, tensor.shape.clone(), tensor.bytes.len())?;
        }
        let metadata = metadata(checkpoint, plan, &packed, model);
        let header = header_bytes(metadata, &table.entries);
        let packed = packed.into_iter().map(|(_, matrix, format)| Content::Packed(matrix, format));
        let contents = packed.chain(stored.into_iter().map(Content::Stored)).collect();
        Ok(PackedFile { checkpoint, header, contents, data_bytes: table.end })
    }

    /// The first bytes of the file.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// The size of the file.
    pub fn len(&self) -> u64 {
        self.header.len() as u64 + self.data_bytes as u64
    }

    /// Quantizes and writes everything. It is not on the disk then: that takes a [`File::sync_all`]. `path` is the
    /// file's, for messages.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written, [`Error::Tensor`] for a value that is not finite.
    pub fn write(
        &self,
        file: &mut File,
        path: &Path,
        pool: &rayon::ThreadPool,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        let stream = Stream { file, position: 0, full: self.header.clone(), next: Vec::new() };
        pool.install(|| self.write_contents(stream, |error| Error::io(path, error), progress))
    }

    fn write_contents(
        &self,
        mut stream: Stream<'_>,
        failed: impl Fn(std::io::Error) -> Error + Copy,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<()> {
        for content in &self.contents {
            match content {
                Content::Packed(matrix, format) => {
                    let source = SourceMatrix::open(self.checkpoint, matrix, *format)?;
                    let mut written = 0;
                    for band in source.bands()? {
                        let length = band.packed.len();
                        stream.push(length, |packed| source.quantize_band(&band, packed)).map_err(failed)??;
                        progress(source.band_bytes(&band).len() as u64);
                        written += length;
                    }
                    let padding = written.next_multiple_of(ALIGNMENT) - written;
                    stream.push(padding, |padding| padding.fill(0)).map_err(failed)?;
                }
                Content::Stored(tensor) => {
                    for start in (0..tensor.bytes.len()).step_by(COPIED_BYTES) {
                        let range = start..tensor.bytes.len().min(start + COPIED_BYTES);
                        let part = tensor.bytes.get(range.clone()).unwrap_or_default();
                        stream.push(part.len(), |copy| copy.copy_from_slice(part)).map_err(failed)?;
                        tensor.bytes.release(range);
                        progress(part.len() as u64);
                    }
                }
            }
        }
        stream.finish().map_err(failed)
    }
}

/// Writes one buffer while the next is filled.
struct Stream<'a> {
    file: &'a mut File,
    /// Bytes written.
    position: usize,
    /// Not yet written.
    full: Vec<u8>,
    next: Vec<u8>,
}

impl Stream<'_> {
    /// Appends `len` bytes, all of which `fill` writes, on the threads of the caller's pool; what `fill` returns.
    fn push<R: Send>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> R + Send) -> std::io::Result<R> {
        let Stream { file, position, full, next } = self;
        // What lies behind the last multiple waits for what follows it.
        let waiting = full.len().min((*position + full.len()) % WRITTEN_BYTES);
        let (full_part, waiting) = full.split_at(full.len() - waiting);
        next.resize(waiting.len() + len, 0);
        let (start, rest) = next.split_at_mut(waiting.len());
        start.copy_from_slice(waiting);
        let (filled, written) = rayon::join(|| fill(rest), || file.write_all(full_part));
        written?;
        *position += full_part.len();
        std::mem::swap(full, next);
        Ok(filled)
    }

    /// Writes what is left.
    fn finish(self) -> std::io::Result<()> {
        self.file.write_all(&self.full)
    }
}

/// The tensors of the file, with their places in its data.
#[derive(Default)]
struct Table {
    entries: BTreeMap<String, Entry>,
    end: usize,
}

impl Table {
    fn add(
        &mut self,
        checkpoint: &Checkpoint,
        name: &str,
        dtype: Dtype,
        shape: Vec<usize>,
        length: usize,
    ) -> Result<()> {
        let start = self.end;
        let too_large = KernelError::TooLarge { rows: 1, cols: length };
        self.end = start.checked_add(length).ok_or(too_large)?;
        let entry = Entry { dtype, shape, range: start..self.end };
        match self.entries.insert(name.to_owned(), entry) {
            None => Ok(()),
            Some(_) => {
                let problem = format!("has a tensor whose name another would get when packed: {}", shown_name(name));
                Err(Error::file(checkpoint.path(), problem))
            }
        }
    }
}

fn metadata(
    checkpoint: &Checkpoint,
    plan: &QuantPlan,
    packed: &[(String, &Matrix, WeightFormat)],
    model: Option<&Path>,
) -> BTreeMap<String, String> {
    let formats = packed.iter().map(|(name, _, format)| (name.clone(), Value::from(format.name())));
    let mut sources = BTreeMap::new();
    for (_, matrix, _) in packed {
        if let (Some(dtype), Some(shape)) = (checkpoint.dtype(&matrix.tensor), checkpoint.shape(&matrix.tensor)) {
            sources.insert(matrix.tensor.clone(), json!({ "dtype": dtype.to_string(), "shape": shape }));
        }
    }
    let mut texts: BTreeMap<String, String> = [
        ("format", FORMAT.to_owned()),
        ("layout_version", LAYOUT_VERSION.to_string()),
        ("plan", plan.summary().to_owned()),
        ("matrices", Value::Object(formats.collect()).to_string()),
        ("tensors", json!(sources).to_string()),
        ("source", checkpoint.fingerprint()),
    ]
    .into_iter()
    .map(|(key, text)| (key.to_owned(), text))
    .collect();
    if let Some(model) = model {
        texts.insert("model".to_owned(), model.display().to_string());
    }
    texts
}

/// Length and JSON, padded with spaces so that the data begin at a multiple of [`ALIGNMENT`].
fn header_bytes(mut metadata: BTreeMap<String, String>, entries: &BTreeMap<String, Entry>) -> Vec<u8> {
    metadata.insert(CHECKSUM.to_owned(), checksum(&metadata, entries));
    let mut object = Map::new();
    object.insert("__metadata__".to_owned(), json!(metadata));
    for (name, Entry { dtype, shape, range }) in entries {
        let info = json!({ "dtype": dtype.to_string(), "shape": shape, "data_offsets": [range.start, range.end] });
        object.insert(name.clone(), info);
    }
    let mut json = Value::Object(object).to_string().into_bytes();
    json.resize((8 + json.len()).next_multiple_of(ALIGNMENT) - 8, b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.append(&mut json);
    header
}
