//! What stderr and stdout may show: notes, dim lines, progress; and nothing that a script or a pipe would trip over.

use std::borrow::Cow;
use std::env;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressStyle};
use infer_runtime::Progress;

/// Writes a line to stderr. A closed stderr is no reason to end.
pub fn note(text: &str) {
    let mut stderr = io::stderr().lock();
    let _ = writeln!(stderr, "{text}").and_then(|()| stderr.flush());
}

/// A note for a terminal of `width` columns, wrapped between words.
pub fn wrapped_note(text: &str, width: usize) {
    for paragraph in text.lines() {
        let words: Vec<&str> = paragraph.split(' ').collect();
        note(&wrap(&words, " ", width).join("\n"));
    }
}

/// A note in faint letters where stderr shows colours; wrapped between its parts at `width` columns.
pub fn dim_note(parts: &[String], width: usize) {
    for line in wrap(parts, " · ", width) {
        if stderr_has_styles() {
            note(&format!("\u{1b}[2m{line}\u{1b}[0m"));
        } else {
            note(&line);
        }
    }
}

/// Joins the parts, starting a new line where the next part would pass `width`.
fn wrap(parts: &[impl AsRef<str>], separator: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for part in parts {
        let part = part.as_ref();
        let n_columns = separator.chars().count() + part.chars().count();
        match lines.last_mut() {
            Some(line) if line.chars().count() + n_columns <= width => {
                line.push_str(separator);
                line.push_str(part);
            }
            _ => lines.push(part.to_owned()),
        }
    }
    lines
}

/// Whether stderr is a terminal that moves its cursor.
pub fn stderr_is_interactive() -> bool {
    io::stderr().is_terminal() && cursor_moves()
}

fn cursor_moves() -> bool {
    env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Columns of the terminal that is stdout, if it is one that moves its cursor.
pub fn stdout_width() -> Option<usize> {
    let (_, columns) = console::Term::stdout().size_checked().filter(|_| cursor_moves())?;
    Some(columns.into())
}

fn stderr_has_styles() -> bool {
    stderr_is_interactive() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Control characters as escapes, so that a message is one line and cannot drive the terminal.
pub fn escape_controls(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            escaped.extend(c.escape_default());
        } else {
            escaped.push(c);
        }
    }
    escaped
}

/// What a terminal may show of a model's text: everything but control characters, which could move the cursor,
/// retitle the window or worse. Line breaks and tabs stay.
pub fn without_controls(text: &str) -> Cow<'_, str> {
    let harmless = |c: char| !c.is_control() || c == '\n' || c == '\t';
    if text.chars().all(harmless) {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(text.chars().filter(|&c| harmless(c)).collect())
    }
}

/// What a progress bar counts.
pub enum Unit {
    /// Bytes of weights.
    Bytes,
    /// Tokens of a prompt.
    Tokens,
    /// Measurements.
    Runs,
}

/// A progress bar on a terminal's stderr; elsewhere one that is never drawn. It is cleared when it is dropped.
pub fn progress_bar(what: &'static str, unit: &Unit) -> ProgressBar {
    let target = if stderr_is_interactive() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(None, target).with_message(what).with_finish(ProgressFinish::AndClear);
    let style = ProgressStyle::with_template(match unit {
        Unit::Bytes => "{msg} {wide_bar} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta} left",
        Unit::Tokens => "{msg} {wide_bar} {pos}/{len} tokens",
        Unit::Runs => "{msg} {wide_bar} {pos}/{len} runs",
    });
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Moves a bar. One that would be full at once is not drawn: a flicker helps nobody.
pub fn advance(bar: &ProgressBar, progress: Progress) {
    if bar.elapsed() > Duration::from_millis(300) {
        bar.set_length(progress.total);
        bar.set_position(progress.done);
    }
}

/// Bytes for a person, in the units of the memory plan: 1.5 GB.
pub fn bytes(n: u64) -> String {
    match n {
        0..1_000 => format!("{n} B"),
        1_000..1_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.1} GB", n as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_wrap_at_the_width_and_never_break_inside() {
        let parts = ["12 tokens", "34 tok/s", "context 46/512"];
        let cases: [(usize, &[&str]); 3] = [
            (80, &["12 tokens · 34 tok/s · context 46/512"]),
            (24, &["12 tokens · 34 tok/s", "context 46/512"]),
            (3, &["12 tokens", "34 tok/s", "context 46/512"]),
        ];
        for (width, expected) in cases {
            assert_eq!(wrap(&parts, " · ", width), expected, "at {width} columns");
        }
    }

    #[test]
    fn a_models_text_cannot_drive_the_terminal() {
        assert_eq!(without_controls("a\tb\n"), "a\tb\n");
        assert_eq!(without_controls("\u{1b}]0;title\u{7}x\u{9b}2J\r"), "]0;titlex2J");
    }

    #[test]
    fn bytes_are_shown_in_decimal_units() {
        for (n, expected) in [(0, "0 B"), (999, "999 B"), (1_000, "1.0 kB"), (1_500_000_000, "1.5 GB")] {
            assert_eq!(bytes(n), expected);
        }
    }
}
