//! The one error type of this crate. Every message is a single line that names the file and the tensor, key or
//! option, what was expected and what was found.

use std::path::{Path, PathBuf};

/// The result type of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, as one line for a person and one variant for a program.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// A model file is missing, damaged, or not what its name says.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it, with expected and found.
        problem: String,
    },
    /// A value in config.json (or another JSON file of the model) that no model can have.
    #[error("{}: {key} is {found}, expected {expected}", path.display())]
    Config {
        /// The JSON file.
        path: PathBuf,
        /// The key as it is spelt in the file.
        key: String,
        /// The value as it stands in the file, shortened.
        found: String,
        /// What would be accepted.
        expected: String,
    },
    /// A tensor that does not fit the config.
    #[error("{}: tensor {tensor}: expected {expected}, found {found}", path.display())]
    Tensor {
        /// The safetensors file.
        path: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// The shape, type or property that the config asks for.
        expected: String,
        /// What the file has.
        found: String,
    },
    /// The architecture or a feature of the checkpoint is one that this crate does not have.
    #[error("{}: unsupported {what}", path.display())]
    Unsupported {
        /// The file that asks for it.
        path: PathBuf,
        /// What is unsupported, and what is supported instead.
        what: String,
    },
    /// The tokenizer refused its file or its input.
    #[error("{}: {problem}", path.display())]
    Tokenizer {
        /// tokenizer.json or its companion.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The chat template does not parse, does not come to an end, or does what a template must not.
    #[error("{}: {problem}", path.display())]
    ChatTemplate {
        /// The file that the template came from.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A conversation that the chat template refuses, or that no template could render.
    #[error("{}: {problem}", path.display())]
    ChatRefused {
        /// The file that the template came from.
        path: PathBuf,
        /// What is wrong with the conversation; the template's own words if it raised.
        problem: String,
    },
    /// A caller's option, token list or prompt is out of range.
    #[error("{option}: expected {expected}, found {found}")]
    InvalidOption {
        /// The option's name, as in the library; the program shows it as its flag.
        option: &'static str,
        /// What would be accepted.
        expected: String,
        /// What was given.
        found: String,
    },
    /// More tokens than the context has room for.
    #[error("{needed} tokens do not fit the context of {context}")]
    ContextFull {
        /// Positions that would be needed.
        needed: usize,
        /// The largest context of this model or of these options.
        context: usize,
    },
    /// The model does not fit the memory.
    #[error("not enough memory: {0}")]
    Memory(String),
    /// A logit was NaN or infinite.
    #[error("the logits at position {position} are not finite (first at token id {token})")]
    NotFinite {
        /// Position in the sequence whose logits these are.
        position: usize,
        /// The first vocabulary entry that is not finite.
        token: usize,
    },
    /// A saved cache that was written by another model or is damaged.
    #[error("{}: {problem}", path.display())]
    SavedCache {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A kernel refused its arguments.
    #[error(transparent)]
    Kernel(#[from] infer_kernels::KernelError),
    /// Work was cancelled by its owner.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Error::Io { path: path.to_owned(), source }
    }

    pub(crate) fn file(path: &Path, problem: impl Into<String>) -> Self {
        Error::File { path: path.to_owned(), problem: problem.into() }
    }
}
