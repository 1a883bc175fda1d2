//! Answering once: what is on stdout, what is on stderr.

use super::*;

/// The demo never comes to an end here.
const ENDLESS: [&str; 5] = ["--raw", "-p", "Once upon a time", "--temperature", "0"];

const GREEDY: [&str; 4] = ["--temperature", "0", "-n", "12"];

fn answer(args: &[&str], stdin: &[u8]) -> String {
    let run = run(&[&GREEDY, args].concat(), stdin);
    assert_eq!(run.code, Some(0), "{args:?}: {}", run.stderr);
    assert!(!run.stderr.contains('\u{1b}'), "{args:?}: no colours where stderr is no terminal: {:?}", run.stderr);
    run.stdout
}

#[test]
fn the_prompt_comes_from_where_it_is_given() {
    let tale = answer(&["Tell me a tale about a fox."], b"");
    assert!(!tale.is_empty());
    assert_eq!(answer(&["-p", "Tell me a tale about a fox."], b""), tale);
    assert_eq!(answer(&[], b"Tell me a tale about a fox."), tale);
    assert_eq!(answer(&[], b"Tell me a tale about a fox.\n"), tale, "the line break of echo is no part of the prompt");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("prompt.txt");
    std::fs::write(&file, "Tell me a tale about a fox.\n").expect("a file");
    assert_eq!(answer(&["-f", text(&file)], b""), tale);
    assert_eq!(answer(&["-f", "-"], b"Tell me a tale about a fox.\n"), tale);
    let joined = answer(&["Tell me a tale about a fox.", "-n", "13"], b"And a hen.\n");
    assert_eq!(joined, answer(&["-p", "Tell me a tale about a fox.\n\nAnd a hen.", "-n", "13"], b""));
}

#[test]
fn the_demo_is_named_on_stderr_and_a_given_model_is_not() {
    let bare = run(&[&GREEDY, &["-p", "Tell me a tale."][..]].concat(), b"");
    assert!(bare.stderr.contains("tiny") && bare.stderr.contains("--model"), "{:?}", bare.stderr);
    let demo = demo();
    let given = run(&[&GREEDY, &["-m", text(&demo), "-p", "Tell me a tale."][..]].concat(), b"");
    assert_eq!((given.stderr.as_str(), given.stdout.as_str()), ("", bare.stdout.as_str()));
}

#[test]
fn json_has_text_ids_reason_and_timings() {
    let object = json(&[&GREEDY, &["--json", "-p", "Tell me a tale about a fox."][..]].concat(), b"");
    assert_eq!(object["text"], answer(&["-p", "Tell me a tale about a fox."], b""));
    assert_eq!(object["ids"].as_array().map(Vec::len), Some(12), "{object}");
    assert_eq!(object["reason"], "max_tokens", "{object}");
    assert!(object["prompt_tokens"].as_u64().is_some_and(|n| n > 4), "{object}");
    for timing in ["load_s", "prefill_s", "decode_s"] {
        assert!(object["timings"][timing].as_f64().is_some_and(|seconds| seconds >= 0.0), "{timing}: {object}");
    }
}

#[test]
fn a_seed_makes_an_answer_repeatable_for_any_number_of_threads() {
    let sampled = |seed, threads| {
        let args = ["-p", "Tell me a tale.", "--temperature", "1", "-n", "20", "--seed", seed, "--threads", threads];
        json(&[&["--json"], &args[..]].concat(), b"")["text"].clone()
    };
    assert_eq!(sampled("7", "1"), sampled("7", "2"));
    assert_ne!(sampled("7", "1"), sampled("8", "1"));
}

#[test]
fn an_answer_ends_before_a_stop_string() {
    let tale = answer(&["-p", "Tell me a tale about a fox."], b"");
    let stop: String = tale.chars().skip(3).take(5).collect();
    let object = json(&[&GREEDY, &["--json", "--stop", &stop, "-p", "Tell me a tale about a fox."][..]].concat(), b"");
    assert_eq!(object["reason"], "stop_string", "{object}");
    let (before, _) = tale.split_once(&stop).expect("the stop string is in the tale");
    assert_eq!(object["text"], before);
}

#[test]
fn raw_continues_the_text_and_system_comes_first() {
    let ids = |args: &[&str]| json(&[&GREEDY, &["--json"][..], args].concat(), b"")["prompt_tokens"].clone();
    let tokens = |text: &str| json(&["tokenize", "--json", "--text", text], b"")["ids"].as_array().map(Vec::len);
    assert_eq!(ids(&["--raw", "-p", "Once upon a time"]).as_u64(), tokens("Once upon a time").map(|n| n as u64));
    let chat = "<|system|>Be brief.<|end|><|user|>Hi<|end|><|assistant|>";
    assert_eq!(ids(&["--system", "Be brief.", "-p", "Hi"]).as_u64(), tokens(chat).map(|n| n as u64));
}

#[test]
fn a_prompt_longer_than_the_context_is_refused_with_the_numbers() {
    assert_fails(&["-p", "Tell me a tale about a fox.", "--ctx", "4"], b"", 2, &["4"]);
    assert_fails(&[], "tale ".repeat(600).as_bytes(), 2, &["512"]);
}

/// A model without a template completes the text, and says so once.
#[test]
fn without_a_template_the_text_is_completed() {
    let folder = demo_files(&["config.json", "model.safetensors", "tokenizer.json"]);
    let model = ["-m", text(folder.path())];
    let completed = run(&[&GREEDY, &model[..], &["-p", "Once upon a time"]].concat(), b"");
    assert_eq!(completed.code, Some(0), "{}", completed.stderr);
    assert_eq!(completed.stderr.matches("no chat template").count(), 1, "{:?}", completed.stderr);
    assert_eq!(completed.stdout, answer(&["--raw", "-p", "Once upon a time"], b""));
    assert_fails(&[&model[..], &["--system", "x", "-p", "y"]].concat(), b"", 2, &["--system", "template"]);
}

#[test]
fn a_full_context_ends_the_answer_and_is_said() {
    let full = run(&[&ENDLESS[..], &["--ctx", "16"]].concat(), b"");
    assert_eq!(full.code, Some(0), "{}", full.stderr);
    assert!(full.stderr.contains("context of 16 tokens is full"), "{}", full.stderr);
    let object = json(&[&ENDLESS[..], &["--ctx", "16", "--json"]].concat(), b"");
    assert_eq!((&object["reason"], &object["text"]), (&"context_full".into(), &full.stdout.into()));
}

/// Ctrl-C ends an answer with what is there, and with the exit code that shells give to an interrupted program.
#[test]
#[cfg(unix)]
fn an_interrupted_answer_keeps_its_beginning() {
    use std::io::Read;
    use std::process::Stdio;
    // The slowest way to answer, so that the answer lasts longer than the signal needs.
    let mut command = infer(&[&ENDLESS[..], &["--threads", "1", "--compute", "f32"]].concat());
    command.env("INFER_ISA", "portable").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    let mut stdout = child.stdout.take().expect("a pipe");
    let mut beginning = [0; 1];
    stdout.read_exact(&mut beginning).expect("the answer begins");
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill");
    assert!(sent.success(), "the answer was over before the signal");
    let output = child.wait_with_output().expect("the program ends");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("interrupted"), "{stderr}");
}
