//! `model.safetensors.index.json`: which shard holds which tensor.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde::de::{self, MapAccess, Visitor};

use crate::error::{Error, Result};
use crate::load::checkpoint::Stored;
use crate::load::content;
use crate::load::files::ModelFiles;
use crate::load::json::{shown_name, syntax_error};
use crate::load::shards::first_few;

/// The name that an index has in a folder.
pub(crate) const INDEX_NAME: &str = "model.safetensors.index.json";

/// The largest index read; the one of a model of 100,000 tensors has 10 MB.
const LARGEST_INDEX: u64 = 64 << 20;

/// An index whose shards exist and lie inside its folder.
#[derive(Debug)]
pub(crate) struct Index {
    path: PathBuf,
    /// The names of the shards, sorted.
    pub shards: Vec<String>,
    weight_map: HashMap<String, String>,
}

#[derive(Deserialize)]
struct IndexFile {
    weight_map: WeightMap,
}

/// Tensor name to shard name; a name that stands there twice is an error.
struct WeightMap(HashMap<String, String>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> std::result::Result<WeightMap, D::Error> {
        struct NoDuplicates;
        impl<'de> Visitor<'de> for NoDuplicates {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("weight_map to be an object from tensor names to file names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<WeightMap, A::Error> {
                let mut names = HashMap::new();
                while let Some((tensor, shard)) = map.next_entry::<String, String>()? {
                    if names.insert(tensor.clone(), shard).is_some() {
                        return Err(de::Error::custom(format_args!("tensor {} is named twice", shown_name(&tensor))));
                    }
                }
                Ok(WeightMap(names))
            }
        }
        deserializer.deserialize_map(NoDuplicates)
    }
}

impl Index {
    /// Reads an index and checks the names of its shards.
    ///
    /// # Errors
    /// [`Error::File`] if it is damaged, names a file outside of its folder, or a shard is missing.
    pub fn read(files: &ModelFiles, name: &str) -> Result<Index> {
        let path = files.path(name);
        let file = files.read(name, LARGEST_INDEX)?.ok_or_else(|| Error::file(&path, "no such file or folder"))?;
        if let Some(problem) = content::foreign(&file.bytes) {
            return Err(Error::file(&path, problem));
        }
        if file.bytes.trim_ascii().is_empty() {
            return Err(Error::file(&path, "is empty"));
        }
        let IndexFile { weight_map: WeightMap(weight_map) } =
            serde_json::from_slice(&file.bytes).map_err(|error| syntax_error(&path, &error))?;
        let mut tensors: BTreeMap<&str, usize> = BTreeMap::new();
        for shard in weight_map.values() {
            *tensors.entry(shard).or_default() += 1;
        }
        if tensors.is_empty() {
            return Err(Error::file(&path, "weight_map is empty"));
        }
        let mut missing = Vec::new();
        for (shard, n_tensors) in &tensors {
            // Lexically: the shards may be links to anywhere, as in the Hugging Face cache.
            let inside = !shard.is_empty()
                && !shard.contains(char::is_control)
                && Path::new(shard).components().all(|component| matches!(component, Component::Normal(_)));
            if !inside {
                let shown = shown_name(shard);
                return Err(Error::file(&path, format!("expected file names inside its folder, found `{shown}`")));
            }
            if !files.contains(shard) {
                missing.push((*shard, *n_tensors));
            }
        }
        if let Some((shard, n_tensors)) = missing.first() {
            let more = if missing.len() > 1 { format!(" ({} shards missing)", missing.len()) } else { String::new() };
            let problem = format!("shard is missing; {name} expects {n_tensors} tensors in it{more}");
            return Err(Error::file(&files.path(shard), problem));
        }
        let shards = tensors.keys().map(|shard| (*shard).to_owned()).collect();
        Ok(Index { path, shards, weight_map })
    }

    /// Compares the index with what the shards hold.
    ///
    /// # Errors
    /// [`Error::File`] that lists the first tensors that are not where the index says, or that it does not name.
    pub fn check(&self, tensors: &BTreeMap<String, Stored>) -> Result<()> {
        let mut absent: Vec<&str> = Vec::new();
        for (tensor, shard) in &self.weight_map {
            let Some(stored) = tensors.get(tensor) else {
                absent.push(tensor);
                continue;
            };
            let found = self.shards.get(stored.shard).map_or("", String::as_str);
            if found != shard {
                return Err(Error::Tensor {
                    path: self.path.clone(),
                    tensor: shown_name(tensor),
                    expected: format!("in {shard}"),
                    found: format!("in {found}"),
                });
            }
        }
        if !absent.is_empty() {
            absent.sort_unstable();
            let (n, first) = (absent.len(), first_few(absent.into_iter()));
            let problem = format!("names {n} tensor{} that no shard has: {first}", if n == 1 { "" } else { "s" });
            return Err(Error::file(&self.path, problem));
        }
        match tensors.iter().find(|(name, _)| !self.weight_map.contains_key(*name)) {
            Some((name, stored)) => Err(Error::Tensor {
                path: self.path.clone(),
                tensor: shown_name(name),
                expected: "to be named by the index".to_owned(),
                found: format!("only in {}", self.shards.get(stored.shard).map_or("", String::as_str)),
            }),
            None => Ok(()),
        }
    }
}
