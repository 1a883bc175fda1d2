//! Paths that are no model, and files that are not what their name says.

use std::fs;
use std::path::Path;

use infer_runtime::load::{Config, ModelFiles};

use crate::{assert_refused, file_of, folder, open};

#[test]
fn paths_without_weights_say_what_is_there() {
    assert_refused(open(Path::new("not/there")), "not/there: no such file or folder", "missing");
    let cases: [(&[&str], &str); 6] = [
        (&[], "holds no .safetensors file"),
        (&["config.json", "tokenizer.json"], "holds no .safetensors file"),
        (
            &["pytorch_model.bin"],
            "holds no .safetensors file but pytorch_model.bin; PyTorch files are not read, convert",
        ),
        (&["llama.Q4_0.gguf"], "holds no .safetensors file but llama.Q4_0.gguf; GGUF is not read"),
        (&["adapter_model.safetensors"], "holds no model but the adapter adapter_model.safetensors"),
        (&["consolidated.00.safetensors"], "holds no model but consolidated.00.safetensors"),
    ];
    for (names, words) in cases {
        let files: Vec<(&str, &[u8])> = names.iter().map(|name| (*name, b"x".as_slice())).collect();
        assert_refused(open(folder(&files).path()), words, words);
    }
}

#[test]
fn files_are_named_by_what_they_are_whatever_their_name() {
    let cases: [(&[u8], &str); 7] = [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n", "is a Git LFS pointer"),
        (b"<!doctype html>\n<html><head>", "is an HTML page"),
        (b"GGUF\x03\0\0\0\x23\x01\0\0\0\0\0\0", "is a GGUF file"),
        (b"PK\x03\x04\0\0\x08\x08\0\0\0\0", "is a zip archive, as PyTorch writes"),
        (b"\x80\x02}q\0X\x05\0\0\0model", "is a Python pickle, as PyTorch writes"),
        (b"{\"model_type\": \"llama\"}", "truncated or not safetensors"),
    ];
    for (bytes, words) in cases {
        for name in ["model.safetensors", "pytorch_model.bin", "weights"] {
            let folder = folder(&[(name, bytes)]);
            assert_refused(open(&folder.path().join(name)), words, name);
        }
        let folder = folder(&[("model.safetensors", bytes)]);
        assert_refused(open(folder.path()), words, "in a folder");
    }
}

#[test]
fn only_regular_files_are_opened() {
    let model = file_of(&["a"]);
    let folder = folder(&[("other.safetensors", &model)]);
    let weights = folder.path().join("model.safetensors");
    fs::create_dir(&weights).unwrap();
    assert_refused(open(folder.path()), "model.safetensors: expected a regular file, found a folder", "a folder");
    fs::create_dir(folder.path().join("config.json")).unwrap();
    let config = ModelFiles::open(folder.path()).and_then(|files| Config::read(&files));
    assert_refused(config, "config.json: expected a regular file, found a folder", "config.json a folder");
    fs::remove_dir(&weights).unwrap();
    // Opening a pipe would wait for its writer for ever.
    let made = std::process::Command::new("mkfifo").arg(&weights).status();
    if made.is_ok_and(|status| status.success()) {
        let words = "model.safetensors: expected a regular file, found a pipe, socket or device";
        assert_refused(open(folder.path()), words, "a pipe in a folder");
        assert_refused(open(&weights), words, "a pipe");
    }
    for device in ["/dev/zero", "/dev/null"] {
        if Path::new(device).exists() {
            assert_refused(open(Path::new(device)), "found a pipe, socket or device", device);
        }
    }
}

#[cfg(unix)]
#[test]
fn files_without_permission_say_so() {
    use std::os::unix::fs::PermissionsExt;
    let folder = folder(&[("model.safetensors", &file_of(&["a"]))]);
    let path = folder.path().join("model.safetensors");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    // Some users may read everything.
    if fs::File::open(&path).is_err() {
        assert_refused(open(folder.path()), "model.safetensors: permission denied", "no permission");
    }
}

#[test]
fn config_json_must_be_a_small_json_object() {
    let large = vec![b' '; 300 << 10];
    let cases: [(Option<&[u8]>, &str); 8] = [
        (None, "config.json: no such file; it lies beside the weights"),
        (Some(b""), "config.json: is empty"),
        (Some(b"{\"a\": "), "is not valid JSON: EOF while parsing"),
        (Some(b"[1, 2]"), "expected a JSON object, found [1,2]"),
        (Some(b"\"text\""), "expected a JSON object, found \"text\""),
        (Some(b"{\"a\": \"\xff\"}"), "is not UTF-8 at byte 7"),
        (Some(b"version https://git-lfs.github.com/spec/v1"), "is a Git LFS pointer"),
        (Some(&large), "expected at most 262144 bytes in a file of this kind, found 307200"),
    ];
    for (config, words) in cases {
        let files: Vec<(&str, &[u8])> = config.map(|config| ("config.json", config)).into_iter().collect();
        let folder = folder(&files);
        assert_refused(Config::read(&ModelFiles::open(folder.path()).unwrap()), words, words);
    }
}
