//! Token ids to text, one id after the other, for showing an answer while it is made.
//!
//! A token may be a part of a character, and how a token is written may depend on those around it (SentencePiece
//! drops the first space of a text; a run of byte tokens that is not UTF-8 becomes one `�` per byte). So text is
//! given out once no later token can change it: the pieces and the rest from `finish` put together are always equal
//! to decoding all ids at once.

use crate::error::Result;
use crate::tokenizer::{ByteTokens, Tokenizer};

/// Undecided tokens beyond this many are given out as they are; no decoder of a language model needs it.
const MOST_PENDING: usize = 64;

/// Decodes a stream of ids; made by [`Tokenizer::stream`].
#[derive(Clone, Debug)]
pub struct TextStream {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// Byte-level vocabularies: the bytes that are not a whole character yet.
    bytes: Vec<u8>,
    /// Other vocabularies: the tokens before `pending`, with their text. They make the decoder treat `pending` as
    /// what follows, not as the beginning of a text.
    context: Vec<u32>,
    context_text: String,
    /// The tokens whose text is not given out yet.
    pending: Vec<u32>,
}

impl TextStream {
    pub(crate) fn new(tokenizer: Tokenizer, skip_special: bool) -> TextStream {
        TextStream {
            tokenizer,
            skip_special,
            bytes: Vec::new(),
            context: Vec::new(),
            context_text: String::new(),
            pending: Vec::new(),
        }
    }

    /// Takes the next id and returns the text that is now certain, which may be empty.
    ///
    /// # Errors
    /// [`crate::Error::Tokenizer`] if the decoder refuses the tokens.
    pub fn push(&mut self, id: u32) -> Result<String> {
        let Some(token) = self.tokenizer.id_to_token(id) else {
            return Ok(String::new());
        };
        if self.skip_special && self.tokenizer.is_special(id) {
            return Ok(String::new());
        }
        if self.tokenizer.byte_tokens() == ByteTokens::ByteLevel {
            append_byte_level(&mut self.bytes, &token);
            return Ok(self.whole_characters());
        }
        self.pending.push(id);
        if self.tokenizer.byte_tokens() == ByteTokens::Fallback && is_byte_token(&token) {
            return Ok(String::new());
        }
        let text = self.text()?;
        let undecided = text.ends_with('\u{fffd}') || !text.starts_with(&self.context_text);
        if undecided && self.pending.len() < MOST_PENDING {
            return Ok(String::new());
        }
        let news = self.news(&text);
        self.settle()?;
        Ok(news)
    }

    /// The stream has ended: returns the text that was held back.
    ///
    /// # Errors
    /// [`crate::Error::Tokenizer`] if the decoder refuses the tokens.
    pub fn finish(&mut self) -> Result<String> {
        if self.tokenizer.byte_tokens() == ByteTokens::ByteLevel {
            return Ok(String::from_utf8_lossy(&std::mem::take(&mut self.bytes)).into_owned());
        }
        if self.pending.is_empty() {
            return Ok(String::new());
        }
        let text = self.text()?;
        let news = self.news(&text);
        self.settle()?;
        Ok(news)
    }

    fn text(&self) -> Result<String> {
        let ids: Vec<u32> = self.context.iter().chain(&self.pending).copied().collect();
        self.tokenizer.decode(&ids, self.skip_special)
    }

    fn news(&self, text: &str) -> String {
        let known = text.bytes().zip(self.context_text.bytes()).take_while(|(a, b)| a == b).count();
        let known = (0..=known).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        text.get(known..).unwrap_or("").to_owned()
    }

    /// The pending tokens become the context, unless they have no text of their own to lean on.
    fn settle(&mut self) -> Result<()> {
        let alone = self.tokenizer.decode(&self.pending, self.skip_special)?;
        if alone.is_empty() && self.context.len() < MOST_PENDING {
            self.context.append(&mut self.pending);
            self.context_text = self.tokenizer.decode(&self.context, self.skip_special)?;
        } else {
            self.context = std::mem::take(&mut self.pending);
            self.context_text = alone;
        }
        Ok(())
    }

    /// Takes the whole characters off the front of `bytes`; what can never become one is `�`, by the same rule as
    /// `String::from_utf8_lossy`.
    fn whole_characters(&mut self) -> String {
        let mut text = String::new();
        let mut used = 0;
        for chunk in self.bytes.utf8_chunks() {
            text.push_str(chunk.valid());
            used += chunk.valid().len();
            let invalid = chunk.invalid();
            if invalid.is_empty() {
                continue;
            }
            if used + invalid.len() == self.bytes.len() && may_be_completed(invalid) {
                break;
            }
            text.push('\u{fffd}');
            used += invalid.len();
        }
        self.bytes.drain(..used);
        text
    }
}

/// Whether bytes that are not UTF-8 are the beginning of a character.
fn may_be_completed(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

/// Whether a token is one byte, written `<0x0A>`.
fn is_byte_token(token: &str) -> bool {
    let digits = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}

/// Appends the bytes that a token of a byte-level vocabulary stands for. A token with a character outside of the
/// alphabet (an added one, with a space for instance) stands for itself.
fn append_byte_level(bytes: &mut Vec<u8>, token: &str) {
    let length = bytes.len();
    for character in token.chars() {
        match byte_of(character) {
            Some(byte) => bytes.push(byte),
            None => {
                bytes.truncate(length);
                bytes.extend_from_slice(token.as_bytes());
                return;
            }
        }
    }
}

/// The byte of a character of GPT-2's alphabet: printable Latin-1 is itself, the 68 other bytes are U+0100 and up.
fn byte_of(character: char) -> Option<u8> {
    let is_itself = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let code = u32::from(character);
    if code < 0x100 {
        return is_itself(code).then(|| u8::try_from(code).ok()).flatten();
    }
    (0..=255u8).filter(|&byte| !is_itself(u32::from(byte))).nth((code - 0x100) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_is_a_bijection() {
        let mut seen = [false; 256];
        for character in (0..0x200).filter_map(char::from_u32) {
            if let Some(byte) = byte_of(character) {
                assert!(!std::mem::replace(&mut seen[usize::from(byte)], true), "two characters for byte {byte}");
            }
        }
        assert!(seen.iter().all(|&s| s), "every byte has a character");
        assert_eq!(
            [byte_of('Ġ'), byte_of('Ċ'), byte_of('a'), byte_of(' ')],
            [Some(b' '), Some(b'\n'), Some(b'a'), None]
        );
    }

    #[test]
    fn byte_tokens_are_told_from_words() {
        for (token, is_byte) in
            [("<0x0A>", true), ("<0xff>", true), ("<0x1G>", false), ("<0x1>", false), ("<s>", false)]
        {
            assert_eq!(is_byte_token(token), is_byte, "{token}");
        }
    }
}
