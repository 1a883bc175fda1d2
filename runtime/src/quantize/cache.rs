//! Packed models that are kept, so that a model is quantized once: files in a folder of the user's, each under a name made
//! of the model's place and its plan.
//!
//! Building one takes a lock (`.NAME.lock`, which stays), writes `.NAME.tmp`, waits for the disk, and renames it to
//! NAME; the model is in use before the disk has it (`keeping.rs`). Whatever ends a process in between leaves at most
//! the temporary file, which the next one that builds anything removes: it is nobody's if its lock is free. A file is
//! used if its length and every byte of its header are what would be written now; the header has the sizes, times and
//! headers of the sources in it.

use std::fs::{self, File, TryLockError};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::checksum::Checksum;
use crate::error::{Error, Result};
use crate::load::{Bytes, Checkpoint, ModelFiles, header};
use crate::model::spec::Spec;
use crate::options::Notice;
use crate::quantize::QuantPlan;
use crate::quantize::keeping::Keeping;
use crate::quantize::packed_file::PackedFile;

/// A folder of packed models.
#[derive(Clone, Debug)]
pub struct PackedCache {
    folder: PathBuf,
}

/// A packed model that is kept.
#[derive(Clone, Debug)]
pub struct CacheEntry {
    /// The name of its file.
    pub name: String,
    /// The size of its file.
    pub bytes: u64,
    /// The flags that it was made with; none if the file is not a packed model.
    pub plan: Option<String>,
    /// The model that it was made from.
    pub model: Option<String>,
}

/// A packed model, mapped, and what keeps it if it has just been made.
pub(crate) struct Kept {
    pub checkpoint: Checkpoint,
    pub keeping: Option<Keeping>,
}

/// What a model to be kept is made of.
pub(crate) struct Request<'a> {
    pub spec: &'a Spec,
    pub checkpoint: &'a Checkpoint,
    pub plan: &'a QuantPlan,
    pub pool: &'a rayon::ThreadPool,
    pub progress: &'a (dyn Fn(u64) + Sync),
    pub notices: &'a dyn Fn(Notice),
}

impl PackedCache {
    /// The cache in a folder, which is made when it is needed.
    pub fn new(folder: impl Into<PathBuf>) -> PackedCache {
        PackedCache { folder: folder.into() }
    }

    /// The user's: `$XDG_CACHE_HOME/infer`, or `~/.cache/infer`; none if neither place is known.
    pub fn default_folder() -> Option<PathBuf> {
        let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let folder = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
        folder.map(|folder| folder.join("infer"))
    }

    /// Where the files are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The packed models that are kept, by name.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be read.
    pub fn entries(&self) -> Result<Vec<CacheEntry>> {
        let names = self.names()?.into_iter().filter(|name| name.ends_with(".safetensors") && !name.starts_with('.'));
        Ok(names.filter_map(|name| self.entry(name)).collect())
    }

    fn entry(&self, name: String) -> Option<CacheEntry> {
        let path = self.folder.join(&name);
        let bytes = fs::symlink_metadata(&path).ok().filter(fs::Metadata::is_file)?.len();
        let files = ModelFiles::open(&path).and_then(|files| files.map(&name));
        let read = files.and_then(|file: Bytes| header::read(&path, &file));
        let mut texts = read.map(|header| header.metadata).unwrap_or_default();
        Some(CacheEntry { bytes, plan: texts.remove("plan"), model: texts.remove("model"), name })
    }

    /// Removes a packed model; the bytes that it had, or none if there is no such model. Programs that have it mapped
    /// keep it.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be removed.
    pub fn remove(&self, name: &str) -> Result<Option<u64>> {
        match self.entries()?.into_iter().find(|entry| entry.name == name) {
            None => Ok(None),
            Some(entry) => {
                let path = self.folder.join(name);
                fs::remove_file(&path).map_err(|error| Error::io(&path, error))?;
                Ok(Some(entry.bytes))
            }
        }
    }

    /// Removes what processes that were ended while they wrote have left, and gives its bytes.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be read.
    pub fn remove_unfinished(&self) -> Result<u64> {
        let mut removed = 0;
        for name in self.names()? {
            let Some(packed) = name.strip_prefix('.').and_then(|name| name.strip_suffix(".tmp")) else { continue };
            let free = File::open(self.lock_path(packed)).is_ok_and(|lock| lock.try_lock().is_ok());
            let path = self.folder.join(&name);
            let bytes = fs::symlink_metadata(&path).map_or(0, |metadata| metadata.len());
            if free && fs::remove_file(&path).is_ok() {
                removed += bytes;
            }
        }
        Ok(removed)
    }

    fn names(&self) -> Result<Vec<String>> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io(&self.folder, error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| Error::io(&self.folder, error))?;
            names.extend(entry.file_name().into_string().ok());
        }
        names.sort();
        Ok(names)
    }

    fn lock_path(&self, name: &str) -> PathBuf {
        self.folder.join(format!(".{name}.lock"))
    }

    /// The packed model; it is made if it is not there or not good. None, after a notice, if it cannot be kept.
    ///
    /// # Errors
    /// What is wrong with the source. What is wrong with the cache is a notice.
    pub(crate) fn open(&self, request: &Request<'_>) -> Result<Option<Kept>> {
        match self.open_or_build(request) {
            Ok(kept) => Ok(Some(kept)),
            Err(Error::Io { path, source }) => {
                (request.notices)(Notice::NotCached { path, problem: source.to_string() });
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn open_or_build(&self, request: &Request<'_>) -> Result<Kept> {
        let Request { spec, checkpoint, plan, .. } = request;
        let model = place(checkpoint, checkpoint.path())?;
        let name = file_name(checkpoint, plan)?;
        let path = self.folder.join(&name);
        let wanted = PackedFile::new(spec, checkpoint, plan, Some(&model))?;
        if let Found::Good(checkpoint) = look(&path, &wanted) {
            return Ok(Kept { checkpoint, keeping: None });
        }
        fs::create_dir_all(&self.folder).map_err(|error| Error::io(&self.folder, error))?;
        let lock_path = self.lock_path(&name);
        let lock_failed = |error| Error::io(&lock_path, error);
        let lock = File::options().create(true).truncate(false).write(true).open(&lock_path).map_err(lock_failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                (request.notices)(Notice::Waiting);
                lock.lock().map_err(lock_failed)?;
            }
            Err(TryLockError::Error(error)) => return Err(lock_failed(error)),
        }
        // Whoever had the lock may have made it.
        match look(&path, &wanted) {
            Found::Good(checkpoint) => return Ok(Kept { checkpoint, keeping: None }),
            Found::Bad(problem) => (request.notices)(Notice::Rebuilding { path: path.clone(), problem }),
            Found::Nothing => {}
        }
        self.build(request, &wanted, &name, &lock)
    }

    /// Writes the file and begins to keep it. The caller has its lock.
    fn build(&self, request: &Request<'_>, wanted: &PackedFile<'_>, name: &str, lock: &File) -> Result<Kept> {
        let start = Instant::now();
        let (temporary, path) = (self.folder.join(format!(".{name}.tmp")), self.folder.join(name));
        let failed = |error| Error::io(&path, error);
        // The space may be needed. That of another process stays.
        self.remove_unfinished()?;
        let kept = File::create(&temporary).map_err(failed).and_then(|mut file| {
            wanted.write(&mut file, &path, request.pool, request.progress)?;
            let checkpoint = ModelFiles::open(&temporary).and_then(|files| Checkpoint::open(&files))?;
            // Both hold the lock: here in case that the file must be removed.
            let lock = lock.try_clone().map_err(failed)?;
            let keeping = Keeping::start(file, temporary.clone(), &path, lock)?;
            Ok(Kept { checkpoint, keeping: Some(keeping) })
        });
        if kept.is_err() {
            // If it cannot be removed either, the next process will try.
            let _ = fs::remove_file(&temporary);
            return kept;
        }
        (request.notices)(Notice::Quantized {
            source_bytes: request.checkpoint.total_bytes(),
            packed_bytes: wanted.len(),
            elapsed: start.elapsed(),
            path: Some(path),
        });
        kept
    }
}

/// What is at the place of a packed model.
enum Found {
    Nothing,
    Good(Checkpoint),
    Bad(&'static str),
}

fn look(path: &Path, wanted: &PackedFile<'_>) -> Found {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Found::Nothing,
        Err(_) => return Found::Bad("cannot be read"),
    };
    if !metadata.is_file() {
        return Found::Bad("is not a file");
    }
    let mut found = Vec::new();
    let read = File::open(path).and_then(|file| file.take(wanted.header().len() as u64).read_to_end(&mut found));
    if read.is_err() {
        return Found::Bad("cannot be read");
    }
    if metadata.len() != wanted.len() || found != wanted.header() {
        return Found::Bad("is damaged, or not of this model as it is now");
    }
    match ModelFiles::open(path).and_then(|files| Checkpoint::open(&files)) {
        Ok(checkpoint) => Found::Good(checkpoint),
        Err(_) => Found::Bad("cannot be mapped"),
    }
}

/// A name that tells models and plans apart, and that a person recognises.
fn file_name(checkpoint: &Checkpoint, plan: &QuantPlan) -> Result<String> {
    let mut key = Checksum::new();
    for file in checkpoint.files() {
        key.update(place(checkpoint, file)?.as_os_str().as_encoded_bytes());
    }
    key.update(plan.summary().as_bytes());
    let format = plan.summary().split(' ').next().unwrap_or_default();
    Ok(format!("{}-{format}-{}.safetensors", short_name(checkpoint.path()), key.finish()))
}

/// A file by its one name. Random weights lie nowhere: theirs is what they are.
fn place(checkpoint: &Checkpoint, file: &Path) -> Result<PathBuf> {
    if checkpoint.is_random() {
        return Ok(file.to_owned());
    }
    fs::canonicalize(file).map_err(|error| Error::io(file, error))
}

/// What people call the model of a file: `Llama-3.2-1B` of `Llama-3.2-1B/model.safetensors`, also in the Hugging Face
/// cache, where it is `models--meta-llama--Llama-3.2-1B/snapshots/4e20/model.safetensors`.
fn short_name(path: &Path) -> String {
    const LONGEST: usize = 60;
    let parts: Vec<&str> = path.iter().filter_map(|part| part.to_str()).collect();
    let repository = parts.iter().rev().find_map(|part| part.strip_prefix("models--"));
    let folder = || parts.iter().rev().nth(1).copied();
    let name = repository.and_then(|name| name.rsplit("--").next()).or_else(folder).unwrap_or("model");
    let harmless = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    let name: String = name.trim_start_matches('.').chars().take(LONGEST).map(harmless).collect();
    if name.is_empty() { "model".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_called_what_people_call_the_model() {
        let cases = [
            ("/a/Llama-3.2-1B/model.safetensors", "Llama-3.2-1B"),
            ("/hub/models--meta-llama--Llama-3.2-1B/snapshots/4e20/model-00001-of-00002.safetensors", "Llama-3.2-1B"),
            ("model.safetensors", "model"),
            ("../model.safetensors", "model"),
            ("/a/../model.safetensors", "model"),
            ("/a/.hidden/model.safetensors", "hidden"),
            ("/a/two words\u{1b}/model.safetensors", "two_words_"),
            ("<random>/llama-3-8b_4/weights", "llama-3-8b_4"),
        ];
        for (path, expected) in cases {
            assert_eq!(short_name(Path::new(path)), expected, "{path}");
        }
        assert_eq!(short_name(&Path::new(&"x".repeat(200)).join("model.safetensors")).len(), 60);
    }
}
