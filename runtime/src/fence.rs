//! A fence around third-party code: a panic in it becomes an error, and its message does not reach the terminal.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    static SILENT: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`; if it panics, returns the panic's message.
///
/// The process has one panic hook. It is wrapped once, by a hook that asks a flag of the panicking thread and
/// otherwise calls the hook that was there; so panics of other threads are reported as before.
pub(crate) fn fenced<R>(work: impl FnOnce() -> R) -> Result<R, String> {
    static WRAP_HOOK: Once = Once::new();
    WRAP_HOOK.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !SILENT.with(Cell::get) {
                previous(info);
            }
        }));
    });
    let was_silent = SILENT.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    SILENT.set(was_silent);
    outcome.map_err(|panic| {
        let message = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        one_line(message)
    })
}

/// The message on one line and of bounded length, as every error of this crate is.
pub(crate) fn one_line(message: &str) -> String {
    const LONGEST: usize = 400;
    let mut line = String::new();
    for word in message.split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        if line.len() > LONGEST {
            let cut = (0..=LONGEST).rev().find(|&i| line.is_char_boundary(i)).unwrap_or(0);
            line.truncate(cut);
            line.push('…');
            break;
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_message_and_the_thread_goes_on() {
        assert_eq!(fenced(|| 7), Ok(7));
        assert_eq!(fenced(|| -> i32 { panic!("broken\n  in two") }), Err("broken in two".to_owned()));
        assert_eq!(fenced(|| fenced(|| -> i32 { panic!("{}", 5) })), Ok(Err("5".to_owned())));
        assert!(!SILENT.with(Cell::get), "the hook must speak again after the fence");
    }

    #[test]
    fn messages_are_cut_at_a_character() {
        let long = "é".repeat(1000);
        assert!(one_line(&long).len() < 410, "a long message is cut");
        assert_eq!(one_line(" a \n\t b "), "a b");
    }
}
