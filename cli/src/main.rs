//! The program `infer`.
fn main() {}
