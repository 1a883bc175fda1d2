//! Tokenizer and chat template of a model's folder, without the model.

use std::borrow::Cow;
use std::path::Path;

use crate::chat_template::ChatTemplate;
use crate::error::Result;
use crate::tokenizer::Tokenizer;

/// The text half of a model: neither weights nor config.json are needed.
#[derive(Clone, Debug)]
pub struct TextFiles {
    tokenizer: Tokenizer,
}

impl TextFiles {
    /// Opens the tokenizer of a folder, of the folder of a .safetensors file, or of a tokenizer.json.
    ///
    /// # Errors
    /// [`crate::Error::Io`] if nothing is there, [`crate::Error::Tokenizer`] if there is no tokenizer or a bad one.
    pub fn open(path: impl AsRef<Path>) -> Result<TextFiles> {
        let _ = path.as_ref();
        todo!()
    }

    /// The same from files in memory: their names (as in a folder) and contents.
    ///
    /// # Errors
    /// As [`Self::open`]; messages name the files as they are named here.
    pub fn from_bytes(files: Vec<(String, Cow<'static, [u8]>)>) -> Result<TextFiles> {
        let _ = files;
        todo!()
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The chat template; `None` if there is none.
    ///
    /// # Errors
    /// [`crate::Error::ChatTemplate`] if there is one that cannot be used.
    pub fn chat_template(&self) -> Result<Option<&ChatTemplate>> {
        todo!()
    }
}
