//! The tensors of a checkpoint against those that a model's facts name.

use std::collections::BTreeSet;

use crate::error::{Error, Result};
use crate::load::Checkpoint;
use crate::load::header::shown_shape;
use crate::load::shards::first_few;
use crate::model::spec::Spec;
use crate::model::walk::{Parameter, for_each_parameter};

/// What a checkpoint holds besides what its model needs.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    /// Names of tensors that nothing uses: masks, stored frequencies, parts of other models.
    pub unused: Vec<String>,
}

/// Checks that every tensor that `spec` names is there, has its shape, and has a type that can be computed with.
///
/// # Errors
/// One [`Error::File`] for all missing tensors, with their number and the first few names; else [`Error::Tensor`] for
/// the first that has a wrong shape or type.
pub fn check_tensors(spec: &Spec, checkpoint: &Checkpoint) -> Result<Checked> {
    let mut needed: BTreeSet<&str> = BTreeSet::new();
    let mut missing: Vec<&str> = Vec::new();
    let mut wrong = None;
    for_each_parameter(spec, &mut |parameter| {
        let (names, shape) = match parameter {
            Parameter::Matrix(matrix, _) => (std::slice::from_ref(&matrix.tensor), &matrix.shape),
            Parameter::Vector(vector) => (vector.tensors.as_slice(), &vector.shape),
        };
        for name in names {
            let is_new = needed.insert(name);
            if checkpoint.contains(name) {
                wrong = wrong.take().or_else(|| mismatch(checkpoint, name, shape));
            } else if is_new {
                missing.push(name);
            }
        }
    });
    if !missing.is_empty() {
        let (n, first) = (missing.len(), first_few(missing.into_iter()));
        let problem = format!("{n} tensor{} missing: {first}", if n == 1 { " is" } else { "s are" });
        return Err(Error::file(checkpoint.path(), problem));
    }
    match wrong {
        Some(error) => Err(error),
        None => {
            let unused = checkpoint.names().filter(|name| !needed.contains(name)).map(str::to_owned).collect();
            Ok(Checked { unused })
        }
    }
}

fn mismatch(checkpoint: &Checkpoint, name: &str, expected: &[usize]) -> Option<Error> {
    let (shape, dtype) = (checkpoint.shape(name)?, checkpoint.dtype(name)?);
    let (expected, found) = if shape != expected {
        (format!("shape {expected:?} by config.json"), shown_shape(shape))
    } else if dtype.element_type().is_none() {
        ("type F32, F16 or BF16".to_owned(), format!("{dtype}, which is unsupported for weights"))
    } else {
        return None;
    };
    Some(Error::Tensor { path: checkpoint.file_of(name).to_owned(), tensor: name.to_owned(), expected, found })
}
