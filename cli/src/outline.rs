//! What can be known of a model before its weights are touched: headers and config.json, checked.

use anyhow::Result;
use infer_runtime::load::{Checkpoint, Config, ModelFiles, check_tensors};
use infer_runtime::model::arch::spec_from;
use infer_runtime::model::spec::Spec;

use crate::args::ModelArgs;
use crate::demo;

/// A model's facts and the table of its tensors.
pub struct Outline {
    /// The tensors.
    pub checkpoint: Checkpoint,
    /// The facts.
    pub spec: Spec,
    /// Names of tensors that the model does not use.
    pub unused: Vec<String>,
}

impl Outline {
    /// Reads and checks what the flags name; the model inside the program if they name none.
    pub fn open(args: &ModelArgs) -> Result<Outline> {
        let files = match &args.model {
            Some(path) => ModelFiles::open(path)?,
            None => ModelFiles::from_bytes(demo::files()),
        };
        let checkpoint = Checkpoint::open(&files)?;
        let spec = spec_from(&Config::read(&files)?, &checkpoint)?;
        let unused = check_tensors(&spec, &checkpoint)?.unused;
        Ok(Outline { checkpoint, spec, unused })
    }
}
