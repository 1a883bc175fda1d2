//! How the program ends: one line on stderr for a person, one exit code for a script.

use std::fmt;
use std::io;
use std::process::ExitCode;
use std::sync::Mutex;

use infer_kernels::KernelError;
use infer_runtime::Error as RuntimeError;

use crate::terminal;

/// Everything was done, or the reader of our output had enough.
pub const DONE: u8 = 0;
/// What no other code says.
pub const OTHER: u8 = 1;
/// A flag's value, a token list, a prompt beyond the context, a chat file, `INFER_ISA`.
pub const WRONG_USE: u8 = 2;
/// A file of the model is missing, damaged or unsupported.
pub const MODEL_FILES: u8 = 3;
/// Not enough memory, or a full disk.
pub const NO_SPACE: u8 = 4;
/// Ctrl-C, or a signal that asks the program to end (128 + SIGINT).
pub const INTERRUPTED: u8 = 130;

/// What the program itself refuses, beside the errors of the runtime.
#[derive(Debug)]
pub enum CliError {
    /// The command line, standard input or a chat file asks for something impossible.
    WrongUse(String),
    /// A file that belongs to the model, but that the program reads itself (`--chat-template`).
    ModelFile(String),
    /// The user ended the program.
    Interrupted,
}

impl fmt::Display for CliError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CliError::WrongUse(message) | CliError::ModelFile(message) => f.write_str(message),
            CliError::Interrupted => f.write_str("interrupted"),
        }
    }
}

impl std::error::Error for CliError {}

/// An error with exit code 2.
pub fn wrong_use(message: impl Into<String>) -> anyhow::Error {
    CliError::WrongUse(message.into()).into()
}

/// The exit code that an error stands for.
pub fn code(error: &anyhow::Error) -> u8 {
    if let Some(error) = error.downcast_ref::<CliError>() {
        return match error {
            CliError::WrongUse(_) => WRONG_USE,
            CliError::ModelFile(_) => MODEL_FILES,
            CliError::Interrupted => INTERRUPTED,
        };
    }
    if let Some(error) = error.downcast_ref::<RuntimeError>() {
        return runtime_code(error);
    }
    if let Some(error) = error.downcast_ref::<KernelError>() {
        return kernel_code(error);
    }
    error.downcast_ref::<io::Error>().map_or(OTHER, |error| io_code(error.kind(), OTHER))
}

fn runtime_code(error: &RuntimeError) -> u8 {
    match error {
        RuntimeError::Io { source, .. } => io_code(source.kind(), MODEL_FILES),
        RuntimeError::File { .. }
        | RuntimeError::Config { .. }
        | RuntimeError::Tensor { .. }
        | RuntimeError::Unsupported { .. }
        | RuntimeError::Tokenizer { .. }
        | RuntimeError::ChatTemplate { .. } => MODEL_FILES,
        RuntimeError::InvalidOption { .. } | RuntimeError::ContextFull { .. } | RuntimeError::ChatRefused { .. } => {
            WRONG_USE
        }
        RuntimeError::Memory(_) => NO_SPACE,
        RuntimeError::Kernel(error) => kernel_code(error),
        RuntimeError::Cancelled => INTERRUPTED,
        _ => OTHER,
    }
}

fn kernel_code(error: &KernelError) -> u8 {
    match error {
        KernelError::UnknownIsa { .. } | KernelError::UnsupportedIsa { .. } => WRONG_USE,
        KernelError::Threads { .. } | KernelError::Memory { .. } => NO_SPACE,
        _ => OTHER,
    }
}

/// A closed pipe is no error: whoever reads our output has seen enough.
fn io_code(kind: io::ErrorKind, otherwise: u8) -> u8 {
    match kind {
        io::ErrorKind::BrokenPipe => DONE,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::OutOfMemory => NO_SPACE,
        _ => otherwise,
    }
}

/// The error as one line: each cause once, control characters escaped (a tensor's name may hold a line break).
pub fn line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = match cause.downcast_ref::<RuntimeError>() {
            Some(RuntimeError::InvalidOption { option, expected, found }) => {
                format!("{}: expected {expected}, found {found}", flag(option))
            }
            _ => cause.to_string(),
        };
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    terminal::escape_controls(text.trim_end())
}

/// The flag that sets an option of the library.
fn flag(option: &str) -> String {
    match option {
        "context" => "--ctx".to_owned(),
        "weights" => "--q8 or --q4".to_owned(),
        "repetition_penalty" => "--repeat-penalty".to_owned(),
        _ => format!("--{}", option.replace('_', "-")),
    }
}

/// Says what went wrong, unless nobody is listening, and gives the code to end with.
pub fn report(error: &anyhow::Error) -> ExitCode {
    let code = code(error);
    if code != DONE {
        terminal::note(&format!("infer: {}", line(error)));
    }
    ExitCode::from(code)
}

/// What the last panic said. Panics that a caller caught are nobody's business; only [`guarded`] prints one.
static LAST_PANIC: Mutex<Option<String>> = Mutex::new(None);

/// Runs the program; a panic becomes one line and exit code 1.
pub fn guarded(program: impl FnOnce() -> ExitCode + std::panic::UnwindSafe) -> ExitCode {
    std::panic::set_hook(Box::new(|info| {
        if let Ok(mut last) = LAST_PANIC.lock() {
            *last = Some(info.to_string());
        }
    }));
    std::panic::catch_unwind(program).unwrap_or_else(|_| {
        let said = LAST_PANIC.lock().ok().and_then(|mut last| last.take()).unwrap_or_default();
        terminal::note(&format!("infer: this is a bug, please report it: {}", terminal::escape_controls(&said)));
        ExitCode::from(OTHER)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn io_error(kind: io::ErrorKind) -> RuntimeError {
        RuntimeError::Io { path: PathBuf::from("model.safetensors"), source: io::Error::from(kind) }
    }

    #[test]
    fn every_error_has_its_exit_code() {
        let path = || PathBuf::from("config.json");
        let text = || "x".to_owned();
        let cases: Vec<(anyhow::Error, u8)> = vec![
            (wrong_use("x"), 2),
            (CliError::ModelFile(text()).into(), 3),
            (CliError::Interrupted.into(), 130),
            (io_error(io::ErrorKind::NotFound).into(), 3),
            (io_error(io::ErrorKind::PermissionDenied).into(), 3),
            (io_error(io::ErrorKind::StorageFull).into(), 4),
            (RuntimeError::File { path: path(), problem: text() }.into(), 3),
            (RuntimeError::Config { path: path(), key: text(), found: text(), expected: text() }.into(), 3),
            (RuntimeError::Tensor { path: path(), tensor: text(), expected: text(), found: text() }.into(), 3),
            (RuntimeError::Unsupported { path: path(), what: text() }.into(), 3),
            (RuntimeError::Tokenizer { path: path(), problem: text() }.into(), 3),
            (RuntimeError::ChatTemplate { path: path(), problem: text() }.into(), 3),
            (RuntimeError::ChatRefused { path: path(), problem: text() }.into(), 2),
            (RuntimeError::InvalidOption { option: "top_p", expected: text(), found: text() }.into(), 2),
            (RuntimeError::ContextFull { needed: 9, context: 8 }.into(), 2),
            (RuntimeError::Memory(text()).into(), 4),
            (RuntimeError::NotFinite { position: 0, token: 0 }.into(), 1),
            (RuntimeError::SavedCache { path: path(), problem: text() }.into(), 1),
            (RuntimeError::Kernel(KernelError::UnknownIsa { found: text(), choices: text() }).into(), 2),
            (RuntimeError::Kernel(KernelError::UnsupportedIsa { name: "avx2", choices: text() }).into(), 2),
            (RuntimeError::Kernel(KernelError::TooLarge { rows: 1, cols: 1 }).into(), 1),
            (RuntimeError::Kernel(KernelError::Threads { threads: 2, reason: text() }).into(), 4),
            (RuntimeError::Kernel(KernelError::Memory { bytes: 2, reason: text() }).into(), 4),
            (RuntimeError::Cancelled.into(), 130),
            (io::Error::from(io::ErrorKind::BrokenPipe).into(), 0),
            (io::Error::from(io::ErrorKind::StorageFull).into(), 4),
            (io::Error::from(io::ErrorKind::PermissionDenied).into(), 1),
            (anyhow::anyhow!("x"), 1),
        ];
        for (error, expected) in cases {
            assert_eq!(code(&error), expected, "{error:?}");
            assert_eq!(code(&error.context("while testing")), expected, "a context must not change the code");
        }
    }

    #[test]
    fn an_error_is_one_line_that_says_each_thing_once() {
        let error = anyhow::Error::from(io_error(io::ErrorKind::NotFound));
        assert_eq!(line(&error).matches("not found").count(), 1, "{}", line(&error));
        let error = anyhow::anyhow!("tensor a\nb\u{1b}[2J").context("loading");
        assert_eq!(line(&error), "loading: tensor a\\nb\\u{1b}[2J");
    }

    #[test]
    fn an_option_of_the_library_is_named_by_its_flag() {
        for (option, flag) in [("context", "--ctx"), ("top_p", "--top-p"), ("repetition_penalty", "--repeat-penalty")] {
            let error = RuntimeError::InvalidOption { option, expected: "1".to_owned(), found: "2".to_owned() };
            assert_eq!(line(&error.into()), format!("{flag}: expected 1, found 2"));
        }
    }
}
