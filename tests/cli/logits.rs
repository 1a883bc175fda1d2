//! `infer logits`: the file it writes.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};

use super::*;

fn values(tensor: &safetensors::tensor::TensorView<'_>) -> Vec<f32> {
    tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn write_logits(out: &Path, args: &[&str]) -> Vec<u8> {
    let run = run(&[&["logits", "--out", text(out)], args].concat(), b"");
    assert_eq!((run.code, run.stdout.as_str()), (Some(0), ""), "{args:?}: {}", run.stderr);
    std::fs::read(out).expect("the file was written")
}

fn largest(row: &[f32]) -> i64 {
    let mut best = 0;
    for (id, logit) in row.iter().enumerate() {
        if *logit > row[best] {
            best = id;
        }
    }
    best as i64
}

#[test]
fn prompt_and_decoded_logits_fit_together() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("a.safetensors");
    let bytes = write_logits(&out, &["--tokens", "0,2,318,262", "--decode", "3"]);
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let logits = file.tensor("logits").expect("logits");
    let tokens = file.tensor("tokens").expect("tokens");
    let steps = file.tensor("step_logits").expect("step_logits");
    assert_eq!((logits.dtype(), logits.shape()), (Dtype::F32, &[4, 4096][..]));
    assert_eq!((tokens.dtype(), tokens.shape()), (Dtype::I64, &[3][..]));
    assert_eq!((steps.dtype(), steps.shape()), (Dtype::F32, &[3, 4096][..]));
    let (logits, steps) = (values(&logits), values(&steps));
    assert_eq!(logits[3 * 4096..], steps[..4096], "step 0 is the prompt's last row");
    let tokens: Vec<i64> =
        tokens.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().expect("8 bytes"))).collect();
    for (step, token) in tokens.iter().enumerate() {
        assert_eq!(*token, largest(&steps[step * 4096..][..4096]), "step {step} takes the likeliest token");
    }
    // The decoded tokens as a part of the prompt give the same rows.
    let prompt = format!("0,2,318,262,{},{}", tokens[0], tokens[1]);
    let bytes = write_logits(&out, &["--tokens", &prompt]);
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    assert_eq!(file.names(), ["logits"], "no decoding, no decoded tensors");
    let all = values(&file.tensor("logits").expect("logits"));
    let difference = all[4 * 4096..].iter().zip(&steps[4096..]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(difference < 1e-4, "token by token differs from the batch by {difference}");
    let left = std::fs::read_dir(folder.path()).expect("the folder").count();
    assert_eq!(left, 1, "no temporary file stays");
}

#[test]
fn a_prompt_that_the_model_cannot_take_is_wrong_use_and_leaves_no_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("a.safetensors");
    let long = vec!["5"; 513].join(",");
    let cases: &[(&[&str], &[&str])] = &[
        (&["--tokens", "4096"], &["4096", "vocabulary"]),
        (&["--tokens", &long], &["513", "512"]),
        (&["--tokens", "1,2,3", "--ctx", "2"], &["3", "2"]),
    ];
    for (args, words) in cases {
        assert_fails(&[&["logits", "--out", text(&out)], *args].concat(), b"", 2, words);
        assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 0, "{args:?} leaves no file");
    }
}

#[test]
fn decoding_goes_on_beyond_the_context_of_a_rotary_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let prompt = vec!["5"; 511].join(",");
    let bytes = write_logits(&folder.path().join("a"), &["--tokens", &prompt, "--decode", "4"]);
    let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    assert_eq!(file.tensor("tokens").expect("tokens").shape(), [4]);
}

#[test]
fn logits_beyond_the_memory_are_refused_before_they_are_computed() {
    let args = ["logits", "--tokens", "7", "--decode", "10000", "--memory", "64M", "--out", "/dev/null"];
    assert_fails(&args, b"", 4, &["memory", "10001 tokens"]);
}

#[test]
fn a_folder_without_a_tokenizer_is_enough() {
    let folder = demo_files(&["config.json", "model.safetensors"]);
    let out = folder.path().join("a.safetensors");
    write_logits(&out, &["--model", text(folder.path()), "--tokens", "7"]);
    write_logits(
        &out,
        &["--model", text(&folder.path().join("model.safetensors")), "--tokens", "7", "--q4", "--no-cache"],
    );
}

#[test]
#[cfg(unix)]
fn an_output_that_is_no_regular_file_is_written_in_place() {
    let run = infer(&["logits", "--tokens", "7", "--out", "/dev/stdout"]).output().expect("the program ends");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    assert_eq!(SafeTensors::deserialize(&run.stdout).expect("a safetensors file").names(), ["logits"]);
    let folder = tempfile::tempdir().expect("a folder");
    let (target, link) = (folder.path().join("target"), folder.path().join("link"));
    std::fs::write(&target, "old").expect("a file");
    std::os::unix::fs::symlink(&target, &link).expect("a link");
    write_logits(&link, &["--tokens", "7"]);
    assert!(std::fs::symlink_metadata(&link).expect("the link").is_symlink(), "a link stays a link");
    SafeTensors::deserialize(&std::fs::read(&target).expect("the target")).expect("its target was written");
}

#[test]
fn an_output_may_have_the_longest_name_that_a_file_can_have() {
    let folder = tempfile::tempdir().expect("a folder");
    write_logits(&folder.path().join("o".repeat(255)), &["--tokens", "7"]);
    let longer = folder.path().join("o".repeat(256));
    assert_fails(&["logits", "--tokens", "7", "--out", text(&longer)], b"", 2, &["ooo", "too long"]);
}
