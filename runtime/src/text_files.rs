//! Tokenizer and chat template among a model's files. Neither needs weights or config.json, and a model that has none
//! of them, or bad ones, still computes logits.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use crate::chat_template::{ChatTemplate, TemplateFiles};
use crate::error::{Error, Result};
use crate::load::{ModelFile, ModelFiles};
use crate::model::no_tokenizer;
use crate::tokenizer::{Tokenizer, TokenizerFiles};

/// The one file that a tokenizer needs.
pub(crate) const TOKENIZER: &str = "tokenizer.json";
/// The largest vocabularies in use come in files of about 35 MB.
const LARGEST_TOKENIZER: u64 = 256 << 20;
/// Any other of these files.
const LARGEST_COMPANION: u64 = 16 << 20;

/// The text half of a model: neither weights nor config.json are needed.
#[derive(Clone, Debug)]
pub struct TextFiles {
    tokenizer: Tokenizer,
    chat_template: Companion<ChatTemplate>,
}

impl TextFiles {
    /// Opens the tokenizer of a folder, or of the folder that a file (weights, tokenizer.json) lies in.
    ///
    /// # Errors
    /// [`Error::File`] if nothing is there, [`Error::Tokenizer`] if there is no tokenizer or a bad one.
    pub fn open(path: impl AsRef<Path>) -> Result<TextFiles> {
        TextFiles::from_files(&ModelFiles::open(path.as_ref())?)
    }

    /// The same from files in memory: their names (as in a folder) and contents.
    ///
    /// # Errors
    /// As [`Self::open`]; messages name the files as they are named here.
    pub fn from_bytes(files: Vec<(String, Cow<'static, [u8]>)>) -> Result<TextFiles> {
        TextFiles::from_files(&ModelFiles::from_bytes(files))
    }

    fn from_files(files: &ModelFiles) -> Result<TextFiles> {
        let tokenizer = match read_tokenizer(files)? {
            Some(tokenizer) => tokenizer,
            None => return Err(no_tokenizer(&files.path(TOKENIZER))),
        };
        Ok(TextFiles { tokenizer, chat_template: Companion::chat_template(files) })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The chat template; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::ChatTemplate`] if there is one that cannot be used.
    pub fn chat_template(&self) -> Result<Option<&ChatTemplate>> {
        self.chat_template.get()
    }
}

/// Something that a model may lack, and whose faults concern only those who ask for it.
#[derive(Clone, Debug)]
pub(crate) enum Companion<T> {
    Missing,
    Usable(T),
    /// Its files are there but wrong: the parts of an error, which is made anew for everyone who asks.
    Bad {
        error: fn(PathBuf, String) -> Error,
        path: PathBuf,
        problem: String,
    },
}

impl Companion<Tokenizer> {
    /// The tokenizer among `files`.
    pub fn tokenizer(files: &ModelFiles) -> Self {
        let error = |path, problem| Error::Tokenizer { path, problem };
        Companion::new(read_tokenizer(files), files.path(TOKENIZER), error)
    }
}

impl Companion<ChatTemplate> {
    /// The chat template among `files`.
    pub fn chat_template(files: &ModelFiles) -> Self {
        let error = |path, problem| Error::ChatTemplate { path, problem };
        Companion::new(read_chat_template(files), files.folder().to_owned(), error)
    }
}

impl<T> Companion<T> {
    fn new(read: Result<Option<T>>, path: PathBuf, error: fn(PathBuf, String) -> Error) -> Companion<T> {
        match read {
            Ok(Some(companion)) => Companion::Usable(companion),
            Ok(None) => Companion::Missing,
            Err(
                Error::File { path, problem }
                | Error::Tokenizer { path, problem }
                | Error::ChatTemplate { path, problem },
            ) => Companion::Bad { error, path, problem },
            Err(Error::Memory(problem)) => Companion::Bad { error: |_, problem| Error::Memory(problem), path, problem },
            Err(other) => Companion::Bad { error, path, problem: other.to_string() },
        }
    }

    /// The companion; none if the model has none.
    pub fn get(&self) -> Result<Option<&T>> {
        match self {
            Companion::Usable(companion) => Ok(Some(companion)),
            Companion::Missing => Ok(None),
            Companion::Bad { error, path, problem } => Err(error(path.clone(), problem.clone())),
        }
    }

    /// The companion, if there is one that can be used.
    pub fn usable(&self) -> Option<&T> {
        match self {
            Companion::Usable(companion) => Some(companion),
            Companion::Missing | Companion::Bad { .. } => None,
        }
    }
}

/// The tokenizer, if there is a tokenizer.json.
fn read_tokenizer(files: &ModelFiles) -> Result<Option<Tokenizer>> {
    let Some(ModelFile { path, bytes }) = files.read(TOKENIZER, LARGEST_TOKENIZER)? else { return Ok(None) };
    let companion = |name| files.read_json(name, LARGEST_COMPANION);
    let tokenizer = Tokenizer::from_files(&TokenizerFiles {
        path: &path,
        tokenizer: &bytes,
        config: companion("tokenizer_config.json")?.as_ref(),
        special_tokens_map: companion("special_tokens_map.json")?.as_ref(),
        added_tokens: companion("added_tokens.json")?.as_ref(),
    })?;
    Ok(Some(tokenizer))
}

/// The chat template, if any of the files in which one may be has one.
fn read_chat_template(files: &ModelFiles) -> Result<Option<ChatTemplate>> {
    const ADDITIONAL: &str = "additional_chat_templates";
    let text = |name: &str| -> Result<Option<String>> {
        let Some(ModelFile { path, bytes }) = files.read(name, LARGEST_COMPANION)? else { return Ok(None) };
        let text = std::str::from_utf8(&bytes).map_err(|error| Error::ChatTemplate {
            path,
            problem: format!("not UTF-8 after byte {}", error.valid_up_to()),
        })?;
        Ok(Some(text.to_owned()))
    };
    let mut additional = Vec::new();
    for name in files.names(ADDITIONAL)? {
        if let Some(stem) = name.strip_suffix(".jinja")
            && let Some(text) = text(&format!("{ADDITIONAL}/{name}"))?
        {
            additional.push((stem.to_owned(), text));
        }
    }
    ChatTemplate::from_files(&TemplateFiles {
        folder: files.folder(),
        jinja: text("chat_template.jinja")?.as_deref(),
        json: files.read_json("chat_template.json", LARGEST_COMPANION)?.as_ref(),
        config: files.read_json("tokenizer_config.json", LARGEST_COMPANION)?.as_ref(),
        additional: &additional,
    })
}
