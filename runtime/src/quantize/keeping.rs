//! The end of keeping a packed model, on a thread of its own: the file, written and in use, is brought to the disk and
//! given its name. The first token does not wait for the disk.
//!
//! Until the file has its name it counts for nothing, and its lock is held. A process that is ended before leaves what
//! the next one removes.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};

use crate::error::{Error, Result};

/// A packed model that is being kept. Dropping it waits for the end.
#[derive(Debug)]
pub(crate) struct Keeping {
    path: PathBuf,
    thread: Mutex<Option<JoinHandle<()>>>,
    failure: Arc<OnceLock<Failure>>,
}

/// Why a model is not kept.
#[derive(Debug)]
enum Failure {
    /// The disk did not take the bytes. The system may forget those that it still has.
    Lost(io::Error),
    /// The file did not get its name.
    Unnamed(io::Error),
}

impl Keeping {
    /// Brings `file`, which is written and called `temporary`, to the disk and calls it `path`. `lock` is held until
    /// then.
    ///
    /// # Errors
    /// [`Error::Io`] if the system gives no thread.
    pub fn start(file: File, temporary: PathBuf, path: &Path, lock: File) -> Result<Keeping> {
        let failure = Arc::new(OnceLock::new());
        let (failed, name) = (Arc::clone(&failure), path.to_owned());
        let keep = move || {
            if let Err(failure) = keep(&file, &temporary, &name) {
                // If it cannot be removed either, the next process will try.
                let _ = fs::remove_file(&temporary);
                let _ = failed.set(failure);
            }
            drop(lock);
        };
        let thread = thread::Builder::new().name("keep".to_owned()).spawn(keep);
        let thread = thread.map_err(|error| Error::io(path, error))?;
        Ok(Keeping { path: path.to_owned(), thread: Mutex::new(Some(thread)), failure })
    }

    /// Whether the file has no name yet and may still get it.
    pub fn is_under_way(&self) -> bool {
        self.thread().as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// [`Error::Io`] if the model is not kept.
    pub fn wait(&self) -> Result<()> {
        if let Some(thread) = self.thread().take() {
            // It has no panic to pass on.
            let _ = thread.join();
        }
        match self.failure.get() {
            None => Ok(()),
            Some(Failure::Lost(error) | Failure::Unnamed(error)) => Err(self.error(error, "")),
        }
    }

    /// # Errors
    /// [`Error::Io`] once the bytes of the file may be lost.
    pub fn check(&self) -> Result<()> {
        match self.failure.get() {
            Some(Failure::Lost(error)) => Err(self.error(error, "; the model must be loaded again")),
            Some(Failure::Unnamed(_)) | None => Ok(()),
        }
    }

    fn thread(&self) -> std::sync::MutexGuard<'_, Option<JoinHandle<()>>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, error: &io::Error, consequence: &str) -> Error {
        let problem = format!("the quantized weights are not kept: {error}{consequence}");
        Error::io(&self.path, io::Error::new(error.kind(), problem))
    }
}

fn keep(file: &File, temporary: &Path, path: &Path) -> Result<(), Failure> {
    file.sync_all().map_err(Failure::Lost)?;
    fs::rename(temporary, path).map_err(Failure::Unnamed)?;
    #[cfg(unix)]
    if let Some(folder) = path.parent() {
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(Failure::Unnamed)?;
    }
    Ok(())
}

impl Drop for Keeping {
    fn drop(&mut self) {
        // Who wants to know how it ends has waited.
        let _ = self.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that is written, and its lock, in a folder.
    fn written(folder: &Path) -> (File, PathBuf, File) {
        let temporary = folder.join(".name.tmp");
        fs::write(&temporary, "packed").unwrap();
        let lock = File::create(folder.join(".name.lock")).unwrap();
        lock.lock().unwrap();
        (File::open(&temporary).unwrap(), temporary, lock)
    }

    #[test]
    fn the_lock_is_held_until_the_file_has_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let (file, temporary, lock) = written(folder.path());
        let path = folder.path().join("name");
        let keeping = Keeping::start(file, temporary.clone(), &path, lock).unwrap();
        File::open(folder.path().join(".name.lock")).unwrap().lock().unwrap();
        assert!(path.exists() && !temporary.exists(), "the lock was free before the file had its name");
        assert!(keeping.check().is_ok() && keeping.wait().is_ok() && !keeping.is_under_way());
    }

    #[test]
    fn weights_without_a_name_can_be_used_and_lost_ones_cannot() {
        let folder = tempfile::tempdir().unwrap();
        let occupied = folder.path().join("name");
        fs::create_dir(&occupied).unwrap();
        let (file, temporary, lock) = written(folder.path());
        let keeping = Keeping::start(file, temporary.clone(), &occupied, lock).unwrap();
        assert!(keeping.wait().unwrap_err().to_string().contains("are not kept"));
        assert!(keeping.check().is_ok() && !temporary.exists());
        if cfg!(target_os = "linux") {
            // A file that cannot be brought to a disk.
            let (_, temporary, lock) = written(folder.path());
            let broken = File::open("/proc/self/status").unwrap();
            let keeping = Keeping::start(broken, temporary, &folder.path().join("other"), lock).unwrap();
            assert!(keeping.wait().is_err());
            assert!(keeping.check().unwrap_err().to_string().contains("must be loaded again"));
        }
    }
}
