//! What `infer bench` prints: a table line by line as it is measured, or one JSON array at the end.

use anyhow::Result;
use serde_json::{Value, json};

use super::Subject;
use super::measure::{Limit, Measured, Phase, sum};
use crate::output;
use crate::terminal::{escape_controls, stdout_width};

/// How the results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Columns for a terminal.
    Text,
    /// A table for a document.
    Markdown,
    /// An array of objects.
    Json,
}

/// Titles of the columns and their widths in text.
const COLUMNS: [(&str, usize); 11] = [
    ("threads", 7),
    ("batch", 5),
    ("depth", 5),
    ("phase", 7),
    ("tokens", 6),
    ("tok/s", 8),
    ("min–max", 17),
    ("GB/s", 6),
    ("GOPS", 7),
    ("limit", 16),
    ("share", 5),
];

/// Columns that a narrow terminal goes without, those first that others say most of.
const EXPENDABLE: [&str; 7] = ["GOPS", "GB/s", "min–max", "limit", "tokens", "batch", "depth"];

/// Between columns of text.
const GAP: &str = "  ";

/// Results on their way to standard output.
pub struct Report {
    style: Style,
    profile: bool,
    /// Which columns are shown.
    shown: [bool; COLUMNS.len()],
    /// Of a file, all results; of a table nothing.
    objects: Vec<Value>,
    /// Lines of profiles, shown below the table.
    profiles: Vec<String>,
}

impl Report {
    /// Begins it; `subject` is the line above a table.
    pub fn new(style: Style, profile: bool, subject: String) -> Result<Report> {
        let width = stdout_width().filter(|_| style == Style::Text).unwrap_or(usize::MAX);
        let report = Report { style, profile, shown: shown(width), objects: Vec::new(), profiles: Vec::new() };
        if style != Style::Json {
            output::print(&format!("{}\n\n", escape_controls(&subject)))?;
            output::print(&report.line(&COLUMNS.map(|(title, _)| title.to_owned())))?;
            if style == Style::Markdown {
                output::print(&format!("|{}\n", "---:|".repeat(COLUMNS.len())))?;
            }
        }
        Ok(report)
    }

    /// Adds one result.
    pub fn add(&mut self, subject: &Subject, threads: usize, measured: &Measured) -> Result<()> {
        if self.style == Style::Json {
            self.objects.push(object(subject, threads, measured, self.profile));
            return Ok(());
        }
        let Measured { case, tok_s: [median, least, most], gb_s, gops, limit_value, share, .. } = measured;
        let limit = match measured.limit {
            Limit::Memory => format!("memory {limit_value:.1}"),
            Limit::Compute => format!("compute {limit_value:.0}"),
        };
        let cells = [
            threads.to_string(),
            case.batch.to_string(),
            case.depth.to_string(),
            phase(case.phase).to_owned(),
            case.tokens.to_string(),
            format!("{median:.2}"),
            format!("{least:.2}–{most:.2}"),
            format!("{gb_s:.1}"),
            format!("{gops:.0}"),
            limit,
            format!("{share:.2}"),
        ];
        if self.profile {
            self.profiles.push(self.profile_lines(threads, measured));
        }
        output::print(&self.line(&cells))
    }

    /// Ends it.
    pub fn finish(self) -> Result<()> {
        if self.style == Style::Json {
            let objects: Vec<String> = self.objects.iter().map(|object| format!("  {object}")).collect();
            return output::print(&format!("[\n{}\n]\n", objects.join(",\n")));
        }
        self.profiles.iter().try_for_each(|lines| output::print(lines))
    }

    fn line(&self, cells: &[String; COLUMNS.len()]) -> String {
        if self.style == Style::Markdown {
            return format!("| {} |\n", cells.join(" | "));
        }
        let shown = cells.iter().zip(COLUMNS).zip(self.shown).filter(|(_, shown)| *shown);
        let padded = shown.map(|((cell, (_, width)), _)| format!("{cell:>width$}"));
        padded.collect::<Vec<_>>().join(GAP) + "\n"
    }

    /// Where the time of a token goes.
    fn profile_lines(&self, threads: usize, measured: &Measured) -> String {
        let case = &measured.case;
        let (phase, total) = (phase(case.phase), sum(&measured.profile).as_secs_f64());
        let (batch, depth) = (case.batch, case.depth);
        let plural = if threads == 1 { "" } else { "s" };
        let mut lines = format!("\n{phase}, {threads} thread{plural}, batch {batch}, depth {depth}: time of a token\n");
        if self.style == Style::Markdown {
            lines += "\n| operation | ms | share |\n|---|---:|---:|\n";
        }
        for (operation, time) in &measured.profile {
            let (name, ms) = (operation.name(), time.as_secs_f64() * 1e3);
            let percent = 100.0 * time.as_secs_f64() / total;
            lines += &match self.style {
                Style::Markdown => format!("| {name} | {ms:.4} | {percent:.1} % |\n"),
                _ => format!("{name:>16}  {ms:>9.4} ms  {percent:>5.1} %\n"),
            };
        }
        lines
    }
}

/// The columns that fit a terminal of `width` columns.
fn shown(width: usize) -> [bool; COLUMNS.len()] {
    let mut shown = [true; COLUMNS.len()];
    for name in EXPENDABLE {
        let taken = COLUMNS.iter().zip(shown).filter(|(_, shown)| *shown).map(|((_, width), _)| width + GAP.len());
        if taken.sum::<usize>() <= width.saturating_add(GAP.len()) {
            break;
        }
        shown.iter_mut().zip(COLUMNS).filter(|(_, (title, _))| *title == name).for_each(|(shown, _)| *shown = false);
    }
    shown
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Prefill => "prefill",
        Phase::Decode => "decode",
    }
}

fn object(subject: &Subject, threads: usize, measured: &Measured, with_profile: bool) -> Value {
    let Measured { case, tok_s: [median, least, most], .. } = measured;
    let limit = match measured.limit {
        Limit::Memory => "memory",
        Limit::Compute => "compute",
    };
    let mut object = json!({
        "model": subject.model, "format": subject.format, "bits_per_weight": subject.cost.bits_per_weight(),
        "kv": subject.kv, "isa": subject.isa, "threads": threads, "batch": case.batch, "depth": case.depth,
        "tokens": case.tokens, "phase": phase(case.phase), "tok_s": median, "tok_s_min": least, "tok_s_max": most,
        "gb_s": measured.gb_s, "gops": measured.gops, "limit": limit, "limit_value": measured.limit_value,
        "share": measured.share,
    });
    if with_profile {
        let milliseconds = |(operation, time): &(infer_runtime::Operation, std::time::Duration)| {
            (operation.name().to_owned(), json!(time.as_secs_f64() * 1e3))
        };
        object["profile_ms"] = measured.profile.iter().map(milliseconds).collect::<serde_json::Map<_, _>>().into();
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrow_terminals_get_the_columns_that_fit() {
        for (width, hidden) in [(usize::MAX, 0), (109, 0), (108, 1), (80, 3), (60, 4), (40, 6), (0, 7)] {
            let hides = shown(width).iter().filter(|shown| !**shown).count();
            assert_eq!(hides, hidden, "at {width} columns");
        }
        for name in EXPENDABLE {
            assert!(COLUMNS.iter().any(|(title, _)| *title == name), "no column is called {name}");
        }
    }
}
