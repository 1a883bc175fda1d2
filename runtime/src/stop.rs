//! Where an answer ends: stop tokens, and stop strings that may begin in one token and end in another.

use crate::error::{Error, Result};

/// The ids after which generation ends: a sorted set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopTokens(Vec<u32>);

impl StopTokens {
    /// The union of ids from several places (generation_config, config, tokenizer, chat template).
    pub fn new(ids: impl IntoIterator<Item = u32>) -> StopTokens {
        let mut ids: Vec<u32> = ids.into_iter().collect();
        ids.sort_unstable();
        ids.dedup();
        StopTokens(ids)
    }

    /// Whether generation ends at `id`.
    pub fn contains(&self, id: u32) -> bool {
        self.0.binary_search(&id).is_ok()
    }

    /// The ids, ascending.
    pub fn ids(&self) -> &[u32] {
        &self.0
    }
}

/// Watches a stream of text for stop strings. Text that could be the beginning of one is held back until it is
/// decided; the stop string itself is never shown.
///
/// The first stop string to be complete wins, whatever pieces the text comes in; of two that are complete at the
/// same character, the longer one.
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
    found: Option<usize>,
}

impl StopStrings {
    /// Watches for each of `stops`.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if one is empty: it would end every answer before its first character.
    pub fn new(stops: impl IntoIterator<Item = impl Into<String>>) -> Result<StopStrings> {
        let stops: Vec<String> = stops.into_iter().map(Into::into).collect();
        if stops.iter().any(String::is_empty) {
            return Err(Error::InvalidOption {
                option: "stop",
                expected: "a text of at least one character".to_owned(),
                found: "an empty text".to_owned(),
            });
        }
        Ok(StopStrings { stops, held: String::new(), found: None })
    }

    /// Takes the next piece of text and returns what may be shown now. After a stop string nothing more is shown.
    pub fn push(&mut self, text: &str) -> String {
        if self.found.is_some() {
            return String::new();
        }
        self.held.push_str(text);
        // For one stop string the first occurrence is also the first to be complete. Text before `held` was shown
        // because no stop string can begin in it.
        let complete =
            self.stops.iter().enumerate().filter_map(|(index, stop)| {
                self.held.find(stop.as_str()).map(|start| (start + stop.len(), start, index))
            });
        if let Some((_, start, index)) = complete.min() {
            self.found = Some(index);
            self.held.truncate(start);
            return std::mem::take(&mut self.held);
        }
        let undecided = self.stops.iter().map(|stop| longest_joint(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - undecided);
        std::mem::replace(&mut self.held, rest)
    }

    /// The stream has ended: returns the text that was held back.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The stop string that was met.
    pub fn found(&self) -> Option<&str> {
        self.found.and_then(|index| self.stops.get(index)).map(String::as_str)
    }
}

/// Length of the longest end of `text` that is a beginning of `stop` (and not all of it).
fn longest_joint(text: &str, stop: &str) -> usize {
    let beginnings = stop.char_indices().map(|(end, _)| end).rev();
    beginnings.into_iter().find(|&end| text.as_bytes().ends_with(&stop.as_bytes()[..end])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pushes `text` in pieces cut at `cuts`; returns what was shown and the stop string met.
    fn run(stops: &[&str], text: &str, cuts: &[usize]) -> (String, Option<String>) {
        let mut watch = StopStrings::new(stops.iter().copied()).expect("no empty stop");
        let mut shown = String::new();
        let mut from = 0;
        for &cut in cuts.iter().chain([&text.len()]) {
            shown.push_str(&watch.push(&text[from..cut]));
            from = cut;
        }
        shown.push_str(&watch.finish());
        (shown, watch.found().map(str::to_owned))
    }

    #[test]
    fn stop_strings_are_found_wherever_the_text_is_cut() {
        for (stops, text, shown, found) in [
            (vec!["STOP"], "go on STOP never", "go on ", Some("STOP")),
            (vec!["STOP"], "go on STO never", "go on STO never", None),
            (vec!["STOP"], "STSTOP", "ST", Some("STOP")),
            (vec!["aab"], "aaaab", "aa", Some("aab")),
            (vec!["ab", "abc"], "xabc", "x", Some("ab")),
            (vec!["bcd", "abcde"], "zabcdz", "za", Some("bcd")),
            (vec!["bc", "abc"], "zabcz", "z", Some("abc")),
            (vec!["\n\n", "User:"], "hi\nUser: x", "hi\n", Some("User:")),
            (vec!["é€"], "aé€b", "a", Some("é€")),
            (vec!["é€"], "aé🙂", "aé🙂", None),
            (vec!["🙂🙂"], "x🙂🙃🙂🙂y", "x🙂🙃", Some("🙂🙂")),
            (vec!["x"], "x", "", Some("x")),
            (vec!["xyz"], "xy", "xy", None),
            (vec![], "anything", "anything", None),
        ] {
            let ends: Vec<usize> = (1..text.len()).filter(|&i| text.is_char_boundary(i)).collect();
            for set in 0..1u32 << ends.len().min(12) {
                let cuts: Vec<usize> = ends
                    .iter()
                    .copied()
                    .enumerate()
                    .filter(|(bit, _)| set >> bit & 1 == 1)
                    .map(|(_, end)| end)
                    .collect();
                let expected = (shown.to_owned(), found.map(str::to_owned));
                assert_eq!(run(&stops, text, &cuts), expected, "stops {stops:?}, text {text:?} cut at {cuts:?}");
            }
        }
    }

    #[test]
    fn only_what_may_be_a_beginning_is_held_back() {
        let mut watch = StopStrings::new(["<|end|>", "\n\nQ"]).expect("no empty stop");
        for (piece, shown) in
            [("Hello", "Hello"), (" <", " "), ("b", "<b"), ("\n", ""), ("\n", ""), ("\n", "\n"), ("A", "\n\nA")]
        {
            assert_eq!(watch.push(piece), shown, "after {piece:?}");
        }
    }

    #[test]
    fn an_empty_stop_string_is_refused() {
        assert!(matches!(StopStrings::new(["a", ""]), Err(Error::InvalidOption { option: "stop", .. })));
    }

    #[test]
    fn stop_tokens_are_a_union() {
        let stops = StopTokens::new([7, 2, 7, 0]);
        assert_eq!(stops.ids(), [0, 2, 7]);
        assert!(stops.contains(2) && !stops.contains(3));
    }
}
