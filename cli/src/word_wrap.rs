//! Breaks the lines of a text between words while it streams to a terminal.
//!
//! A word is shown as its letters come, so that nothing waits for its end. If it grows past the edge, it is erased
//! and begins the next line. The last column stays empty: terminals differ in where their cursor is once it is filled.

use console::measure_text_width;

/// Where the text stands on its line.
#[derive(Default)]
pub struct WordWrap {
    /// Columns in use on the line.
    column: usize,
    /// The word at the end of the line, as far as it has come.
    word: String,
}

impl WordWrap {
    /// What to write so that `text` goes on from where the last piece ended, on a terminal of `width` columns.
    pub fn push(&mut self, text: &str, width: usize) -> String {
        let edge = width.saturating_sub(1).max(1);
        let mut out = String::with_capacity(text.len());
        let mut letter = [0; 4];
        for c in text.chars() {
            let columns = measure_text_width(c.encode_utf8(&mut letter));
            match c {
                '\n' => {
                    out.push('\n');
                    self.column = 0;
                    self.word.clear();
                }
                _ if c.is_whitespace() => {
                    self.word.clear();
                    // A tab stops at the next multiple of eight.
                    let end = if c == '\t' { (self.column / 8 + 1) * 8 } else { self.column + columns };
                    if end > edge {
                        out.push('\n');
                        self.column = 0;
                    } else {
                        out.push(c);
                        self.column = end;
                    }
                }
                _ => {
                    if self.column + columns > edge {
                        self.break_line(&mut out);
                    }
                    out.push(c);
                    self.word.push(c);
                    self.column += columns;
                }
            }
        }
        out
    }

    /// Begins a new line with the word that did not fit; a word of a whole line is cut.
    fn break_line(&mut self, out: &mut String) {
        let columns = measure_text_width(&self.word);
        if columns == 0 || columns >= self.column {
            out.push('\n');
            self.word.clear();
            self.column = 0;
        } else {
            // Back to the word's first letter, and erase from there (ECMA-48: CUB, EL).
            out.push_str(&format!("\u{1b}[{columns}D\u{1b}[K\n{}", self.word));
            self.column = columns;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines that a terminal shows after `written`.
    fn screen(written: &str) -> Vec<String> {
        let mut lines = vec![String::new()];
        let mut rest = written;
        while let Some(c) = rest.chars().next() {
            let line = lines.last_mut().expect("a line");
            if let Some(sequence) = rest.strip_prefix("\u{1b}[") {
                let end = sequence.find(|c: char| c.is_alphabetic()).expect("a final letter");
                if &sequence[end..=end] == "D" {
                    let back: usize = sequence[..end].parse().expect("a number of columns");
                    line.truncate(line.char_indices().rev().nth(back - 1).map_or(0, |(start, _)| start));
                }
                rest = &sequence[end + 1..];
                continue;
            }
            if c == '\n' {
                lines.push(String::new())
            } else {
                line.push(c)
            }
            rest = &rest[c.len_utf8()..];
        }
        lines
    }

    #[test]
    fn lines_break_between_words_wherever_the_pieces_end() {
        let cases: [(&str, usize, &[&str]); 7] = [
            ("so the fox went home", 12, &["so the fox ", "went home"]),
            ("so the fox\nwent", 12, &["so the fox", "went"]),
            ("abcdefghij klm", 6, &["abcde", "fghij", "klm"]),
            ("a bcdefghij", 6, &["a ", "bcdef", "ghij"]),
            ("12345 789", 6, &["12345", "789"]),
            ("ä漢字漢字 x", 6, &["ä漢字", "漢字 ", "x"]),
            ("a\tb", 20, &["a\tb"]),
        ];
        for (text, width, expected) in cases {
            for size in 1..=text.chars().count() {
                let letters: Vec<char> = text.chars().collect();
                let mut wrap = WordWrap::default();
                let written: String = letters.chunks(size).map(|c| wrap.push(&String::from_iter(c), width)).collect();
                assert_eq!(screen(&written), expected, "{text:?} at {width} columns in pieces of {size}");
            }
        }
    }
}
