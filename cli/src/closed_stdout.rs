//! Whether standard output was closed when the program started (`infer … >&-`).
//!
//! Before `main`, Rust's runtime opens /dev/null in place of a closed standard stream, so that no other file takes its
//! number; after that, an answer written to it is lost without an error. So this looks before the runtime does.

use std::sync::atomic::{AtomicBool, Ordering};

static CLOSED: AtomicBool = AtomicBool::new(false);

/// Whether there is nothing to write to. Always false where there is no way to know.
pub fn stdout_was_closed() -> bool {
    CLOSED.load(Ordering::Relaxed)
}

// SAFETY: the loader calls the functions of this section one after the other, with the C library set up and before any
// thread is started; `look` has the type that it calls (it ignores the arguments, as C allows), takes no lock, and
// asks for no part of Rust's runtime that `main` sets up. It is the only unsafe code of the program.
#[cfg(target_os = "linux")]
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = look;

#[cfg(target_os = "linux")]
extern "C" fn look() {
    // Without /proc there is no answer, and nothing is said to be closed.
    let there = |path: &str| std::fs::symlink_metadata(path).is_ok();
    CLOSED.store(there("/proc/self/fd") && !there("/proc/self/fd/1"), Ordering::Relaxed);
}
