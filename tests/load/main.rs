//! Loading: which files are opened, what is refused and in which words, and the facts of each family.

mod bad_configs;
mod bad_files;
mod bad_headers;
mod bad_indexes;
mod golden_specs;
mod places;
mod published_configs;

use std::path::{Path, PathBuf};

use infer_runtime::Result;
use infer_runtime::load::{Checkpoint, ModelFiles};

/// Bytes of a safetensors file with this header and so many bytes of data.
fn safetensors(header: &str, n_data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + n_data, 0);
    bytes
}

/// A safetensors file with one f32 tensor of one value for each name.
fn file_of(names: &[&str]) -> Vec<u8> {
    let entry = |(i, name): (usize, &&str)| {
        format!(r#""{name}":{{"dtype":"F32","shape":[1],"data_offsets":[{},{}]}}"#, 4 * i, 4 * i + 4)
    };
    let entries: Vec<String> = names.iter().enumerate().map(entry).collect();
    safetensors(&format!("{{{}}}", entries.join(",")), 4 * names.len())
}

/// A folder with these files.
fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

/// The golden model of this name.
fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/models").join(name)
}

fn open(path: &Path) -> Result<Checkpoint> {
    Checkpoint::open(&ModelFiles::open(path)?)
}

/// Asserts that the error is one line that holds the words.
#[track_caller]
fn assert_refused<T>(found: Result<T>, words: &str, case: &str) {
    match found {
        Ok(_) => panic!("{case}: accepted, expected an error with {words:?}"),
        Err(error) => {
            let line = error.to_string();
            assert!(line.contains(words), "{case}: expected {words:?}, found {line:?}");
            assert!(!line.contains('\n') && line.len() < 600, "{case}: not one short line: {line:?}");
        }
    }
}
