//! Which files hold the weights of what was named.

use std::fs;
use std::path::Path;

use infer_runtime::load::{Checkpoint, ModelFiles};

use crate::{assert_refused, file_of, folder, open};

/// A folder whose files hold one tensor each, named as the file.
fn folder_of(names: &[&str]) -> tempfile::TempDir {
    let files: Vec<(&str, Vec<u8>)> = names.iter().map(|name| (*name, file_of(&[*name]))).collect();
    folder(&files.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect::<Vec<_>>())
}

fn index(names: &[&str]) -> String {
    let entries: Vec<String> = names.iter().map(|name| format!("\"{name}\":\"{name}\"")).collect();
    format!(r#"{{"weight_map":{{{}}}}}"#, entries.join(","))
}

#[track_caller]
fn assert_opens(path: &Path, expected: &[&str]) {
    let checkpoint = open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), expected, "{}", path.display());
}

#[test]
fn the_index_comes_before_one_file_before_a_set_before_the_only_file() {
    let (a, b) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    let folder = folder_of(&["other.safetensors", "consolidated.safetensors", "adapter_model.safetensors", "x.bin"]);
    let path = folder.path();
    assert_opens(path, &["other.safetensors"]);
    fs::write(path.join(a), file_of(&[a])).unwrap();
    assert_refused(open(path), "expected one model, found 2 .safetensors files", "half a set and another file");
    fs::write(path.join(b), file_of(&[b])).unwrap();
    assert_opens(path, &[a, b]);
    fs::write(path.join("model.safetensors"), file_of(&["model.safetensors"])).unwrap();
    assert_opens(path, &["model.safetensors"]);
    fs::write(path.join("model.safetensors.index.json"), index(&["other.safetensors"])).unwrap();
    assert_opens(path, &["other.safetensors"]);
    // A file that is named opens as it is, a shard opens its set.
    assert_opens(&path.join("consolidated.safetensors"), &["consolidated.safetensors"]);
    assert_opens(&path.join(b), &[a, b]);
    fs::write(path.join("model.safetensors.index.json"), index(&[a])).unwrap();
    assert_opens(&path.join(a), &[a]);
    assert_opens(&path.join(b), &[a, b]);
    assert_opens(&path.join("model.safetensors.index.json"), &[a]);
}

#[test]
fn sets_must_be_complete_and_one_model() {
    let cases: [(&[&str], &str); 4] = [
        (&["m-00001-of-00003.safetensors"], "expected 00003 shards, 2 missing: m-00002-of-00003.safetensors, m-00003"),
        (&["m-00002-of-99999.safetensors"], "99998 missing: m-00001-of-99999.safetensors, m-00003-of-99999"),
        (&["a.safetensors", "b.safetensors"], "found 2 .safetensors files (a.safetensors, b.safetensors); give the"),
        (&["a-1-of-1.safetensors", "b-1-of-1.safetensors"], "expected one model, found 2"),
    ];
    for (names, words) in cases {
        assert_refused(open(folder_of(names).path()), words, names[0]);
    }
    let half = folder_of(&["m-00001-of-00002.safetensors"]);
    assert_refused(open(&half.path().join("m-00001-of-00002.safetensors")), "1 missing", "a shard that is named");
    assert_opens(folder_of(&["odd-00000-of-00000.safetensors"]).path(), &["odd-00000-of-00000.safetensors"]);
}

#[cfg(unix)]
#[test]
fn in_the_cache_of_hugging_face_companions_lie_beside_the_link() {
    let root = tempfile::tempdir().unwrap();
    let (blobs, snapshot) = (root.path().join("blobs"), root.path().join("snapshots/abc"));
    fs::create_dir_all(&blobs).unwrap();
    fs::create_dir_all(&snapshot).unwrap();
    let shard = "model-00001-of-00001.safetensors";
    let index = index(&[shard]);
    let files = [
        ("config.json", b"{\"a\":1}".to_vec()),
        (shard, file_of(&[shard])),
        ("model.safetensors.index.json", index.into()),
    ];
    for (i, (name, bytes)) in files.iter().enumerate() {
        fs::write(blobs.join(i.to_string()), bytes).unwrap();
        std::os::unix::fs::symlink(format!("../../blobs/{i}"), snapshot.join(name)).unwrap();
    }
    assert_opens(&snapshot, &[shard]);
    assert_opens(&snapshot.join(shard), &[shard]);
    let files = ModelFiles::open(&snapshot.join(shard)).unwrap();
    let config = files.read("config.json", 100).unwrap().expect("config.json lies beside the link");
    assert_eq!(config.path, snapshot.join("config.json"));
    fs::remove_file(blobs.join("1")).unwrap();
    assert_refused(open(&snapshot), "is a link to a file that does not exist", "a blob that is gone");
}

#[test]
fn files_in_memory_are_found_as_in_a_folder() {
    let (a, b) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    let bytes = |name: &str| (name.to_owned(), std::borrow::Cow::Owned(file_of(&[name])));
    let files = ModelFiles::from_bytes(vec![bytes(b), bytes(a), bytes("adapter_x.safetensors"), bytes("sub/c")]);
    assert_eq!(Checkpoint::open(&files).unwrap().names().collect::<Vec<_>>(), [a, b]);
    assert_eq!(files.names("sub").unwrap(), ["c"]);
    assert!(files.read("config.json", 10).unwrap().is_none());
    assert_refused(files.read(a, 10), "expected at most 10 bytes", "a limit");
    let none = ModelFiles::from_bytes(Vec::new());
    assert_refused(Checkpoint::open(&none), "holds no .safetensors file", "no files");
}
