//! Where the prompt comes from: the command line, a file, standard input, or the first of these with the last.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::args::AnswerArgs;
use crate::exit::wrong_use;
use crate::terminal;

/// More than any context holds; whatever is longer is no prompt but a mistake (`infer < /dev/zero`).
const MAX_BYTES: u64 = 256 << 20;

/// How long to read in silence before saying what we wait for.
const PATIENCE: Duration = Duration::from_secs(2);

/// The prompt, or `None` for a chat: nothing was given and standard input is a terminal.
pub fn prompt(args: &AnswerArgs) -> Result<Option<String>> {
    let mut stdin_is_taken = io::stdin().is_terminal();
    let given = match (&args.positional_prompt, &args.prompt, &args.file) {
        (Some(text), ..) | (_, Some(text), _) => Some(text.clone()),
        (_, _, Some(path)) if path.as_os_str() == "-" => {
            stdin_is_taken = true;
            Some(without_last_newline(stdin_text()?))
        }
        (_, _, Some(path)) => {
            stdin_is_taken |= path.as_os_str() == "/dev/stdin";
            Some(without_last_newline(file_text(path)?))
        }
        (None, None, None) => None,
    };
    if stdin_is_taken {
        return Ok(given);
    }
    let piped = without_last_newline(patiently(given.is_some())?);
    match (given, piped) {
        (Some(prompt), text) if text.is_empty() => Ok(Some(prompt)),
        (Some(prompt), text) => Ok(Some(format!("{prompt}\n\n{text}"))),
        (None, text) if text.is_empty() => Err(wrong_use(
            "there is no prompt, and standard input is empty (give a prompt, or run on a terminal to chat)",
        )),
        (None, text) => Ok(Some(text)),
    }
}

/// Standard input as text, byte for byte.
pub fn stdin_text() -> Result<String> {
    text("standard input", io::stdin().lock())
}

/// A file that the command line names, as text.
pub fn file_text(path: &Path) -> Result<String> {
    let name = path.display().to_string();
    if is_named_pipe(path) {
        return Err(wrong_use(format!("{name}: expected a text file, found a named pipe")));
    }
    let file = File::open(path).map_err(|error| wrong_use(format!("{name}: {error}")))?;
    text(&name, file)
}

/// Opening a named pipe waits for its writer, maybe without end. What a shell makes of `<(command)` lies in /dev/fd and
/// has its writer already.
#[cfg(unix)]
fn is_named_pipe(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    !path.starts_with("/dev/fd") && path.symlink_metadata().is_ok_and(|entry| entry.file_type().is_fifo())
}

#[cfg(not(unix))]
fn is_named_pipe(_: &Path) -> bool {
    false
}

fn text(name: &str, source: impl Read) -> Result<String> {
    let mut bytes = Vec::new();
    match source.take(MAX_BYTES + 1).read_to_end(&mut bytes) {
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
            return Err(wrong_use(format!("{name}: expected a text file, found a folder")));
        }
        read => read.with_context(|| format!("cannot read {name}"))?,
    };
    if bytes.len() as u64 > MAX_BYTES {
        return Err(wrong_use(format!("{name}: expected at most {} of text", terminal::bytes(MAX_BYTES))));
    }
    String::from_utf8(bytes).map_err(|error| {
        wrong_use(format!(
            "{name}: expected UTF-8 text, found other bytes at offset {}",
            error.utf8_error().valid_up_to()
        ))
    })
}

/// Reads standard input. Beside a prompt, it may be a pipe that a script left open by accident, and nobody would know
/// what the program waits for: say so.
fn patiently(beside_a_prompt: bool) -> Result<String> {
    if !beside_a_prompt {
        return stdin_text();
    }
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(stdin_text()));
    let read = receiver.recv_timeout(PATIENCE).or_else(|timeout| match timeout {
        mpsc::RecvTimeoutError::Timeout => {
            terminal::note("infer: reading standard input until it ends (`< /dev/null` gives none)");
            receiver.recv()
        }
        mpsc::RecvTimeoutError::Disconnected => Err(mpsc::RecvError),
    });
    read.context("cannot read standard input")?
}

/// `echo` and editors end a text with a line break that its author did not mean as a part of it.
fn without_last_newline(mut text: String) -> String {
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_break_at_the_end_is_not_part_of_a_prompt() {
        for (text, expected) in [("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), ("a", "a"), ("\n", ""), ("a\r", "a\r")]
        {
            assert_eq!(without_last_newline(text.to_owned()), expected, "{text:?}");
        }
    }

    #[test]
    fn text_that_is_not_utf8_is_refused_with_the_place() {
        let error = text("x", &b"ab\xff"[..]).expect_err("not UTF-8");
        assert!(error.to_string().contains("offset 2"), "{error}");
    }
}
