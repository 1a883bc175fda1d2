//! The prompt of the chat: line editing, history across runs, texts of several lines.

use std::borrow::Cow;
use std::env;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Behavior, Config, Context, Editor, Helper};

use crate::interrupt::Interrupts;

use super::command::{self, COMMANDS, Command};

/// Entries of the history that are kept.
const HISTORY: usize = 1000;

/// What the user did at the prompt.
pub enum Input {
    /// A text for the model.
    Text(String),
    /// A line that began with a slash, or what is wrong with it.
    Command(Result<Command, String>),
    /// Ctrl-C: the line is gone.
    Cleared,
    /// Ctrl-D, or the terminal is gone.
    End,
}

/// Reads what the user types.
pub struct Prompt {
    editor: Editor<Lines, FileHistory>,
    history: Option<PathBuf>,
    interrupts: Interrupts,
}

impl Prompt {
    /// Takes the terminal (also when stdout goes to a file) and the history of former runs.
    pub fn new(interrupts: &Interrupts) -> Result<Prompt> {
        let config = Config::builder()
            .behavior(Behavior::PreferTerm)
            .max_history_size(HISTORY)
            .context("cannot set up the history")?
            .build();
        let mut editor = Editor::with_config(config).context("cannot use the terminal")?;
        editor.set_helper(Some(Lines));
        let history = history_path();
        if let Some(path) = &history {
            // A history that is not there yet, or that cannot be read, is an empty one.
            let _ = editor.load_history(path);
        }
        Ok(Prompt { editor, history, interrupts: interrupts.clone() })
    }

    /// Columns of the terminal.
    pub fn width(&mut self) -> usize {
        self.editor.dimensions().map_or(80, |(columns, _)| usize::from(columns))
    }

    /// Reads a text, which is not empty, and remembers it.
    pub fn read(&mut self) -> Result<Input> {
        loop {
            let line = match self.line("> ")? {
                Input::Text(line) => line,
                other => return Ok(other),
            };
            let text = joined(&line);
            if text.trim().is_empty() {
                continue;
            }
            self.remember(&line);
            return Ok(if line.starts_with('/') { Input::Command(command::parse(&text)) } else { Input::Text(text) });
        }
    }

    /// Asks a question; anything but a yes is a no.
    pub fn confirm(&mut self, question: &str) -> Result<bool> {
        let answer = match self.line(&format!("{question} [y/n] "))? {
            Input::Text(answer) => answer,
            _ => return Ok(false),
        };
        Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
    }

    fn line(&mut self, prompt: &str) -> Result<Input> {
        let editor = &mut self.editor;
        match self.interrupts.editing(|| editor.readline(prompt)) {
            Ok(line) => Ok(Input::Text(line)),
            Err(ReadlineError::Interrupted) => Ok(Input::Cleared),
            Err(ReadlineError::Eof) => Ok(Input::End),
            // A terminal that was closed under us gives an I/O error: the chat is over.
            Err(ReadlineError::Io(_) | ReadlineError::Errno(_)) => Ok(Input::End),
            Err(error) => Err(error).context("cannot read from the terminal"),
        }
    }

    /// Written at once, so that a second chat and a killed one lose nothing. A history that cannot be written is no
    /// reason to disturb a conversation.
    fn remember(&mut self, line: &str) {
        let _ = self.editor.add_history_entry(line);
        if let Some(path) = &self.history {
            if let Some(folder) = path.parent() {
                let _ = fs::create_dir_all(folder);
            }
            let _ = self.editor.append_history(path);
        }
    }
}

/// `$XDG_STATE_HOME/infer/history`, by default `~/.local/state/infer/history`.
fn history_path() -> Option<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(state.join("infer").join("history"))
}

/// Decides when a text is complete, and completes the names of commands.
struct Lines;

/// Whether more lines belong to the text: it begins with """ and does not end with it, or its last line ends in \.
fn goes_on(text: &str) -> bool {
    match text.trim_start().strip_prefix("\"\"\"") {
        Some(rest) => !rest.trim_end().ends_with("\"\"\""),
        None => text.ends_with('\\'),
    }
}

/// The text that the user meant: without the quotes around it, or without the \ before its line breaks.
fn joined(text: &str) -> String {
    match text.trim().strip_prefix("\"\"\"") {
        Some(rest) => rest.strip_suffix("\"\"\"").unwrap_or(rest).trim_matches('\n').to_owned(),
        None => text.replace("\\\n", "\n"),
    }
}

impl Validator for Lines {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        let incomplete = goes_on(context.input());
        Ok(if incomplete { ValidationResult::Incomplete } else { ValidationResult::Valid(None) })
    }
}

impl Completer for Lines {
    type Candidate = String;

    fn complete(&self, line: &str, pos: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let typed = line.get(..pos).unwrap_or(line);
        let names = COMMANDS.iter().filter(|(name, ..)| typed.starts_with('/') && name.starts_with(typed));
        Ok((0, names.map(|(name, ..)| (*name).to_owned()).collect()))
    }
}

impl Hinter for Lines {
    type Hint = String;
}

impl Highlighter for Lines {
    fn highlight_prompt<'b, 's: 'b, 'p: 'b>(&'s self, prompt: &'p str, _default: bool) -> Cow<'b, str> {
        Cow::Owned(format!("\u{1b}[1m{prompt}\u{1b}[0m"))
    }
}

impl Helper for Lines {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_several_lines_end_where_the_help_says() {
        let complete = [
            ("one", "one"),
            ("one\\\ntwo", "one\ntwo"),
            ("\"\"\"a\nb\"\"\"", "a\nb"),
            ("\"\"\"\na\n\nb\n\"\"\"", "a\n\nb"),
            ("\"\"\"\"\"\"", ""),
            ("say \"\"\"", "say \"\"\""),
        ];
        for (typed, meant) in complete {
            assert!(!goes_on(typed), "{typed:?} is complete");
            assert_eq!(joined(typed), meant, "{typed:?}");
        }
        for typed in ["one\\", "\"\"\"", "\"\"\"a", "\"\"\"a\\", "one\\\ntwo\\", "\"\"\"\"", "\"\"\"\"\""] {
            assert!(goes_on(typed), "{typed:?} goes on");
        }
    }
}
