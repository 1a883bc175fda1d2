//! `infer show`: what a model is and what it needs.

use anyhow::Result;

use crate::args::{ModelArgs, ShowArgs};

/// Prints it.
pub fn run(args: &ShowArgs, model_args: &ModelArgs) -> Result<()> {
    let _ = (args, model_args);
    Ok(())
}
