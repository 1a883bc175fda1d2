//! What a kernel refuses. Kernels check shapes and leave meaning to the caller.

/// An argument that a kernel cannot work with. Every message names the expected and the found value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The bytes of a matrix do not have the length that its shape and type need.
    #[error("a {rows} x {cols} matrix of {kind} needs {expected} bytes, found {found}")]
    Length {
        /// The element type or quantized format.
        kind: &'static str,
        /// Output features.
        rows: usize,
        /// Input features.
        cols: usize,
        /// The bytes that the shape needs.
        expected: usize,
        /// The bytes that were given.
        found: usize,
    },
    /// The bytes of a matrix do not start at a multiple of the element's alignment.
    #[error("the bytes of a matrix of {kind} must be aligned to {expected} bytes")]
    Alignment {
        /// The element type.
        kind: &'static str,
        /// The alignment it needs.
        expected: usize,
    },
    /// A shape whose size in bytes does not fit the address space.
    #[error("a matrix of {rows} x {cols} is too large")]
    TooLarge {
        /// Output features.
        rows: usize,
        /// Input features.
        cols: usize,
    },
    /// `INFER_ISA` (or a caller) named an instruction set that is not one of the tiers.
    #[error("INFER_ISA: unknown instruction set {found:?}, expected one of: {choices}")]
    UnknownIsa {
        /// What was asked for.
        found: String,
        /// The tiers that this program has.
        choices: String,
    },
    /// The tier exists, but this CPU does not have it.
    #[error("INFER_ISA: this CPU does not support {name}, expected one of: {choices}")]
    UnsupportedIsa {
        /// The tier asked for.
        name: &'static str,
        /// The tiers that this CPU has.
        choices: String,
    },
    /// The threads of a team could not be started.
    #[error("cannot start {threads} threads: {reason}")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// The system's words.
        reason: String,
    },
    /// The system did not give the memory of a cache.
    #[error("cannot get {bytes} bytes for the KV cache: {reason}")]
    Memory {
        /// How much was asked for.
        bytes: usize,
        /// The system's words.
        reason: String,
    },
}
