//! The tensors of all files of a model, by name.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use crate::checksum::Checksum;
use crate::error::{Error, Result};
use crate::load::Bytes;
use crate::load::files::ModelFiles;
use crate::load::header::{self, Dtype, Entry};
use crate::load::json::shown_name;
use crate::load::packed::Packed;
use crate::load::random::{RandomTensors, Shape};
use crate::load::shards::WeightFiles;

/// A model's weights: every file mapped, every header checked.
#[derive(Debug)]
pub struct Checkpoint {
    /// The first file, which stands for all in messages that concern none in particular.
    path: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Stored>,
    /// Makes the bytes of tensors that lie nowhere.
    random: Option<RandomTensors>,
    packed: Option<Packed>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    bytes: Bytes,
}

/// Where a tensor lies.
#[derive(Debug)]
pub(crate) struct Stored {
    /// Index of its shard.
    pub shard: usize,
    /// Of a tensor that is there in packed form alone the range is empty.
    entry: Entry,
}

/// One tensor of a checkpoint. Its bytes are those of the mapped file: little-endian, of any alignment.
#[derive(Clone, Debug)]
pub struct TensorView {
    /// Its name.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its dimensions, the slowest first.
    pub shape: Vec<usize>,
    /// Its elements.
    pub bytes: Bytes,
    /// The file that it lies in.
    pub file: PathBuf,
}

impl Checkpoint {
    /// Maps the files that hold the weights and checks their headers, and the index against them.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Tensor`], with the file, the tensor, what was expected and what was found.
    pub fn open(files: &ModelFiles) -> Result<Checkpoint> {
        if let Some(shape) = files.shape() {
            return Ok(Checkpoint::of_shape(shape));
        }
        let WeightFiles { shards: names, index } = WeightFiles::find(files)?;
        let mut shards = Vec::with_capacity(names.len());
        let mut tensors: BTreeMap<String, Stored> = BTreeMap::new();
        let mut packed = None;
        for name in &names {
            let path = files.path(name);
            let bytes = files.map(name)?;
            let header = header::read(&path, &bytes)?;
            let entries = if Packed::is_packed(&header) {
                if names.len() > 1 {
                    return Err(Error::file(&path, "expected packed weights to be one file, found a set of shards"));
                }
                let (facts, entries) = Packed::read(&path, header, &bytes)?;
                packed = Some(facts);
                entries
            } else {
                header.entries
            };
            for (tensor, entry) in entries {
                if let Some(other) = tensors.insert(tensor.clone(), Stored { shard: shards.len(), entry }) {
                    let found = names.get(other.shard).cloned().unwrap_or_default();
                    let (tensor, expected) = (shown_name(&tensor), "in one file only".to_owned());
                    return Err(Error::Tensor { path, tensor, expected, found: format!("also in {found}") });
                }
            }
            shards.push(Shard { path, bytes });
        }
        if let Some(index) = index {
            index.check(&tensors)?;
        }
        let path = shards.first().map_or_else(|| files.folder().to_owned(), |shard| shard.path.clone());
        Ok(Checkpoint { path, shards, tensors, packed, random: None })
    }

    /// Random weights in bf16, made when a tensor is asked for.
    fn of_shape(shape: &Shape) -> Checkpoint {
        let path = PathBuf::from(format!("<random>/{}/weights", shape.name().replace('/', "_")));
        let mut end = 0;
        let stored = |(name, shape): (String, Vec<usize>)| {
            let start = end;
            end += shape.iter().product::<usize>() * Dtype::BF16.bits() / 8;
            (name, Stored { shard: 0, entry: Entry { dtype: Dtype::BF16, shape, range: start..end } })
        };
        let tensors = shape.tensors().into_iter().map(stored).collect();
        let shards = vec![Shard { path: path.clone(), bytes: Bytes::from_static(&[]) }];
        Checkpoint { path, shards, tensors, packed: None, random: Some(RandomTensors::default()) }
    }

    /// Whether the bytes of tensors are made when they are asked for.
    pub(crate) fn is_random(&self) -> bool {
        self.random.is_some()
    }

    /// The first file of the weights, for messages that concern no tensor in particular.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files that hold the weights.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.shards.iter().map(|shard| shard.path.as_path())
    }

    /// What the file says of its packed matrices, if it has packed weights.
    pub(crate) fn packed(&self) -> Option<&Packed> {
        self.packed.as_ref()
    }

    /// The flags that packed weights were made with; none if the weights are not packed.
    pub fn packed_plan(&self) -> Option<&str> {
        self.packed.as_ref().map(|packed| packed.summary.as_str())
    }

    /// A checksum of what tells these files from others without reading them: names, sizes, times of the last change
    /// (of those that lie on a disk), headers.
    pub(crate) fn fingerprint(&self) -> String {
        let mut checksum = Checksum::new();
        for Shard { path, bytes } in &self.shards {
            let changed = fs::metadata(path).and_then(|metadata| metadata.modified());
            let changed = changed.ok().and_then(|changed| changed.duration_since(UNIX_EPOCH).ok());
            checksum.update(path.file_name().unwrap_or_default().as_encoded_bytes());
            checksum.update(&bytes.len().to_le_bytes());
            checksum.update(&changed.map_or(0, |changed| changed.as_nanos()).to_le_bytes());
            checksum.update(header::bytes(bytes));
        }
        checksum.finish()
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there is no tensor at all.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The shape of a tensor, if there is one of this name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|stored| stored.entry.shape.as_slice())
    }

    /// The type of a tensor's elements, if there is one of this name.
    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        self.tensors.get(name).map(|stored| stored.entry.dtype)
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<TensorView> {
        let Stored { shard, entry } = self.tensors.get(name)?;
        let shard = self.shards.get(*shard)?;
        let bytes = match &self.random {
            Some(random) => random.bytes(name, &entry.shape),
            None => shard.bytes.slice(entry.range.clone())?,
        };
        Some(TensorView {
            name: name.to_owned(),
            dtype: entry.dtype,
            shape: entry.shape.clone(),
            bytes,
            file: shard.path.clone(),
        })
    }

    /// The file that a tensor lies in; the first file if there is no such tensor.
    pub(crate) fn file_of(&self, name: &str) -> &Path {
        let shard = self.tensors.get(name).and_then(|stored| self.shards.get(stored.shard));
        shard.map_or(&self.path, |shard| shard.path.as_path())
    }

    /// Whether the bytes of a tensor are there as they were stored first, and not in packed form alone.
    pub(crate) fn has_bytes(&self, name: &str) -> bool {
        self.tensors.get(name).is_some_and(|stored| !stored.entry.range.is_empty())
    }

    /// Bytes of all tensors together, packed ones included.
    pub fn total_bytes(&self) -> u64 {
        let packed = self.packed.iter().flat_map(|packed| packed.matrices.values()).map(|matrix| matrix.bytes.len());
        self.tensors.values().map(|stored| stored.entry.range.len()).chain(packed).map(|bytes| bytes as u64).sum()
    }
}
