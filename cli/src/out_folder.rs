//! Folders that appear whole or not at all: written beside their place under another name, then renamed.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::exit::wrong_use;
use crate::interrupt::Interrupts;

/// A folder that is being written.
pub struct OutFolder<'a> {
    path: PathBuf,
    /// Where the files go until [`OutFolder::finish`].
    temporary: PathBuf,
    interrupts: &'a Interrupts,
}

impl<'a> OutFolder<'a> {
    /// Finds out whether `path` can be written, before work is spent on its contents. A folder that holds something is
    /// replaced only with `force`, and never one that holds the `source` of the work.
    pub fn create(
        path: &Path,
        force: bool,
        source: Option<&Path>,
        interrupts: &'a Interrupts,
    ) -> Result<OutFolder<'a>> {
        let shown = path.display();
        match fs::read_dir(path).map(|mut entries| entries.next().is_none()) {
            Ok(false) if !force => {
                return Err(wrong_use(format!(
                    "{shown}: expected an empty or new folder, found files (--force replaces them)"
                )));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                return Err(wrong_use(format!("{shown}: expected a folder to write, found something else")));
            }
            Err(error) => return Err(error).with_context(|| format!("cannot write {shown}")),
        }
        let holds = |inner: &Path| match (fs::canonicalize(path), fs::canonicalize(inner)) {
            (Ok(folder), Ok(inner)) => inner.starts_with(folder),
            _ => false,
        };
        if source.is_some_and(holds) || holds(Path::new(".")) {
            return Err(wrong_use(format!("{shown}: expected another folder than the model's or the current one")));
        }
        let Some(name) = path.file_name() else {
            return Err(wrong_use(format!("{shown:?}: expected the name of a folder to write")));
        };
        let temporary = hidden(path, name, "tmp");
        match fs::create_dir(&temporary) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Err(wrong_use(format!("{shown}: the folder that it would be in does not exist")));
            }
            made => made.with_context(|| format!("cannot write {shown}"))?,
        }
        interrupts.set_unfinished(Some(&temporary));
        Ok(OutFolder { path: path.to_owned(), temporary, interrupts })
    }

    /// Where the files are to be written.
    pub fn temporary(&self) -> &Path {
        &self.temporary
    }

    /// Puts the folder in its place.
    pub fn finish(self) -> Result<()> {
        self.replace().with_context(|| format!("cannot write {}", self.path.display()))
    }

    fn replace(&self) -> io::Result<()> {
        let old = hidden(&self.path, self.path.file_name().unwrap_or_default(), "old");
        // A folder can be renamed to the name of an empty one, but not of one that holds something.
        let is_replaced = fs::rename(&self.temporary, &self.path).is_err();
        if is_replaced {
            fs::rename(&self.path, &old)?;
            fs::rename(&self.temporary, &self.path)?;
        }
        self.interrupts.set_unfinished(None);
        if is_replaced { fs::remove_dir_all(&old) } else { Ok(()) }
    }
}

fn hidden(path: &Path, name: &std::ffi::OsStr, ending: &str) -> PathBuf {
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}.{ending}", std::process::id()));
    path.with_file_name(hidden)
}

impl Drop for OutFolder<'_> {
    fn drop(&mut self) {
        // After a rename there is nothing of this name.
        let _ = fs::remove_dir_all(&self.temporary);
        self.interrupts.set_unfinished(None);
    }
}
