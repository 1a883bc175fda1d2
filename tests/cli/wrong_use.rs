//! Wrong flags, wrong files, closed and full outputs: one clear line and the right exit code.

use std::fs::File;
use std::process::Stdio;

use super::*;

#[test]
fn a_flags_bad_value_is_named_with_what_is_expected() {
    let cases: &[(&[&str], &[&str])] = &[
        (&["--temperature", "nan"], &["--temperature", "nan", "0"]),
        (&["--temperature", "-1"], &["--temperature", "-1"]),
        (&["--temperature", "hot"], &["--temperature", "hot"]),
        (&["--top-p", "1.5"], &["--top-p", "1.5", "from 0 to 1"]),
        (&["--min-p", "-0.1"], &["--min-p", "-0.1"]),
        (&["--top-k", "-5"], &["--top-k", "-5"]),
        (&["--repeat-penalty", "0"], &["--repeat-penalty", "above 0"]),
        (&["--presence-penalty", "inf"], &["--presence-penalty", "inf"]),
        (&["--frequency-penalty", "-3"], &["--frequency-penalty", "-3"]),
        (&["--seed", "-1"], &["--seed", "-1"]),
        (&["--stop", ""], &["--stop"]),
        (&["--max-tokens", "0"], &["--max-tokens", "1 or more"]),
        (&["--threads", "0"], &["--threads", "from 1"]),
        (&["--threads", "1,2", "-p", "x"], &["--threads", "bench"]),
        (&["bench", "-p", "-1"], &["--prefill", "from 0"]),
        (&["bench", "-p", ""], &["--prefill", "from 0"]),
        (&["bench", "-n", "1,,2"], &["--decode", "from 0"]),
        (&["bench", "-n", "99999999999999999999"], &["--decode", "from 0"]),
        (&["bench", "-p", "0", "-n", "0"], &["-p", "-n"]),
        (&["bench", "-b", "0"], &["--batch", "from 1"]),
        (&["bench", "-d", "x"], &["--depth", "x"]),
        (&["bench", "-r", "0"], &["--repetitions", "1 or more"]),
        (&["bench", "-t", "1,0"], &["--threads", "from 1"]),
        (&["bench", "--json", "--markdown"], &["--json", "--markdown"]),
        (&["bench", "--shape", "gpt-9"], &["--shape", "llama-3-8b"]),
        (&["bench", "--shape", "llama-3-8b/0"], &["--shape", "32 layers"]),
        (&["bench", "--shape", "llama-3-8b", "-m", "x"], &["--shape", "--model"]),
        (&["bench", "--ctx", "8"], &["--ctx", "512", "8"]),
        (&["--ctx", "0"], &["--ctx", "1 or more"]),
        (&["--ctx", "99999999999999999999"], &["--ctx"]),
        (&["--memory", "0"], &["--memory", "8G"]),
        (&["--memory", "lots"], &["--memory", "lots"]),
        (&["--kv", "int3"], &["--kv", "f16", "q8"]),
        (&["--compute", "f64"], &["--compute", "f32"]),
        (&["--q4", "--q8"], &["--q4", "--q8"]),
        (&["--q4", "show", "--q8"], &["--q4", "--q8"]),
        (&["--raw", "--system", "x"], &["--raw", "--system"]),
        (&["-f", "a", "-p", "b"], &["--file", "--prompt"]),
        (&["--nonsense"], &["--nonsense"]),
        (&["two", "prompts"], &["prompts"]),
        (&["--json"], &["no prompt"]),
        (&["-f", "/nonexistent/prompt"], &["/nonexistent/prompt"]),
        (&["-f", "/"], &["folder"]),
        (&["-p", "x", "show"], &["--prompt", "show"]),
        (&["logits", "--tokens", "", "--out", "x"], &["--tokens"]),
        (&["logits", "--tokens", "1,x", "--out", "x"], &["--tokens", "x"]),
        (&["logits", "--tokens", "1", "--out", "/nonexistent/x"], &["/nonexistent/x"]),
        (&["logits", "--tokens", "1", "--out", "/"], &["/"]),
        (&["logits", "--tokens", "1"], &["--out"]),
        (&["tokenize", "--ids", "1,-2"], &["--ids", "-2"]),
        (&["tokenize", "--text", "a", "--ids", "1"], &["--text", "--ids"]),
        (&["tokenize", "--skip-special"], &["--ids"]),
        (&["tokenize", "--chat", "/nonexistent.json"], &["/nonexistent.json"]),
    ];
    for (args, words) in cases {
        let run = run(args, b"");
        assert_eq!(run.code, Some(2), "{args:?}: {}", run.stderr);
        assert_eq!(run.stdout, "", "{args:?}");
        for word in *words {
            assert!(run.stderr.contains(word), "{args:?}: expected {word:?} in {:?}", run.stderr);
        }
    }
}

#[test]
fn no_prompt_and_nothing_on_standard_input_is_wrong_use() {
    assert_fails(&[], b"", 2, &["no prompt", "standard input is empty"]);
    assert_fails(&[], b"\n", 2, &["no prompt"]);
    assert_fails(&["--model", "/nonexistent/model"], b"", 3, &["/nonexistent/model", "no such file"]);
    let mut command = infer(&[]);
    command.stdin(Stdio::null());
    let output = command.output().expect("the program ends");
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_prompt_that_is_not_utf8_is_wrong_use() {
    assert_fails(&[], b"caf\xe9", 2, &["standard input", "UTF-8", "offset 3"]);
    assert_fails(&["tokenize", "--json"], b"\xff", 2, &["UTF-8"]);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("prompt");
    std::fs::write(&path, b"\xc3").expect("a file");
    assert_fails(&["-f", text(&path)], b"", 2, &["UTF-8"]);
}

#[test]
fn a_model_that_cannot_be_loaded_has_exit_code_3() {
    let empty = tempfile::tempdir().expect("a folder");
    let cases: &[(&[&str], &[&str])] = &[
        (&["-m", "/nonexistent/model", "-p", "x"], &["/nonexistent/model"]),
        (&["show", "--model", "/nonexistent/model"], &["/nonexistent/model"]),
        (&["-m", text(empty.path()), "-p", "x"], &["safetensors"]),
        (&["tokenize", "-m", text(empty.path()), "--text", "x"], &["tokenizer.json"]),
        (&["-m", "/dev/null", "-p", "x"], &["/dev/null"]),
        (&["-p", "x", "--chat-template", "/nonexistent.jinja"], &["/nonexistent.jinja"]),
    ];
    for (args, words) in cases {
        assert_fails(args, b"", 3, words);
    }
    let template = empty.path().join("broken.jinja");
    std::fs::write(&template, "{% for %}").expect("a file");
    assert_fails(&["-p", "x", "--chat-template", text(&template)], b"", 3, &["broken.jinja"]);
}

/// Opening one would wait for its writer.
#[test]
#[cfg(unix)]
fn a_named_pipe_is_not_waited_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let pipe = folder.path().join("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status().expect("mkfifo");
    assert!(made.success(), "a named pipe is made");
    assert_fails(&["-f", text(&pipe)], b"", 2, &["named pipe"]);
    assert_fails(&["tokenize", "--chat", text(&pipe)], b"", 2, &["named pipe"]);
    assert_fails(&["-p", "x", "--chat-template", text(&pipe)], b"", 3, &["named pipe"]);
    // What a shell makes of <(command) is read.
    let shell =
        format!("exec \"$0\" tokenize --json --chat <(echo '{}')", r#"{"messages":[{"role":"user","content":"x"}]}"#);
    let run = Command::new("bash").args(["-c", &shell, env!("CARGO_BIN_EXE_infer")]).stdin(Stdio::null()).output();
    assert_eq!(run.expect("bash").status.code(), Some(0));
}

#[test]
fn what_does_not_fit_the_memory_has_exit_code_4() {
    let demo = demo();
    let fits_not = ["--memory", "1M", "-m", text(&demo)];
    assert_fails(&[&fits_not[..], &["-p", "x"]].concat(), b"", 4, &["memory", "weights", "available"]);
    assert_fails(&[&fits_not[..], &["logits", "--tokens", "1", "--out", "/dev/null"]].concat(), b"", 4, &["memory"]);
    let shown = run(&[&fits_not[..], &["show"]].concat(), b"");
    assert_eq!(shown.code, Some(4), "{}", shown.stderr);
    assert!(shown.stderr.contains("memory") && shown.stdout.contains("LlamaForCausalLM"), "{shown:?}");
}

#[test]
fn an_unknown_instruction_set_lists_the_choices() {
    for args in [&["--version"][..], &["-p", "x", "-n", "1"], &["logits", "--tokens", "1", "--out", "/dev/null"]] {
        let mut command = infer(args);
        command.env("INFER_ISA", "mmx");
        check_failure(&run_command(command, b""), &format!("{args:?}"), 2, &["INFER_ISA", "mmx", "portable"]);
    }
}

#[test]
fn version_names_the_cpu_tier() {
    let mut command = infer(&["--version"]);
    command.env("INFER_ISA", "portable");
    let run = run_command(command, b"");
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""));
    assert_eq!(run.stdout, format!("infer {} (portable)\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn help_is_on_stdout_and_complete() {
    for args in [&["--help"][..], &["help", "logits"], &["tokenize", "--help"], &["help"]] {
        let run = run(args, b"");
        assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{args:?}");
        assert!(run.stdout.contains("Usage:") && run.stdout.contains("--model"), "{args:?}: {}", run.stdout);
    }
}

/// `infer … | head -c1`: whoever reads has seen enough; that is no failure and needs no words.
#[test]
fn a_closed_pipe_ends_quietly() {
    for args in [&["-p", "Tell me a tale.", "--raw"][..], &["show", "--json"], &["--help"]] {
        let mut child = infer(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("the program ends");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{args:?}: {stderr}");
        assert!(!stderr.contains("infer:"), "{args:?}: {stderr}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_has_exit_code_4() {
    for args in [&["-p", "x", "-n", "4"][..], &["show"], &["--version"], &["--help"]] {
        let mut command = infer(args);
        let full = File::options().write(true).open("/dev/full").expect("/dev/full");
        let output = command.stdin(Stdio::null()).stdout(full).output().expect("the program ends");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(4), "{args:?}: {stderr}");
        assert!(stderr.contains("cannot write to standard output"), "{args:?}: {stderr}");
    }
    assert_fails(&["logits", "--tokens", "1", "--out", "/dev/full"], b"", 4, &["/dev/full"]);
}

/// A script may start the program with its standard streams closed.
#[test]
#[cfg(unix)]
fn closed_standard_streams_are_no_reason_to_crash() {
    // Only Linux tells that stdout was closed.
    let lost = if cfg!(target_os = "linux") { 1 } else { 0 };
    for (redirections, code) in [("<&-", 0), ("<&- >&-", lost), (">&-", lost), ("2>&-", 0), ("<&- >&- 2>&-", lost)] {
        let script = format!("exec \"$0\" -p x -n 2 {redirections}");
        let output =
            Command::new("sh").args(["-c", &script, env!("CARGO_BIN_EXE_infer")]).stdin(Stdio::null()).output();
        let output = output.expect("sh");
        assert_eq!(output.status.code(), Some(code), "{redirections}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        let says_so = stderr.contains("cannot write to standard output: it is closed");
        assert_eq!(says_so, code == 1 && !redirections.contains("2>&-"), "{redirections}: {stderr}");
    }
    let no_prompt = Command::new("sh").args(["-c", "exec \"$0\" <&-", env!("CARGO_BIN_EXE_infer")]).output();
    assert_eq!(no_prompt.expect("sh").status.code(), Some(2));
}
