//! Ctrl-C, and the signals that ask the program to end. While work can be cancelled, the first one cancels it; if it
//! goes on all the same, and at any other time, the program ends at once with exit code 130. A chat is more patient:
//! Ctrl-C does not end it, unless an answer cannot be stopped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use infer_runtime::CancelToken;

use crate::exit;
use crate::terminal;

/// So often may an impatient user press Ctrl-C while a chat's answer is being stopped.
const PATIENCE: usize = 4;

/// The program's one handler of interrupts.
#[derive(Clone)]
pub struct Interrupts(Arc<State>);

struct State {
    cancel: CancelToken,
    cancellable: AtomicBool,
    /// Signals since the work began.
    signals: AtomicUsize,
    chatting: AtomicBool,
    /// The line editor has the terminal in raw mode. There Ctrl-C is a key; a signal comes from elsewhere.
    editing: AtomicBool,
    /// A file or folder that must not outlive the program.
    unfinished: Mutex<Option<PathBuf>>,
}

impl Interrupts {
    /// Starts to listen.
    pub fn install() -> Result<Interrupts> {
        let state = Arc::new(State {
            cancel: CancelToken::default(),
            cancellable: AtomicBool::new(false),
            signals: AtomicUsize::new(0),
            chatting: AtomicBool::new(false),
            editing: AtomicBool::new(false),
            unfinished: Mutex::new(None),
        });
        let handler = Arc::clone(&state);
        ctrlc::set_handler(move || handler.interrupted()).context("cannot listen for Ctrl-C")?;
        Ok(Interrupts(state))
    }

    /// Runs work that looks at the token. The token is fresh at the start.
    pub fn cancellable<R>(&self, work: impl FnOnce(&CancelToken) -> R) -> R {
        self.0.cancel.reset();
        self.0.signals.store(0, Ordering::SeqCst);
        self.0.cancellable.store(true, Ordering::SeqCst);
        let result = work(&self.0.cancel);
        self.0.cancellable.store(false, Ordering::SeqCst);
        result
    }

    /// In a chat a signal between two prompts is one that came too late to stop an answer.
    pub fn set_chatting(&self, chatting: bool) {
        self.0.chatting.store(chatting, Ordering::SeqCst);
    }

    /// Runs the line editor.
    pub fn editing<R>(&self, edit: impl FnOnce() -> R) -> R {
        self.0.editing.store(true, Ordering::SeqCst);
        let result = edit();
        self.0.editing.store(false, Ordering::SeqCst);
        result
    }

    /// Names the file or folder to remove if the program is ended; `None` when it is finished.
    pub fn set_unfinished(&self, path: Option<&Path>) {
        if let Ok(mut unfinished) = self.0.unfinished.lock() {
            *unfinished = path.map(Path::to_owned);
        }
    }
}

impl State {
    fn interrupted(&self) {
        let chatting = self.chatting.load(Ordering::SeqCst);
        if self.cancellable.load(Ordering::SeqCst) {
            self.cancel.cancel();
            let signals = self.signals.fetch_add(1, Ordering::SeqCst) + 1;
            if signals <= if chatting { PATIENCE } else { 1 } {
                return;
            }
        } else if chatting && !self.editing.load(Ordering::SeqCst) {
            return;
        }
        if let Ok(mut unfinished) = self.unfinished.lock()
            && let Some(path) = unfinished.take()
        {
            let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
        }
        if self.editing.load(Ordering::SeqCst) {
            // The editor would undo its raw mode when it returns, but it will not return.
            let _ = Command::new("stty").arg("sane").status();
        }
        if terminal::stderr_is_interactive() {
            // Past the ^C that the terminal shows, and past a progress bar.
            terminal::note("");
        }
        std::process::exit(i32::from(exit::INTERRUPTED));
    }
}
