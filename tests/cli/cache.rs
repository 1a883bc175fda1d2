//! Quantized models that are kept: `infer cache`, `--no-cache`, and processes that are killed while they write.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::{Run, infer, llama, run_command};

fn text(path: &Path) -> &str {
    path.to_str().expect("a path that is text")
}

/// A Llama with weights from a simple generator, large enough that quantizing takes a while.
fn write_model(folder: &Path, n_layers: usize) {
    let (tensors, config) = llama(256, 1024, n_layers);
    let mut state = 1u32;
    let mut value = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // bf16 between 2^-6 and 2^-5, either sign.
        ((state >> 16) as u16 & 0x807f | 0x3c80).to_le_bytes()
    };
    let data: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .into_iter()
        .map(|(name, shape)| {
            let bytes = (0..shape.iter().product()).flat_map(|_| value()).collect();
            (name, shape, bytes)
        })
        .collect();
    let views = data.iter().map(|(name, shape, bytes)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, shape.clone(), bytes);
        (name.clone(), view.expect("a tensor"))
    });
    let file = safetensors::serialize(views, None).expect("a file");
    fs::write(folder.join("model.safetensors"), file).expect("weights");
    fs::write(folder.join("config.json"), config.to_string()).expect("a config");
}

/// A model, and a place for its cache.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new(n_layers: usize) -> Place {
        let place = Place { folder: tempfile::tempdir().expect("a folder") };
        fs::create_dir(place.path("model")).expect("a folder");
        write_model(&place.path("model"), n_layers);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = infer(args);
        command.env("XDG_CACHE_HOME", self.path("cache"));
        command
    }

    fn run(&self, args: &[&str]) -> Run {
        run_command(self.command(args), b"")
    }

    /// The program that computes logits with 4-bit weights.
    fn logits_command(&self, more: &[&str]) -> Command {
        let (model, out) = (self.path("model"), self.path("logits.safetensors"));
        self.command(
            &[&["logits", "--q4", "--tokens", "1,2,3", "--model", text(&model), "--out", text(&out)], more].concat(),
        )
    }

    /// Runs it; the logits' file, and what it said.
    fn logits(&self, more: &[&str]) -> (Vec<u8>, String) {
        let run = run_command(self.logits_command(more), b"");
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        (fs::read(self.path("logits.safetensors")).expect("logits"), run.stderr)
    }

    /// Names in the cache's folder.
    fn cached(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path("cache/infer")) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect();
        names.sort();
        names
    }
}

#[test]
fn logits_from_the_cache_are_those_without_it() {
    let place = Place::new(2);
    let (expected, said) = place.logits(&["--no-cache"]);
    assert!(said.lines().count() == 1 && said.contains("GB/s"), "{said}");
    assert!(place.cached().is_empty(), "--no-cache keeps something: {:?}", place.cached());
    let (built, said) = place.logits(&[]);
    assert!(said.lines().count() == 1 && said.contains("kept in"), "{said}");
    let (mapped, said) = place.logits(&[]);
    assert_eq!(said, "", "mapping a kept model is nothing to talk about");
    assert!(built == expected && mapped == expected, "logits differ");
}

#[test]
fn processes_killed_at_any_point_leave_no_broken_cache_and_no_growing_garbage() {
    const KILLS: u64 = 24;
    let place = Place::new(6);
    let (expected, _) = place.logits(&["--no-cache"]);
    place.logits(&[]);
    let size = |name: &str| fs::metadata(place.path("cache/infer").join(name)).map_or(0, |metadata| metadata.len());
    let [name] = &place.cached().into_iter().filter(|name| !name.starts_with('.')).collect::<Vec<_>>()[..] else {
        panic!("expected one packed model, found {:?}", place.cached())
    };
    let whole = size(name);
    assert!(place.run(&["cache", "rm", "--all"]).code == Some(0));
    let mut unfinished = 0;
    for kill in 0..KILLS {
        let mut child = place.logits_command(&[]).stderr(Stdio::null()).spawn().expect("the program starts");
        // When so much has been written: by the work that is done, so that all of it is met on any machine. The first are
        // killed before, the last behind it.
        let point = whole * kill / (KILLS - 2);
        while kill > 0 && size(&format!(".{name}.tmp")) < point.max(1) && size(name) == 0 {
            if child.try_wait().expect("a status").is_some() {
                break;
            }
            thread::sleep(Duration::from_micros(200));
        }
        thread::sleep(Duration::from_millis(if kill < 2 { 2 + 5 * kill } else { 0 }));
        child.kill().expect("a signal");
        child.wait().expect("an end");
        let names = place.cached();
        assert!(names.len() <= 2, "kill {kill}: {names:?}");
        unfinished += usize::from(names.iter().any(|name| name.ends_with(".tmp")));
        if size(name) > 0 || kill % 6 == 5 {
            let (found, _) = place.logits(&[]);
            assert!(found == expected, "kill {kill}: logits differ");
            assert!(place.run(&["cache", "rm", "--all"]).code == Some(0));
        }
    }
    println!("{unfinished} of {KILLS} kills left an unfinished file");
    let (found, _) = place.logits(&[]);
    assert!(found == expected, "logits differ");
    let names = place.cached();
    assert!(names.len() == 2 && !names.iter().any(|name| name.ends_with(".tmp")), "{names:?}");
    let (found, said) = place.logits(&[]);
    assert!(found == expected && said.is_empty(), "{said}");
}

#[test]
fn two_processes_make_a_model_once() {
    let place = Place::new(6);
    let (expected, _) = place.logits(&["--no-cache"]);
    let out = |i: usize| place.path(&format!("{i}.safetensors"));
    let children: Vec<_> = (0..3)
        .map(|i| {
            let mut command = place.logits_command(&["--out", text(&out(i))]);
            command.stderr(Stdio::piped()).spawn().expect("the program starts")
        })
        .collect();
    let said: Vec<String> = children
        .into_iter()
        .map(|child| String::from_utf8(child.wait_with_output().expect("an end").stderr).expect("text"))
        .collect();
    let built = said.iter().filter(|said| said.contains("quantized")).count();
    assert_eq!(built, 1, "{said:?}");
    for i in 0..3 {
        assert!(fs::read(out(i)).expect("logits") == expected, "logits of process {i} differ");
    }
}

#[test]
fn the_cache_is_listed_and_emptied() {
    let place = Place::new(1);
    let path = place.run(&["cache", "path"]);
    assert_eq!(path.stdout, format!("{}\n", text(&place.path("cache/infer"))));
    let empty = place.run(&["cache", "ls"]);
    assert!(empty.code == Some(0) && empty.stdout.starts_with("      0 B  in "), "{}", empty.stdout);
    place.logits(&[]);
    let listed = place.run(&["cache", "ls", "--json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed.stdout).expect("JSON");
    let name = listed[0]["name"].as_str().expect("a name").to_owned();
    assert_eq!((listed.as_array().map(Vec::len), listed[0]["plan"].as_str()), (Some(1), Some("q4")), "{listed}");
    let lines = place.run(&["cache", "ls"]).stdout;
    assert!(lines.lines().count() == 2 && lines.contains(&name) && lines.contains("model.safetensors"), "{lines}");
    for wrong in [&["cache", "rm", "other"][..], &["cache", "rm", "../x"], &["cache", "rm"], &["cache"]] {
        assert_eq!(place.run(wrong).code, Some(2), "{wrong:?}");
    }
    fs::write(place.path("cache/infer").join(&name), "damaged").expect("a damaged file");
    assert!(place.run(&["cache", "ls"]).stdout.contains("damaged"));
    assert_eq!(place.run(&["cache", "rm", &name]).code, Some(0));
    assert_eq!(place.run(&["cache", "ls", "--json"]).stdout, "[]\n");
}

#[test]
fn a_cache_without_room_is_one_warning() {
    let place = Place::new(1);
    let (expected, _) = place.logits(&["--no-cache"]);
    // Files may have so many blocks of 512 or 1024 bytes and no more: the cache does not fit, the logits do.
    let limited = |command: &Command| {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", "trap '' XFSZ; ulimit -f 200; exec \"$0\" \"$@\""])
            .arg(command.get_program())
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        run_command(shell, b"")
    };
    let run = limited(&place.logits_command(&[]));
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    assert_eq!(run.stderr.matches("not kept").count(), 1, "{}", run.stderr);
    assert!(fs::read(place.path("logits.safetensors")).expect("logits") == expected, "logits differ");
    assert!(!place.cached().iter().any(|name| name.ends_with(".tmp")), "{:?}", place.cached());
}
