//! How a model is loaded and computed.

/// What the weights become in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WeightFormat {
    /// As the file has them, mapped and not copied.
    #[default]
    AsStored,
    /// 8 bits a weight in groups of 32.
    Int8,
    /// 4 bits a weight in groups of 16; embedding and head in 8.
    Int4,
}
