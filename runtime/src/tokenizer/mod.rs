//! Text to token ids and back, as the reference library's fast tokenizers do it.
//!
//! tokenizer.json decides everything: splitting, merging, and through its post-processor the begin and end tokens
//! (`add_bos_token` and `add_eos_token` of tokenizer_config.json do nothing beside a tokenizer.json, as in the
//! reference). Its truncation and padding are not applied, and `clean_up_tokenization_spaces` is ignored.
//! tokenizer_config.json names the special tokens and may add tokens or change their flags.

mod added;
mod encode;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use tokenizers::{AddedToken, AddedVocabulary, DecoderWrapper};

use crate::error::{Error, Result};
use crate::fence::{fenced, one_line};
use crate::load::content;
use crate::text_stream::TextStream;

/// Whether the begin and end tokens that the tokenizer's post-processor asks for are added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddSpecial {
    /// Add what the post-processor asks for.
    Yes,
    /// Add none. Special tokens that are written in the text are still recognised.
    No,
}

/// The files that a tokenizer is made of, already read.
#[derive(Clone, Copy, Debug)]
pub struct TokenizerFiles<'a> {
    /// Where tokenizer.json came from, for messages.
    pub path: &'a Path,
    /// The content of tokenizer.json.
    pub tokenizer: &'a [u8],
    /// tokenizer_config.json.
    pub config: Option<&'a Value>,
    /// special_tokens_map.json; read, as in the reference, only if the config has no `added_tokens_decoder`.
    pub special_tokens_map: Option<&'a Value>,
    /// added_tokens.json; read under the same condition.
    pub added_tokens: Option<&'a Value>,
}

/// A tokenizer; cheap to clone and to share between threads.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    path: PathBuf,
    core: tokenizers::Tokenizer,
    /// `bos_token` and so on, as the config names them; the reference shows these to chat templates.
    named: BTreeMap<&'static str, String>,
    /// 1 + the largest id of tokenizer.json.
    vocab_size: usize,
    /// How the decoder treats tokens that are not whole characters.
    bytes: ByteTokens,
    /// Facts about the pipeline that [`encode`] needs.
    plan: encode::Plan,
}

/// How parts of characters are spelt in the vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ByteTokens {
    /// Every token is a row of bytes, each written as one printable character (GPT-2).
    ByteLevel,
    /// Single bytes are written `<0x0A>`; all other tokens are whole characters (SentencePiece).
    Fallback,
    /// Anything else.
    None,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("path", &self.0.path).field("vocab_size", &self.0.vocab_size).finish()
    }
}

impl Tokenizer {
    /// Builds the tokenizer.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if tokenizer.json is not one, or its companions name tokens in a way that makes no sense.
    pub fn from_files(files: &TokenizerFiles<'_>) -> Result<Tokenizer> {
        let refuse = |problem: String| Error::Tokenizer { path: files.path.to_owned(), problem };
        if let Some(problem) = content::foreign(files.tokenizer) {
            return Err(refuse(problem.to_owned()));
        }
        let mut core = fenced(|| tokenizers::Tokenizer::from_bytes(files.tokenizer))
            .map_err(|panic| refuse(format!("the tokenizer library failed on it: {panic}")))?
            .map_err(|error| refuse(explain_bad_file(files.tokenizer, &error.to_string())))?;
        let vocab_size = core.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        if vocab_size == 0 {
            return Err(refuse("the vocabulary (model.vocab) is empty".to_owned()));
        }
        fenced(|| core.with_truncation(None).map(|_| ()))
            .unwrap_or_else(|panic| Err(panic.into()))
            .map_err(|error| refuse(one_line(&error.to_string())))?;
        core.with_padding(None);
        let special = added::read(files).map_err(refuse)?;
        let named = special.add_to(&mut core).map_err(refuse)?;
        let bytes = byte_tokens(core.get_decoder());
        let plan = fenced(|| encode::Plan::new(&core)).unwrap_or_else(Err).map_err(refuse)?;
        // The tokens that the post-processor adds need not be in the vocabulary. If it fails, so does each text.
        let added = fenced(|| encode::encode(&core, &plan, "", &[], true)).unwrap_or_else(Err).unwrap_or_default();
        let vocab_size = added.iter().map(|&id| id as usize + 1).fold(vocab_size, usize::max);
        Ok(Tokenizer(Arc::new(Inner { path: files.path.to_owned(), core, named, vocab_size, bytes, plan })))
    }

    /// The token ids of `text`. Special tokens that are written in the text are recognised.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the tokenizer cannot split the text.
    pub fn encode(&self, text: &str, special: AddSpecial) -> Result<Vec<u32>> {
        self.fence(|| encode::encode(&self.0.core, &self.0.plan, text, &[], special == AddSpecial::Yes))
    }

    /// The token ids of `text` as plain words: neither special nor other added tokens are recognised in it, and
    /// none are put around it.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the tokenizer cannot split the text.
    pub fn encode_ordinary(&self, text: &str) -> Result<Vec<u32>> {
        self.fence(|| encode::encode_ordinary(&self.0.core, &self.0.plan, text))
    }

    /// The token ids of `text` (without tokens around it), where added tokens that overlap one of the byte ranges
    /// `plain` are not recognised; these are sorted and begin and end at characters.
    pub(crate) fn encode_except(&self, text: &str, plain: &[std::ops::Range<usize>]) -> Result<Vec<u32>> {
        self.fence(|| encode::encode(&self.0.core, &self.0.plan, text, plain, false))
    }

    /// The text of `ids`. Ids that are not in the vocabulary have none.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the decoder refuses the tokens.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let shown = |&id: &u32| self.id_to_token(id).is_some() && !(skip_special && self.is_special(id));
        if !ids.iter().any(shown) {
            return Ok(String::new());
        }
        self.fence(|| self.0.core.decode(ids, skip_special).map_err(|error| error.to_string()))
    }

    /// Decodes ids one after the other; see [`TextStream`].
    pub fn stream(&self, skip_special: bool) -> TextStream {
        TextStream::new(self.clone(), skip_special)
    }

    /// 1 + the largest id in tokenizer.json: the embedding must have at least as many rows.
    pub fn vocab_size(&self) -> usize {
        self.0.vocab_size
    }

    /// The id of a token, given as it stands in the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.0.core.token_to_id(token)
    }

    /// The token of an id, as it stands in the vocabulary.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.0.core.id_to_token(id)
    }

    /// Whether `id` is a special token: one that `skip_special` leaves out.
    pub fn is_special(&self, id: u32) -> bool {
        let added = self.0.core.get_added_vocabulary();
        added.get_added_tokens_decoder().get(&id).is_some_and(|token| added.is_special_token(&token.content))
            || self.id_to_token(id).is_some_and(|token| added.is_special_token(&token))
    }

    /// The begin token that the config names.
    pub fn bos_token(&self) -> Option<&str> {
        self.named("bos_token")
    }

    /// The end token that the config names.
    pub fn eos_token(&self) -> Option<&str> {
        self.named("eos_token")
    }

    /// The id of [`Self::eos_token`].
    pub fn eos_id(&self) -> Option<u32> {
        self.eos_token().and_then(|token| self.token_to_id(token))
    }

    /// The special tokens that the config names, by their key (`bos_token`, `eos_token`, `pad_token`, …).
    pub fn named_tokens(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.named.iter().map(|(key, token)| (*key, token.as_str()))
    }

    /// The file that this tokenizer came from.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    pub(crate) fn byte_tokens(&self) -> ByteTokens {
        self.0.bytes
    }

    /// Every added token with its id, special or not.
    pub(crate) fn added_tokens(&self) -> impl Iterator<Item = (u32, &AddedToken)> {
        let added: &AddedVocabulary = self.0.core.get_added_vocabulary();
        added.get_added_tokens_decoder().iter().map(|(&id, token)| (id, token))
    }

    fn named(&self, key: &str) -> Option<&str> {
        self.0.named.get(key).map(String::as_str)
    }

    fn fence<R>(&self, work: impl FnOnce() -> Result<R, String>) -> Result<R> {
        fenced(work)
            .unwrap_or_else(|panic| Err(format!("the tokenizer library failed: {panic}")))
            .map_err(|problem| Error::Tokenizer { path: self.0.path.clone(), problem: one_line(&problem) })
    }
}

fn byte_tokens(decoder: Option<&DecoderWrapper>) -> ByteTokens {
    match decoder {
        Some(DecoderWrapper::ByteLevel(_)) => ByteTokens::ByteLevel,
        Some(DecoderWrapper::ByteFallback(_)) => ByteTokens::Fallback,
        Some(DecoderWrapper::Sequence(sequence)) => {
            let parts = sequence.get_decoders();
            if parts.iter().any(|part| byte_tokens(Some(part)) == ByteTokens::Fallback) {
                ByteTokens::Fallback
            } else if let [only] = parts {
                byte_tokens(Some(only))
            } else {
                ByteTokens::None
            }
        }
        _ => ByteTokens::None,
    }
}

/// What is wrong with a tokenizer.json that the library refused with `words`: its own words rarely say.
fn explain_bad_file(bytes: &[u8], words: &str) -> String {
    let words = one_line(words);
    if bytes.is_empty() {
        return "the file is empty".to_owned();
    }
    let json: Value = match serde_json::from_slice(bytes) {
        Ok(json) => json,
        Err(error) => return format!("not JSON: {error}"),
    };
    let Value::Object(file) = &json else {
        return "not a tokenizer: expected a JSON object".to_owned();
    };
    match file.get("model") {
        Some(Value::Object(model)) => match model.get("type").and_then(Value::as_str) {
            Some("BPE" | "Unigram" | "WordPiece" | "WordLevel") | None => match model.get("vocab") {
                Some(_) => format!("not a tokenizer that can be read: {words}"),
                None => "not a tokenizer: the key model.vocab is missing".to_owned(),
            },
            Some(other) => format!("model.type is {other:?}, expected BPE, Unigram, WordPiece or WordLevel"),
        },
        Some(_) => "not a tokenizer: the key model is not an object".to_owned(),
        None => "not a tokenizer: the key model is missing".to_owned(),
    }
}
