//! Files that appear whole or not at all: written beside their place under another name, then renamed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::exit::wrong_use;
use crate::interrupt::Interrupts;

/// A file that is being written.
pub struct OutFile<'a> {
    path: PathBuf,
    /// Where the bytes go until [`OutFile::finish`]; `None` for a pipe or a device, which is written in place.
    temporary: Option<PathBuf>,
    file: Option<BufWriter<File>>,
    interrupts: &'a Interrupts,
}

impl<'a> OutFile<'a> {
    /// Finds out whether `path` can be written, before work is spent on its contents.
    pub fn create(path: &Path, interrupts: &'a Interrupts) -> Result<OutFile<'a>> {
        let mut out = OutFile { path: path.to_owned(), temporary: None, file: None, interrupts };
        match fs::metadata(path) {
            Ok(found) if found.is_dir() => {
                return Err(wrong_use(format!("{}: expected a file to write, found a folder", path.display())));
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidFilename => {
                return Err(wrong_use(format!("{}: {error}", path.display())));
            }
            // A link is followed and written in place, so that it stays a link. A pipe is opened when there is
            // something to write: opening waits for its reader.
            Ok(_) if fs::symlink_metadata(path).is_ok_and(|entry| !entry.is_file()) => return Ok(out),
            _ => {}
        }
        if path.file_name().is_none() {
            return Err(wrong_use(format!("{:?}: expected the name of a file to write", path.display().to_string())));
        }
        // Not made of the file's name, which may be as long as a name can be.
        let temporary = path.with_file_name(format!(".infer.{}.tmp", std::process::id()));
        let file = match File::create_new(&temporary) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Err(wrong_use(format!("{}: its folder does not exist", path.display())));
            }
            created => created.with_context(|| format!("cannot write {}", path.display()))?,
        };
        interrupts.set_unfinished(Some(&temporary));
        out.temporary = Some(temporary);
        out.file = Some(BufWriter::new(file));
        Ok(out)
    }

    /// Writes the contents and puts the file in its place.
    pub fn finish(mut self, contents: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
        self.write(contents).with_context(|| format!("cannot write {}", self.path.display()))
    }

    fn write(&mut self, contents: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        let mut file = match self.file.take() {
            Some(file) => file,
            None => BufWriter::new(OpenOptions::new().write(true).truncate(true).open(&self.path)?),
        };
        contents(&mut file)?;
        file.flush()?;
        if let Some(temporary) = &self.temporary {
            file.get_ref().sync_all()?;
            fs::rename(temporary, &self.path)?;
            self.temporary = None;
            self.interrupts.set_unfinished(None);
        }
        Ok(())
    }
}

impl Drop for OutFile<'_> {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            let _ = fs::remove_file(temporary);
            self.interrupts.set_unfinished(None);
        }
    }
}
