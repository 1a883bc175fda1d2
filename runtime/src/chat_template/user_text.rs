//! Keeps control tokens that are spelt in a message from becoming control tokens.
//!
//! Before rendering, each spelling in the input is put between two marks, characters that occur nowhere else. The
//! marks are found again in the rendered text and taken out: what stood between them is the user's. A template that
//! looks at its input (splits at `</think>`, strips) may come out a little different with marks in it; then the
//! spellings of both texts are matched up in their order.

use std::ops::Range;

use serde_json::Value;

use super::ChatInput;
use super::values::MARKS;
use crate::tokenizer::Tokenizer;

/// The spellings that count as control tokens in a chat, the longest first.
pub(super) struct ControlTokens {
    /// Those of every message.
    all: Vec<String>,
    /// Those of an assistant's messages: a model writes `<think>` itself, but never a special token.
    special: Vec<String>,
}

/// An input with marks in it.
pub(super) struct Marked {
    pub(super) input: ChatInput,
    marks: [char; 3],
}

/// Candidates for marks: old musical signs, which are printable and have no case, so that Python's `repr` and case
/// changes leave them alone.
const MARK_CHARACTERS: std::ops::RangeInclusive<char> = '\u{1d000}'..='\u{1d0f5}';

// The marks: before and behind a spelling, and at the end of a text that another text could complete to one.
const OPEN: usize = 0;
const CLOSE: usize = 1;
const JOINT: usize = 2;

/// Whether a token that is not flagged as special is one by its looks: `<|…|>`, `<s>`, `</s>`.
pub(super) fn looks_like_control(token: &str) -> bool {
    token.len() > 4 && token.starts_with("<|") && token.ends_with("|>") || matches!(token, "<s>" | "</s>")
}

impl ControlTokens {
    /// Special tokens, those that look like one, and the added tokens that the template itself writes (the
    /// reference's rule), except white space.
    pub(super) fn new(tokenizer: &Tokenizer, template: &str) -> ControlTokens {
        let mut all = Vec::new();
        let mut special = Vec::new();
        for (id, token) in tokenizer.added_tokens() {
            let content = &token.content;
            if content.chars().all(char::is_whitespace) {
                continue;
            }
            let is_special = tokenizer.is_special(id) || looks_like_control(content);
            if is_special {
                special.push(content.clone());
            }
            if is_special || template.contains(content.as_str()) {
                all.push(content.clone());
            }
        }
        for tokens in [&mut all, &mut special] {
            tokens.sort_by(|a, b| b.len().cmp(&a.len()).then(a.cmp(b)));
        }
        ControlTokens { all, special }
    }

    /// The input with marks; None if it spells no control token.
    pub(super) fn mark(&self, input: &ChatInput, template: &str) -> Option<Marked> {
        let documents = input.variables.get("documents");
        let spelt = |value: &Value| any_text(value, &|text| self.all.iter().any(|token| crosses(text, token)));
        if !spelt(&input.messages) && !spelt(&input.tools) && !documents.is_some_and(spelt) {
            return None;
        }
        let everything =
            Value::Array(vec![input.messages.clone(), input.tools.clone(), Value::Object(input.variables.clone())]);
        let occurs = |mark: char| template.contains(mark) || any_text(&everything, &|text| text.contains(mark));
        let mut free = MARK_CHARACTERS.filter(|&mark| !occurs(mark));
        let marks = [free.next()?, free.next()?, free.next()?];
        let mut marked = Marked { input: input.clone(), marks };
        marked.input.variables.insert(MARKS.to_owned(), Value::from(marks.iter().collect::<String>()));
        if let Value::Array(messages) = &mut marked.input.messages {
            for message in messages {
                let by_model = message.get("role").is_some_and(|role| role == "assistant");
                let tokens = if by_model { &self.special } else { &self.all };
                mark_texts(message, tokens, marks);
            }
        }
        mark_texts(&mut marked.input.tools, &self.all, marks);
        if let Some(documents) = marked.input.variables.get_mut("documents") {
            mark_texts(documents, &self.all, marks);
        }
        Some(marked)
    }

    /// Where control tokens are spelt in `text`.
    fn spellings(&self, text: &str) -> Vec<Range<usize>> {
        find(text, &self.all)
    }
}

impl Marked {
    /// The text to encode and the ranges of it that are the user's spellings, from the text rendered with marks and
    /// the text rendered without.
    ///
    /// The text to encode is the one without marks, unless the template made so different a text with marks that
    /// they do not even spell the same control tokens: then it is the marked one, marks taken out, since there the
    /// user's part is known.
    pub(super) fn spans(&self, rendered: &str, text: &str, control: &ControlTokens) -> (String, Vec<Range<usize>>) {
        let mut clean = String::with_capacity(rendered.len());
        let mut marks = Vec::new();
        for character in rendered.chars() {
            if self.marks.contains(&character) {
                marks.push((clean.len(), character));
            } else {
                clean.push(character);
            }
        }
        let spelt = control.spellings(&clean);
        let is_users = |range: &Range<usize>| {
            let first = marks.partition_point(|(at, _)| *at < range.start);
            let touching = marks.iter().skip(first).take_while(|(at, _)| *at <= range.end);
            let (mut opened, mut closed, mut inside) = (false, false, false);
            for &(at, mark) in touching {
                opened |= at == range.start && mark == self.marks[OPEN];
                closed |= at == range.end && mark == self.marks[CLOSE];
                inside |= at > range.start && at < range.end;
            }
            opened && closed || inside
        };
        let users: Vec<bool> = spelt.iter().map(is_users).collect();
        let in_text = control.spellings(text);
        let same = spelt.len() == in_text.len()
            && spelt.iter().zip(&in_text).all(|(a, b)| clean.get(a.clone()) == text.get(b.clone()));
        let pick = |ranges: Vec<Range<usize>>| {
            ranges.into_iter().zip(&users).filter(|(_, users)| **users).map(|(range, _)| range).collect()
        };
        if same { (text.to_owned(), pick(in_text)) } else { (clean, pick(spelt)) }
    }
}

/// Whether `text` contains `token`, or begins or ends with a part of it that another text could complete.
fn crosses(text: &str, token: &str) -> bool {
    text.contains(token) || ends_inside(text, token) || begins_inside(text, token)
}

/// Whether `text` ends with a beginning of `token` that is long enough to be meant as one.
fn ends_inside(text: &str, token: &str) -> bool {
    token.char_indices().skip(2).any(|(end, _)| token.get(..end).is_some_and(|part| text.ends_with(part)))
}

fn begins_inside(text: &str, token: &str) -> bool {
    let parts = token.char_indices().skip(1).map(|(start, _)| start);
    parts
        .into_iter()
        .any(|start| token.get(start..).is_some_and(|part| part.chars().count() > 1 && text.starts_with(part)))
}

fn any_text(value: &Value, test: &dyn Fn(&str) -> bool) -> bool {
    match value {
        Value::String(text) => test(text),
        Value::Array(items) => items.iter().any(|item| any_text(item, test)),
        Value::Object(fields) => fields.values().any(|field| any_text(field, test)),
        _ => false,
    }
}

fn mark_texts(value: &mut Value, tokens: &[String], marks: [char; 3]) {
    match value {
        Value::String(text) => *text = marked(text, tokens, marks),
        Value::Array(items) => items.iter_mut().for_each(|item| mark_texts(item, tokens, marks)),
        Value::Object(fields) => fields.values_mut().for_each(|field| mark_texts(field, tokens, marks)),
        _ => {}
    }
}

fn marked(text: &str, tokens: &[String], marks: [char; 3]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut from = 0;
    // A part of a token at an end gets a mark there, so that two texts put together cannot make one.
    if tokens.iter().any(|token| begins_inside(text, token)) {
        out.push(marks[JOINT]);
    }
    for range in find(text, tokens) {
        out.push_str(text.get(from..range.start).unwrap_or(""));
        out.push(marks[OPEN]);
        out.push_str(text.get(range.clone()).unwrap_or(""));
        out.push(marks[CLOSE]);
        from = range.end;
    }
    out.push_str(text.get(from..).unwrap_or(""));
    if tokens.iter().any(|token| ends_inside(text, token)) {
        out.push(marks[JOINT]);
    }
    out
}

/// The leftmost-longest occurrences of `tokens` (sorted, the longest first) in `text`.
fn find(text: &str, tokens: &[String]) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(rest) = text.get(at..) {
        let Some(first) = rest.chars().next() else { break };
        match tokens.iter().find(|token| !token.is_empty() && rest.starts_with(token.as_str())) {
            Some(token) => {
                found.push(at..at + token.len());
                at += token.len();
            }
            None => at += first.len_utf8(),
        }
    }
    found
}
