//! Where the files of a model come from: a folder, memory, or a shape that is filled with random weights.
//!
//! Files of the Hugging Face cache are links to `../../blobs/…`, so companions are looked up beside the link and no
//! path is resolved. Everything that is opened must be a regular file (links followed), which is asked before opening:
//! a named pipe would block.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Result};
use crate::load::{Bytes, Shape, content, json};

/// The files of one model.
#[derive(Debug)]
pub struct ModelFiles {
    place: Place,
    /// The file that was named, if it was not a folder.
    named: Option<String>,
    /// What the weights look like if they are made up.
    shape: Option<Shape>,
}

#[derive(Debug)]
enum Place {
    Folder(PathBuf),
    Memory(BTreeMap<String, Bytes>),
}

/// A file that was read into memory, and its path for messages.
#[derive(Debug, Clone)]
pub struct ModelFile {
    /// Where it came from.
    pub path: PathBuf,
    /// Its content.
    pub bytes: Bytes,
}

impl ModelFiles {
    /// A folder, or one file whose companions lie beside it.
    ///
    /// # Errors
    /// [`Error::File`] if there is nothing at `path`, or neither a folder nor a regular file.
    pub fn open(path: &Path) -> Result<ModelFiles> {
        let metadata = fs::metadata(path).map_err(|error| unreadable(path, &error))?;
        if metadata.is_dir() {
            return Ok(ModelFiles { place: Place::Folder(path.to_owned()), named: None, shape: None });
        }
        must_be_regular(path, &metadata)?;
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| Error::file(path, "has a name that is not UTF-8"))?;
        Ok(ModelFiles { place: Place::Folder(folder), named: Some(name.to_owned()), shape: None })
    }

    /// Files in memory, each with the name that it would have in a folder.
    pub fn from_bytes(files: Vec<(String, Cow<'static, [u8]>)>) -> ModelFiles {
        let files = files.into_iter().map(|(name, bytes)| match bytes {
            Cow::Borrowed(bytes) => (name, Bytes::from_static(bytes)),
            Cow::Owned(bytes) => (name, Bytes::from_vec(bytes)),
        });
        ModelFiles { place: Place::Memory(files.collect()), named: None, shape: None }
    }

    /// A config.json alone; the weights are made when they are asked for.
    pub(crate) fn of_shape(shape: &Shape) -> ModelFiles {
        let files = vec![("config.json".to_owned(), shape.config().into_bytes().into())];
        ModelFiles { shape: Some(shape.clone()), ..ModelFiles::from_bytes(files) }
    }

    /// The shape that these files stand for, if the weights are made up.
    pub(crate) fn shape(&self) -> Option<&Shape> {
        self.shape.as_ref()
    }

    /// The name of the file that was opened, if it was not a folder.
    pub(crate) fn named(&self) -> Option<&str> {
        self.named.as_deref()
    }

    /// The folder, for messages. For files in memory a name that says so.
    pub fn folder(&self) -> &Path {
        match &self.place {
            Place::Folder(folder) if folder.as_os_str().is_empty() => Path::new("."),
            Place::Folder(folder) => folder,
            Place::Memory(_) => Path::new("<memory>"),
        }
    }

    /// Whether they are files of a disk.
    pub(crate) fn are_in_folder(&self) -> bool {
        matches!(self.place, Place::Folder(_))
    }

    /// The path of a file, whether it exists or not.
    pub fn path(&self, name: &str) -> PathBuf {
        match &self.place {
            Place::Folder(folder) => folder.join(name),
            Place::Memory(_) => PathBuf::from(name),
        }
    }

    /// Whether there is something (a file, a folder, a broken link) of this name.
    pub(crate) fn contains(&self, name: &str) -> bool {
        match &self.place {
            Place::Folder(folder) => fs::symlink_metadata(folder.join(name)).is_ok(),
            Place::Memory(files) => files.contains_key(name),
        }
    }

    /// The names in `subfolder` (`""` is the model's own), sorted; none if it does not exist.
    ///
    /// # Errors
    /// [`Error::File`] if the folder cannot be read.
    pub fn names(&self, subfolder: &str) -> Result<Vec<String>> {
        match &self.place {
            Place::Folder(_) => {
                let path = if subfolder.is_empty() { self.folder().to_owned() } else { self.path(subfolder) };
                let entries = match fs::read_dir(&path) {
                    Ok(entries) => entries,
                    Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                        return Ok(Vec::new());
                    }
                    Err(error) => return Err(unreadable(&path, &error)),
                };
                let mut names = Vec::new();
                for entry in entries {
                    let entry = entry.map_err(|error| unreadable(&path, &error))?;
                    names.extend(entry.file_name().into_string().ok());
                }
                names.sort();
                Ok(names)
            }
            Place::Memory(files) => {
                let in_folder = |name: &str| {
                    let name = match subfolder {
                        "" => name,
                        _ => name.strip_prefix(subfolder)?.strip_prefix('/')?,
                    };
                    (!name.contains('/')).then(|| name.to_owned())
                };
                Ok(files.keys().filter_map(|name| in_folder(name)).collect())
            }
        }
    }

    /// Reads a file of at most `limit` bytes; none if there is no such file.
    ///
    /// # Errors
    /// [`Error::File`] if it is not a regular file, is larger, or cannot be read.
    pub fn read(&self, name: &str, limit: u64) -> Result<Option<ModelFile>> {
        let path = self.path(name);
        let too_large = |found: u64| {
            Error::file(&path, format!("expected at most {limit} bytes in a file of this kind, found {found}"))
        };
        let bytes = match &self.place {
            Place::Memory(files) => match files.get(name) {
                Some(bytes) if bytes.len() as u64 > limit => return Err(too_large(bytes.len() as u64)),
                Some(bytes) => bytes.clone(),
                None => return Ok(None),
            },
            Place::Folder(_) => {
                if !self.contains(name) {
                    return Ok(None);
                }
                let (file, len) = open_regular(&path)?;
                if len > limit {
                    return Err(too_large(len));
                }
                let mut bytes = Vec::new();
                // One byte more than allowed, in case that the file grows meanwhile.
                let read = file.take(limit.saturating_add(1)).read_to_end(&mut bytes);
                read.map_err(|error| unreadable(&path, &error))?;
                if bytes.len() as u64 > limit {
                    return Err(too_large(bytes.len() as u64));
                }
                Bytes::from_vec(bytes)
            }
        };
        Ok(Some(ModelFile { path, bytes }))
    }

    /// Reads and parses a JSON file of at most `limit` bytes; none if there is no such file.
    ///
    /// # Errors
    /// Those of [`ModelFiles::read`], and [`Error::File`] if it is not JSON.
    pub fn read_json(&self, name: &str, limit: u64) -> Result<Option<Value>> {
        match self.read(name, limit)? {
            Some(file) => json::parse(&file.path, &file.bytes).map(Some),
            None => Ok(None),
        }
    }

    /// Maps a file read-only.
    ///
    /// # Errors
    /// [`Error::File`] if it is missing, empty, not a regular file, or by its content something else than its
    /// name says.
    pub(crate) fn map(&self, name: &str) -> Result<Bytes> {
        let path = self.path(name);
        let bytes = match &self.place {
            Place::Memory(files) => {
                files.get(name).cloned().ok_or_else(|| Error::file(&path, "is not among the files given"))?
            }
            Place::Folder(_) => {
                let (file, len) = open_regular(&path)?;
                if len == 0 { Bytes::from_static(&[]) } else { map(&path, &file)? }
            }
        };
        if bytes.is_empty() {
            return Err(Error::file(&path, "is empty"));
        }
        match content::foreign(bytes.get(..content::SNIFFED_BYTES).unwrap_or(&bytes)) {
            Some(problem) => Err(Error::file(&path, problem)),
            None => Ok(bytes),
        }
    }
}

/// Opens a regular file, and says how long it is.
fn open_regular(path: &Path) -> Result<(File, u64)> {
    let metadata = fs::metadata(path).map_err(|error| unreadable(path, &error))?;
    must_be_regular(path, &metadata)?;
    let file = File::open(path).map_err(|error| unreadable(path, &error))?;
    // Asked again: the name may have been given to something else since.
    let metadata = file.metadata().map_err(|error| unreadable(path, &error))?;
    must_be_regular(path, &metadata)?;
    Ok((file, metadata.len()))
}

/// Maps a regular file that is not empty.
fn map(path: &Path, file: &File) -> Result<Bytes> {
    // SAFETY: the map is read-only and private to this process, and `open_regular` has checked that it is of a regular
    // file. What cannot be checked is that nobody shrinks the file while it is mapped: reading beyond its end
    // then ends the process by a signal. That is documented where models are loaded; replacing the file by a rename,
    // as package tools and this crate do, leaves the mapped one as it is.
    let map = unsafe { memmap2::Mmap::map(file) }.map_err(|error| match error.kind() {
        ErrorKind::OutOfMemory => Error::Memory(format!("{} could not be mapped: {error}", path.display())),
        _ => unreadable(path, &error),
    })?;
    // What is not in memory yet is then read in large pages, if the file system has them; advice that is not taken gives
    // small ones.
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    Ok(Bytes::mapped(map))
}

fn must_be_regular(path: &Path, metadata: &fs::Metadata) -> Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    let found = if metadata.is_dir() { "a folder" } else { "a pipe, socket or device" };
    Err(Error::file(path, format!("expected a regular file, found {found}")))
}

/// The system's refusal as a problem of the model's files.
fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    let is_link = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink());
    match error.kind() {
        ErrorKind::NotFound if is_link => Error::file(path, "is a link to a file that does not exist"),
        ErrorKind::NotFound | ErrorKind::NotADirectory => Error::file(path, "no such file or folder"),
        ErrorKind::PermissionDenied => Error::file(path, "permission denied"),
        _ => Error::file(path, format!("cannot be read: {error}")),
    }
}
