//! stub
use super::Bytes;
use infer_kernels::cpu::matrix::ElementType;
use std::path::{Path, PathBuf};
/// d
#[derive(Debug, Clone, Copy)]
pub struct Dtype(pub ElementType);
impl Dtype {
    /// d
    pub fn element_type(&self) -> Option<ElementType> {
        Some(self.0)
    }
}
impl std::fmt::Display for Dtype {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Ok(())
    }
}
/// d
#[derive(Debug, Clone)]
pub struct TensorView {
    #[allow(missing_docs)]
    pub name: String,
    #[allow(missing_docs)]
    pub dtype: Dtype,
    #[allow(missing_docs)]
    pub shape: Vec<usize>,
    #[allow(missing_docs)]
    pub bytes: Bytes,
    #[allow(missing_docs)]
    pub file: PathBuf,
}
/// d
pub struct Checkpoint;
impl Checkpoint {
    /// d
    pub fn tensor(&self, _name: &str) -> Option<TensorView> {
        None
    }
    /// d
    pub fn path(&self) -> &Path {
        Path::new("")
    }
}
