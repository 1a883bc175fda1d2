//! The program from outside: what it prints where, and the code it ends with.

mod answer;
mod bench;
mod cache;
mod logits;
#[cfg(target_os = "linux")]
mod memory;
mod quantize;
mod readme;
mod show;
mod tokenize;
mod wrong_use;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

/// What a run left behind.
#[derive(Debug)]
struct Run {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// The program, without the user's settings.
fn infer(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_infer"));
    command.args(args).env_remove("INFER_ISA").env_remove("RUST_BACKTRACE");
    command.env("XDG_CACHE_HOME", env!("CARGO_TARGET_TMPDIR"));
    command
}

/// Runs to the end with `stdin` on standard input.
fn run_command(mut command: Command, stdin: &[u8]) -> Run {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut pipe = child.stdin.take().expect("a pipe");
    let bytes = stdin.to_vec();
    // The program may end without reading.
    let writer = thread::spawn(move || drop(pipe.write_all(&bytes)));
    let output = child.wait_with_output().expect("the program ends");
    writer.join().expect("the writer ends");
    Run {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("stdout is UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("stderr is UTF-8"),
    }
}

fn run(args: &[&str], stdin: &[u8]) -> Run {
    run_command(infer(args), stdin)
}

/// Runs and reads the JSON object on stdout.
fn json(args: &[&str], stdin: &[u8]) -> serde_json::Value {
    let run = run(args, stdin);
    assert_eq!(run.code, Some(0), "{args:?}: {}", run.stderr);
    serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{args:?}: {error} in {:?}", run.stdout))
}

/// Runs, and checks that it fails with `code`, nothing on stdout, and one line (or two) on stderr with `words` in it.
fn assert_fails(args: &[&str], stdin: &[u8], code: i32, words: &[&str]) {
    check_failure(&run(args, stdin), &format!("{args:?}"), code, words);
}

fn check_failure(run: &Run, what: &str, code: i32, words: &[&str]) {
    assert_eq!(run.code, Some(code), "{what}: {}", run.stderr);
    assert_eq!(run.stdout, "", "{what}: a failure prints nothing on stdout");
    for word in words {
        assert!(run.stderr.contains(word), "{what}: expected {word:?} in {:?}", run.stderr);
    }
    let lines = run.stderr.trim_end().lines().filter(|line| !line.is_empty()).count();
    assert!((1..=3).contains(&lines), "{what}: expected a line or two, found {:?}", run.stderr);
    assert!(!run.stderr.contains("panicked") && !run.stderr.contains("bug"), "{what}: {:?}", run.stderr);
}

/// The demo model as a folder.
fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo")
}

/// A copy of some of the demo's files, to be damaged.
fn demo_files(names: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder for the test");
    for name in names {
        std::fs::copy(demo().join(name), folder.path().join(name)).expect("a copy of the demo's file");
    }
    folder
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Names and shapes of the tensors of a small Llama, and its config.json.
fn llama(hidden: usize, intermediate: usize, n_layers: usize) -> (Vec<(String, Vec<usize>)>, serde_json::Value) {
    const VOCAB: usize = 1000;
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCAB, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
        ("lm_head.weight".to_owned(), vec![VOCAB, hidden]),
    ];
    for layer in 0..n_layers {
        let mut add =
            |name: &str, shape: &[usize]| tensors.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
        add("input_layernorm", &[hidden]);
        add("post_attention_layernorm", &[hidden]);
        for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            add(&format!("self_attn.{name}"), &[hidden, hidden]);
        }
        add("mlp.gate_proj", &[intermediate, hidden]);
        add("mlp.up_proj", &[intermediate, hidden]);
        add("mlp.down_proj", &[hidden, intermediate]);
    }
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": VOCAB, "hidden_size": hidden,
        "intermediate_size": intermediate, "num_hidden_layers": n_layers, "num_attention_heads": hidden / 64,
        "num_key_value_heads": hidden / 64, "max_position_embeddings": 128,
    });
    (tensors, config)
}
