//! Files with random damage neither panic nor make the loader allocate what they only claim to have.
//!
//! The only test of its program, because it watches the memory of the whole process.

use std::borrow::Cow;
use std::path::Path;

use infer_runtime::load::{Checkpoint, Config, ModelFiles, check_tensors};
use infer_runtime::model::arch::spec_from;

/// SplitMix64 (Steele et al., 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// What damage writes: numbers at the edges, and pieces of JSON.
const PIECES: [&str; 24] = [
    "0",
    "-1",
    "1e999",
    "NaN",
    "1000000000000",
    "9223372036854775807",
    "18446744073709551615",
    "4294967296",
    "2147483647",
    "65536",
    "null",
    "true",
    "[]",
    "{}",
    "\"\"",
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    "\"",
    "\\",
    "\u{fffd}",
];

/// One to three changes: a byte, a piece inserted, a number replaced, a part cut out or doubled.
fn damage(random: &mut Random, bytes: &mut Vec<u8>, within: usize) {
    for _ in 0..=random.below(3) {
        let within = within.min(bytes.len()).max(1);
        let at = random.below(within).min(bytes.len());
        let piece = PIECES[random.below(PIECES.len())].bytes();
        let end = (at + random.below(24)).min(within).min(bytes.len());
        match random.below(5) {
            0 if at < bytes.len() => bytes[at] = random.next() as u8,
            1 => drop(bytes.splice(at..at, piece)),
            2 => {
                let digit = |i: &usize| bytes[*i].is_ascii_digit();
                let start = (at..within).find(digit).unwrap_or(at);
                let end = (start..within).find(|i| !digit(i)).unwrap_or(start).min(bytes.len());
                drop(bytes.splice(start..end, piece));
            }
            3 => drop(bytes.drain(at..end)),
            _ => {
                let part = bytes[at..end].to_vec();
                drop(bytes.splice(at..at, part));
            }
        }
    }
}

fn load(weights: &[(String, Vec<u8>)], index: Option<&[u8]>, config: &[u8]) -> infer_runtime::Result<()> {
    let own = |bytes: &[u8]| Cow::Owned(bytes.to_vec());
    let mut files: Vec<_> = weights.iter().map(|(name, bytes)| (name.clone(), own(bytes))).collect();
    files.push(("config.json".to_owned(), own(config)));
    files.extend(index.map(|index| ("model.safetensors.index.json".to_owned(), own(index))));
    let files = ModelFiles::from_bytes(files);
    let checkpoint = Checkpoint::open(&files)?;
    check_tensors(&spec_from(&Config::read(&files)?, &checkpoint)?, &checkpoint).map(drop)
}

/// The most address space that this process has had, in bytes; none where the system does not say.
fn most_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:"))?;
    Some(1024 * line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?)
}

#[test]
fn damaged_files_neither_panic_nor_allocate_what_they_claim() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/models");
    let read = |path: &str| std::fs::read(golden.join(path)).unwrap();
    let models =
        ["llama-rope-llama3", "mixtral-top3", "mixtral-fused", "phi3-longrope-short", "gemma3", "gpt2", "opt-350m"];
    let mut random = Random(7);
    let (mut refused, mut accepted) = (0, 0);
    let mut largest = 0;
    let mut count = |result: infer_runtime::Result<()>| match result {
        Ok(()) => accepted += 1,
        Err(error) => {
            let line = error.to_string();
            assert!(!line.contains('\n') && line.len() < 1000, "not one short line: {line:?}");
            refused += 1;
        }
    };
    let mut before = None;
    for model in models {
        let weights = read(&format!("{model}/model.safetensors"));
        let config = read(&format!("{model}/config.json"));
        largest = largest.max(weights.len());
        let header = 8 + u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
        load(&[("model.safetensors".to_owned(), weights.clone())], None, &config).unwrap();
        before = before.or_else(most_memory);
        for round in 0..600 {
            let (mut weights, mut config) = (weights.clone(), config.clone());
            match round % 3 {
                0 => damage(&mut random, &mut weights, header),
                _ => damage(&mut random, &mut config, usize::MAX),
            }
            count(load(&[("model.safetensors".to_owned(), weights)], None, &config));
        }
    }
    let folder = golden.join("llama-sharded");
    let names = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let shards: Vec<(String, Vec<u8>)> = names
        .filter(|name| name.starts_with("model-"))
        .map(|name| (name.clone(), std::fs::read(folder.join(&name)).unwrap()))
        .collect();
    let config = read("llama-sharded/config.json");
    let index = read("llama-sharded/model.safetensors.index.json");
    load(&shards, Some(&index), &config).unwrap();
    for _ in 0..600 {
        let mut index = index.clone();
        damage(&mut random, &mut index, usize::MAX);
        count(load(&shards, Some(&index), &config));
    }
    assert!(refused > 1000 && accepted > 50, "the damage is too strong or too weak: {refused} refused, {accepted} not");
    if let (Some(before), Some(after)) = (before, most_memory()) {
        // The copies that this test makes of the files are part of it.
        let allowed = (16 << 20) + 6 * largest as u64;
        assert!(after - before <= allowed, "{} bytes more than before, {allowed} allowed", after - before);
    }
}
