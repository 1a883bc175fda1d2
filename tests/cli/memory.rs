//! The memory that the program takes, as the system counts it: the peak of resident pages, mapped files included.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::{infer, llama, text};

const MIB: u64 = 1 << 20;

/// Writes a Llama in f32 of 0.4 GB, whose weights are a hole in the file: zeros that take no room on the disk.
fn write_model(folder: &Path) -> u64 {
    let (tensors, config) = llama(1024, 4096, 6);
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in tensors {
        let start = end;
        end += 4 * shape.iter().product::<usize>() as u64;
        header.insert(name, serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, end] }));
    }
    let header = serde_json::Value::from(header).to_string();
    let mut file = File::create(folder.join("model.safetensors")).expect("a file");
    file.write_all(&(header.len() as u64).to_le_bytes()).expect("a length");
    file.write_all(header.as_bytes()).expect("a header");
    file.set_len(8 + header.len() as u64 + end).expect("a hole");
    fs::write(folder.join("config.json"), config.to_string()).expect("a config");
    end
}

/// Runs to the end; the most pages that were resident, in bytes.
fn peak(mut command: Command) -> u64 {
    let mut child = command.stderr(Stdio::null()).spawn().expect("the program starts");
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        // A process that has ended and is not waited for has no such line any more. The number never falls, so what is
        // missed is what the last millisecond added.
        let now = fs::read_to_string(&status).unwrap_or_default();
        let line = now.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        peak = peak.max(1024 * kib.unwrap_or(0));
        if let Some(status) = child.try_wait().expect("a status") {
            assert!(status.success(), "{status}");
            return peak;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn quantizing_and_decoding_hold_the_packed_weights_and_little_more() {
    let place = tempfile::tempdir().expect("a folder");
    let source = write_model(place.path());
    let out = place.path().join("logits.safetensors");
    // Each position takes a key and a value of 1,024 in each of 6 layers, in 16 bits.
    const CACHE: u64 = 128 * 2 * 1024 * 6 * 2;
    for (format, bits) in [("--q8", 8.5), ("--q4", 4.85)] {
        let packed = (source as f64 / 4.0 * bits / 8.0) as u64;
        let run = |more: &[&str]| {
            let args = ["logits", "--tokens", "1,2,3", "--compute", "auto", format, "--threads", "2"];
            let files = ["--model", text(place.path()), "--out", text(&out)];
            let mut command = infer(&[&args[..], &files, more].concat());
            command.env("XDG_CACHE_HOME", place.path());
            peak(command)
        };
        let cases = [
            ("quantizing in memory", packed + packed / 10 + 100 * MIB, run(&["--no-cache"])),
            ("quantizing for the cache", packed + packed / 10 + 100 * MIB, run(&[])),
            ("decoding from the cache", packed + CACHE + 150 * MIB, run(&["--decode", "32"])),
        ];
        for (what, most, found) in cases {
            println!("{format}, {what}: {} MiB, at most {}", found / MIB, most / MIB);
            assert!(most < source, "the source is not large enough for this test");
            assert!(found > packed / 2, "{format}, {what}: {found} bytes are not the whole");
            assert!(
                found <= most,
                "{format}, {what}: {} MiB were resident, at most {} MiB may be ({} MiB packed, {} MiB of source): look \
                 for pages of the source that are not let go, and for a second copy of the weights",
                found / MIB,
                most / MIB,
                packed / MIB,
                source / MIB
            );
        }
    }
}
