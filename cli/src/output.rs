//! Standard output: the text that was asked for and nothing else.

use std::io::{self, IsTerminal, Write};

use anyhow::{Context, Result, bail};

use crate::closed_stdout::stdout_was_closed;
use crate::terminal;
use crate::word_wrap::WordWrap;

/// Writes a text to standard output, now.
pub fn print(text: &str) -> Result<()> {
    if stdout_was_closed() {
        bail!("cannot write to standard output: it is closed");
    }
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).context("cannot write to standard output")
}

/// An answer on its way to standard output. A terminal gets lines that break between words, no control characters of
/// the model's, and a last line break; a pipe or a file gets the text as it is.
pub struct Stream {
    terminal: bool,
    at_line_start: bool,
    wrap: WordWrap,
}

impl Stream {
    /// Begins an answer.
    pub fn new() -> Stream {
        Stream { terminal: io::stdout().is_terminal(), at_line_start: true, wrap: WordWrap::default() }
    }

    /// Shows the next piece.
    pub fn push(&mut self, text: &str) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        if !self.terminal {
            return print(text);
        }
        let shown = terminal::without_controls(text);
        if let Some(last) = shown.chars().last() {
            self.at_line_start = last == '\n';
        }
        match terminal::stdout_width() {
            Some(width) => print(&self.wrap.push(&shown, width)),
            None => print(&shown),
        }
    }

    /// Ends the answer.
    pub fn finish(self) -> Result<()> {
        if self.terminal && !self.at_line_start { print("\n") } else { Ok(()) }
    }
}
