//! `infer quantize`, and the folders that it writes.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{json, run};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/models").join(name)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path that is text")
}

/// The logits that a command line gives, as the bytes of their file.
fn logits(folder: &Path, args: &[&str]) -> Vec<u8> {
    let out = folder.join("logits.safetensors");
    let run = run(&[&["logits", "--tokens", "1,2,3", "--out", text(&out)], args].concat(), b"");
    assert_eq!(run.code, Some(0), "{args:?}: {}", run.stderr);
    fs::read(out).expect("logits")
}

#[test]
fn a_quantized_folder_is_a_model_that_gives_the_same_bits_and_needs_no_flag() {
    let place = tempfile::tempdir().expect("a folder");
    for model in ["llama-defaults", "mixtral-top2", "phi3-window", "gpt2", "persimmon", "gemma3", "opt-350m"] {
        for flags in [&["--q4"][..], &["--q8"], &["--q4", "--override", "*=q8"], &["--override", "*.0.*=q4"]] {
            let source = golden(model);
            let out = place.path().join(format!("{model}{}", flags.join("").replace('*', "x")));
            let quantized = run(&[&["quantize", "--model", text(&source), "-o", text(&out)], flags].concat(), b"");
            assert_eq!(quantized.code, Some(0), "{model} {flags:?}: {}", quantized.stderr);
            assert_eq!((quantized.stdout.as_str(), quantized.stderr.lines().count()), ("", 1), "{model} {flags:?}");
            let expected = logits(place.path(), &[&["--no-cache", "--model", text(&source)], flags].concat());
            let found = logits(place.path(), &["--model", text(&out)]);
            assert!(found == expected, "{model} {flags:?}: logits differ");
            let shown = json(&["show", "--json", "--model", text(&out)], b"");
            assert!(shown["packed"].is_string(), "{model} {flags:?}: {shown}");
            assert_eq!(shown["unused_tensors"].as_array().map(Vec::len), Some(0), "{model} {flags:?}");
        }
    }
}

#[test]
fn the_demo_model_keeps_its_tokenizer_and_its_settings() {
    let place = tempfile::tempdir().expect("a folder");
    let out = place.path().join("demo");
    let quantized = run(&["quantize", "--q8", "-o", text(&out)], b"");
    assert_eq!(quantized.code, Some(0), "{}", quantized.stderr);
    let arguments = ["--temperature", "0", "-n", "20", "-p", "Once upon a time"];
    let expected = run(&[&["--q8"][..], &arguments].concat(), b"");
    let found = run(&[&["--model", text(&out)][..], &arguments].concat(), b"");
    assert_eq!((found.code, found.stdout), (Some(0), expected.stdout), "{}", found.stderr);
    let shown = run(&["show", "--model", text(&out)], b"");
    assert!(shown.stdout.contains("no flag is needed"), "{}", shown.stdout);
}

#[test]
fn folders_that_hold_something_are_replaced_by_force_alone_and_whole() {
    let place = tempfile::tempdir().expect("a folder");
    let (source, out) = (golden("llama-defaults"), place.path().join("out"));
    let quantize =
        |more: &[&str]| run(&[&["quantize", "--q4", "--model", text(&source), "-o", text(&out)], more].concat(), b"");
    fs::create_dir(&out).expect("an empty folder");
    assert_eq!(quantize(&[]).code, Some(0), "an empty folder is as good as none");
    fs::write(out.join("notes.txt"), "mine").expect("a file");
    let refused = quantize(&[]);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("--force") && out.join("notes.txt").exists(), "{}", refused.stderr);
    assert_eq!(quantize(&["--force"]).code, Some(0));
    assert!(!out.join("notes.txt").exists(), "files of the old folder are left");
    let left: Vec<_> = fs::read_dir(place.path()).expect("the folder").collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn wrong_use_of_quantize_is_one_line_and_leaves_nothing() {
    let place = tempfile::tempdir().expect("a folder");
    let (source, packed) = (golden("llama-defaults"), place.path().join("packed"));
    assert_eq!(run(&["quantize", "--q4", "--model", text(&source), "-o", text(&packed)], b"").code, Some(0));
    let file = place.path().join("file");
    fs::write(&file, "").expect("a file");
    let (out, inside, missing) = (place.path().join("out"), file.join("out"), place.path().join("a/b"));
    let cases: [(&[&str], u8, &str); 10] = [
        (&["quantize", "-o", text(&out)], 2, "--q4, --q8 or --override"),
        (&["quantize", "--q4", "-o", text(&file)], 2, "expected a folder"),
        (&["quantize", "--q4", "-o", text(&inside)], 2, "expected a folder"),
        (&["quantize", "--q4", "-o", text(&missing)], 2, "does not exist"),
        (&["quantize", "--q4", "--model", text(&packed), "-o", text(&packed), "--force"], 2, "another folder"),
        (&["quantize", "--q4", "--model", text(&packed), "-o", text(&out)], 2, "not packed yet"),
        (&["quantize", "--q4", "--model", text(&missing), "-o", text(&out)], 3, "no such file"),
        (&["show", "--q8", "--model", text(&packed)], 2, "packed already"),
        (&["show", "--override", "*=q8", "--model", text(&packed)], 2, "packed already"),
        (&["quantize", "--q4", "--override", "nothing*=q8", "-o", text(&out)], 2, "near: "),
    ];
    for (args, code, expected) in cases {
        let run = run(args, b"");
        assert_eq!(run.code, Some(i32::from(code)), "{args:?}: {}", run.stderr);
        assert!(run.stderr.contains(expected) && run.stderr.lines().count() == 1, "{args:?}: {}", run.stderr);
    }
    for (args, expected) in
        [(&["--override", "*=q5"][..], "q8, q4 or stored"), (&["--override", "x"], "q8, q4 or stored")]
    {
        let run = run(&[&["show"], args].concat(), b"");
        assert!(run.code == Some(2) && run.stderr.contains(expected), "{args:?}: {}", run.stderr);
    }
    let mut left: Vec<_> =
        fs::read_dir(place.path()).expect("the folder").map(|entry| entry.expect("one").file_name()).collect();
    left.sort();
    assert_eq!(left, ["file", "packed"], "something unfinished is left");
    assert_eq!(
        run(&["show", "--q4", "--model", text(&packed)], b"").code,
        Some(0),
        "the flag it was made with is fine"
    );
}

#[test]
fn damaged_packed_folders_are_refused_by_name() {
    let place = tempfile::tempdir().expect("a folder");
    let out = place.path().join("out");
    assert_eq!(
        run(&["quantize", "--q4", "--model", text(&golden("llama-defaults")), "-o", text(&out)], b"").code,
        Some(0)
    );
    let path = out.join("model.safetensors");
    let good = fs::read(&path).expect("weights");
    let header_len = good.first_chunk::<8>().map_or(0, |length| u64::from_le_bytes(*length)) as usize;
    let header = std::str::from_utf8(&good[8..8 + header_len]).expect("a header");
    let with_header = |header: String| {
        assert_eq!(header.len(), header_len, "a header of the same length");
        [&good[..8], header.as_bytes(), &good[8 + header_len..]].concat()
    };
    let version = infer_kernels::quant::LAYOUT_VERSION.to_string();
    let other_version = format!(r#""layout_version":"{}""#, "9".repeat(version.len()));
    let cases = [
        ("truncated", good[..good.len() - 1].to_vec(), "truncated"),
        (
            "another version",
            with_header(header.replace(&format!(r#""layout_version":"{version}""#), &other_version)),
            "layout version",
        ),
        ("a matrix renamed", with_header(header.replacen("down_proj", "down_porj", 1)), "checksum"),
        ("another format", with_header(header.replacen("q4", "q8", 1)), "checksum"),
    ];
    for (what, bytes, expected) in cases {
        fs::write(&path, bytes).expect("damaged weights");
        let run = run(&["--model", text(&out), "--raw", "-p", "x"], b"");
        assert_eq!(run.code, Some(3), "{what}: {}", run.stderr);
        assert!(run.stderr.contains(expected) && run.stderr.contains("model.safetensors"), "{what}: {}", run.stderr);
    }
}
