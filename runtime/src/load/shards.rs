//! Which files of a folder hold the weights.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::load::files::ModelFiles;
use crate::load::index::{INDEX_NAME, Index};
use crate::load::json::shown_name;

/// The files that hold a model's weights.
pub(crate) struct WeightFiles {
    /// Names of the files.
    pub shards: Vec<String>,
    /// The index that names them, if there is one.
    pub index: Option<Index>,
}

impl WeightFiles {
    fn without_index(shards: Vec<String>) -> WeightFiles {
        WeightFiles { shards, index: None }
    }

    fn of_index(index: Index) -> WeightFiles {
        WeightFiles { shards: index.shards.clone(), index: Some(index) }
    }

    /// The index first, then `model.safetensors`, then a complete set of shards, then the only .safetensors file. The
    /// path of one shard opens its set, that of any other file opens this file alone.
    ///
    /// # Errors
    /// [`Error::File`] if there are no weights, some of a set are missing, or it is not clear which files are meant.
    pub fn find(files: &ModelFiles) -> Result<WeightFiles> {
        if let Some(name) = files.named() {
            return of_named_file(files, name);
        }
        if files.contains(INDEX_NAME) {
            return Ok(WeightFiles::of_index(Index::read(files, INDEX_NAME)?));
        }
        if files.contains("model.safetensors") {
            return Ok(WeightFiles::without_index(vec!["model.safetensors".to_owned()]));
        }
        let names = files.names("")?;
        let (other_formats, weights): (Vec<&String>, Vec<&String>) =
            names.iter().partition(|name| !name.ends_with(".safetensors") || is_ignored(name));
        let sets = sets(weights.iter().map(|name| name.as_str()));
        let complete: Vec<&Set> = sets.iter().filter(|set| set.is_complete()).collect();
        match (complete.as_slice(), weights.as_slice()) {
            ([set], _) => Ok(WeightFiles::without_index(set.names())),
            ([], []) => Err(no_weights(files, &other_formats)),
            ([], [only]) if sets.is_empty() => Ok(WeightFiles::without_index(vec![(*only).clone()])),
            ([], _) if sets.len() == 1 && sets.iter().map(|set| set.present.len()).sum::<usize>() == weights.len() => {
                Err(sets.first().map_or_else(|| no_weights(files, &other_formats), |set| set.incomplete(files)))
            }
            _ => Err(Error::file(
                files.folder(),
                format!(
                    "expected one model, found {} .safetensors files ({}); give the path of one of them",
                    weights.len(),
                    first_few(weights.iter().map(|name| name.as_str()))
                ),
            )),
        }
    }
}

fn of_named_file(files: &ModelFiles, name: &str) -> Result<WeightFiles> {
    if name.ends_with(".safetensors.index.json") {
        return Ok(WeightFiles::of_index(Index::read(files, name)?));
    }
    let Some(shard) = Shard::parse(name) else {
        return Ok(WeightFiles::without_index(vec![name.to_owned()]));
    };
    let index_name = format!("{}.safetensors.index.json", shard.prefix);
    if files.contains(&index_name) {
        let index = Index::read(files, &index_name)?;
        if index.shards.iter().any(|shard| shard == name) {
            return Ok(WeightFiles::of_index(index));
        }
    }
    let names = files.names("")?;
    let sets = sets(names.iter().map(String::as_str));
    match sets.iter().find(|set| set.key == shard.set_key()) {
        Some(set) if set.is_complete() => Ok(WeightFiles::without_index(set.names())),
        Some(set) => Err(set.incomplete(files)),
        None => Ok(WeightFiles::without_index(vec![name.to_owned()])),
    }
}

/// Files that lie beside a model's weights and are not them: Mistral's own format, and adapters.
fn is_ignored(name: &str) -> bool {
    name.starts_with("consolidated") || name.starts_with("adapter_")
}

fn no_weights(files: &ModelFiles, others: &[&String]) -> Error {
    let with = |test: &dyn Fn(&str) -> bool| others.iter().find(|name| test(name)).map(|name| name.as_str());
    let pytorch = |name: &str| [".bin", ".pt", ".pth", ".ckpt"].iter().any(|ending| name.ends_with(ending));
    let problem = if let Some(name) = with(&|name| name.ends_with(".gguf")) {
        format!("holds no .safetensors file but {name}; GGUF is not read, take the model's original folder")
    } else if let Some(name) = with(&pytorch) {
        format!("holds no .safetensors file but {name}; PyTorch files are not read, convert them to safetensors")
    } else if let Some(name) = with(&|name| name.starts_with("adapter_")) {
        format!("holds no model but the adapter {name}; give the folder of the model that it adapts")
    } else if let Some(name) = with(&is_ignored) {
        format!("holds no model but {name}, which is not in the Hugging Face layout")
    } else {
        "holds no .safetensors file".to_owned()
    };
    Error::file(files.folder(), problem)
}

/// The parts of a name like `model-00001-of-00003.safetensors`.
struct Shard<'a> {
    prefix: &'a str,
    number: u32,
    total: &'a str,
}

impl<'a> Shard<'a> {
    fn parse(name: &'a str) -> Option<Shard<'a>> {
        let digits = |text: &str| (1..=6).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
        let (rest, total) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
        let (prefix, number) = rest.rsplit_once('-')?;
        if !digits(total) || !digits(number) {
            return None;
        }
        Some(Shard { prefix, number: number.parse().ok()?, total })
    }

    fn set_key(&self) -> (String, String) {
        (self.prefix.to_owned(), self.total.to_owned())
    }
}

/// Shards of one name and total.
struct Set {
    key: (String, String),
    /// Number and name of each shard that is there.
    present: BTreeMap<u32, String>,
}

impl Set {
    fn total(&self) -> u32 {
        self.key.1.parse().unwrap_or(0)
    }

    fn is_complete(&self) -> bool {
        self.present.len() as u32 == self.total()
    }

    fn names(&self) -> Vec<String> {
        self.present.values().cloned().collect()
    }

    fn incomplete(&self, files: &ModelFiles) -> Error {
        let missing = (1..=self.total()).filter(|number| !self.present.contains_key(number));
        let (prefix, total) = &self.key;
        let width = total.len();
        let first = missing.clone().take(3).map(|number| format!("{prefix}-{number:0width$}-of-{total}.safetensors"));
        let first = first.collect::<Vec<_>>().join(", ");
        let n_missing = missing.count();
        let more = if n_missing > 3 { ", …" } else { "" };
        Error::file(files.folder(), format!("expected {total} shards, {n_missing} missing: {first}{more}"))
    }
}

/// Groups names into sets; shards whose number is not within 1 to the total belong to none.
fn sets<'a>(names: impl Iterator<Item = &'a str>) -> Vec<Set> {
    let mut sets: BTreeMap<(String, String), BTreeMap<u32, String>> = BTreeMap::new();
    for name in names.filter(|name| !is_ignored(name)) {
        if let Some(shard) = Shard::parse(name)
            && (1..=shard.total.parse().unwrap_or(0)).contains(&shard.number)
        {
            sets.entry(shard.set_key()).or_default().insert(shard.number, name.to_owned());
        }
    }
    sets.into_iter().map(|(key, present)| Set { key, present }).collect()
}

/// The first three names, and dots if there are more.
pub(crate) fn first_few<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut shown = String::new();
    for (i, name) in names.enumerate() {
        if i == 3 {
            shown.push_str(", …");
            break;
        }
        if i > 0 {
            shown.push_str(", ");
        }
        shown.push_str(&shown_name(name));
    }
    shown
}
