//! Products of activations with weight matrices.
//!
//! Few tokens (decoding) are bound by reading the weights: they are read once, front to back, and multiplied with
//! all tokens as they come. More tokens (prefill) are bound by arithmetic: a tile of weights is brought into the
//! form that the inner kernel likes best and stays in the caches while it meets all tokens.

mod bf16;
mod exact;
mod few;
mod gated;
mod integer;
#[cfg(test)]
mod tests;

use std::ops::Range;

use super::activation::{Activation, activate_panels};
use super::crew::{Crew, Tile};
use super::matrix::MatrixRef;
use super::{Isa, vector};
use crate::quant::inputs::Kind;
use crate::quant::product::TILE_PANELS;
use crate::quant::{Lanes, PANEL_ROWS};
use bf16::RoundedInputs;
pub use gated::Gated;
use integer::QuantizedInputs;

/// One matrix of a group that shares its input.
#[derive(Clone, Copy, Debug)]
pub struct Projection<'a> {
    /// The weights, [rows = output features, cols = input features].
    pub weight: MatrixRef<'a>,
    /// One value for each row.
    pub bias: Option<&'a [f32]>,
}

/// What happens to the output's old values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// They are overwritten.
    Set,
    /// They are added to.
    Add,
}

/// How products are computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arithmetic {
    /// With the weights' values and f32 activations.
    #[default]
    Exact,
    /// With activations of fewer bits, as the weights like it best: quantized weights meet activations of 8 bits (see
    /// [`crate::quant::inputs`]), those in bf16 activations in bf16 where the tier multiplies these faster, unless
    /// tokens are so few that reading the weights takes longer anyway.
    Reduced,
}

/// Up to this many tokens, weights are multiplied as they are read.
const FEW: usize = 8;

/// Tokens of a task, about. Weights are brought into form again for each, so many; but its sums stay in the cache.
const HEIGHT: usize = 512;

/// `out[t, o_p + r] (= or +=) sum_k x[t, k] * w_p[r, k] + bias_p[r]`, where o_p counts the rows of the
/// projections before p.
///
/// `x` is [n_tokens, cols], `out` [n_tokens, rows of the whole group].
pub fn matmul(
    crew: &Crew<'_>,
    x: &[f32],
    n_tokens: usize,
    group: &[Projection<'_>],
    arithmetic: Arithmetic,
    store: Store,
    out: &mut [f32],
) {
    let widths: Vec<usize> = group.iter().map(|p| p.weight.rows()).collect();
    let row_len: usize = widths.iter().sum();
    let cols = group.first().map_or(0, |p| p.weight.cols());
    for p in group {
        assert_eq!(p.weight.cols(), cols, "input features of a group's matrices");
        assert!(p.bias.is_none_or(|bias| bias.len() == p.weight.rows()), "a bias for {} rows", p.weight.rows());
    }
    assert_eq!(x.len(), n_tokens * cols, "inputs of {n_tokens} tokens of {cols}");
    assert_eq!(out.len(), n_tokens * row_len, "outputs of {n_tokens} tokens of {row_len}");
    if out.is_empty() {
        return;
    }
    let isa = crew.isa();
    let wanted = |kind| group.iter().any(|p| kind_of(&p.weight) == Some(kind));
    let all_integer = arithmetic == Arithmetic::Reduced && group.iter().all(|p| kind_of(&p.weight).is_some());
    let few = n_tokens <= if all_integer { integer::FEW } else { FEW };
    let has_bf16 = group.iter().any(|p| matches!(p.weight, MatrixRef::Bf16(_)));
    let bf16_isa = isa.bf16().filter(|_| arithmetic == Arithmetic::Reduced && has_bf16 && n_tokens > bf16::EXACT);
    let rounded = bf16_isa.map(|bf16| RoundedInputs::new(crew, bf16, x, n_tokens, cols));
    let n_panels = match n_tokens {
        1 => 1,
        _ if !few => TILE_PANELS,
        _ if all_integer => 1,
        _ => 2,
    };
    // A task's tokens are whole tiles of quantized inputs.
    let tile_width = integer::tile_width(n_tokens, few);
    let inputs =
        (arithmetic == Arithmetic::Reduced).then(|| QuantizedInputs::new(crew, x, n_tokens, tile_width, cols, wanted));
    let height = task_height(n_tokens, tile_width);
    crew.tiles(out, &widths, n_panels * PANEL_ROWS, height, |mut tile| {
        let Projection { weight, bias } = &group[tile.segment];
        let epilogue = Epilogue::Store { bias: *bias, store };
        let part = Part { isa, first: tile.start_of_segment, n_panels, epilogue };
        match (weight, &inputs, &rounded) {
            (MatrixRef::Int4(m), Some(inputs), _) if n_panels == 1 => part.int4_few(m, inputs, &mut tile),
            (MatrixRef::Int8(m), Some(inputs), _) if n_panels == 1 => part.int8_few(m, inputs, &mut tile),
            (MatrixRef::Int4(m), Some(inputs), _) => part.int4(m, inputs, &mut tile),
            (MatrixRef::Int8(m), Some(inputs), _) => part.int8(m, inputs, &mut tile),
            (MatrixRef::Bf16(m), _, Some(inputs)) => part.bf16(m, inputs, cols, &mut tile),
            _ => {
                let x = &x[tile.rows.start * cols..tile.rows.end * cols];
                part.exact(weight, x, cols, &mut tile);
            }
        }
    });
}

/// Tokens of a task: nearly equal numbers of whole tiles.
fn task_height(n_tokens: usize, tile_width: usize) -> usize {
    n_tokens.div_ceil(tile_width).div_ceil(n_tokens.div_ceil(HEIGHT)) * tile_width
}

/// The form of activations that a matrix wants, if it is quantized.
fn kind_of(weight: &MatrixRef<'_>) -> Option<Kind> {
    match weight {
        MatrixRef::Int8(_) => Some(Kind::Int8),
        MatrixRef::Int4(_) => Some(Kind::Int4),
        MatrixRef::F32(_) | MatrixRef::F16(_) | MatrixRef::Bf16(_) => None,
    }
}

/// What a task knows of its outputs.
struct Part<'a> {
    isa: Isa,
    /// The output column of the matrix's first row.
    first: usize,
    /// Panels of rows that a task has, unless the rows end before.
    n_panels: usize,
    epilogue: Epilogue<'a>,
}

/// How sums become outputs.
enum Epilogue<'a> {
    /// They are outputs.
    Store { bias: Option<&'a [f32]>, store: Store },
    /// Panels of gate and up in turn become outputs of a gated network.
    Gate { biases: [Option<&'a [f32]>; 2], activation: Activation },
}

impl Part<'_> {
    /// The matrix's rows that a tile covers.
    fn rows(&self, tile: &Tile<'_, f32>) -> Range<usize> {
        tile.columns.start - self.first..tile.columns.end - self.first
    }

    /// Finishes the sums of the tokens from `first` on, `sums[token][panel]`. There may be more of them than rows.
    fn finish(&self, tile: &mut Tile<'_, f32>, first: usize, sums: &mut [Lanes]) {
        let rows = self.rows(tile);
        match self.epilogue {
            Epilogue::Store { bias, store } => {
                for (token, sums) in (first..).zip(sums.chunks_exact(self.n_panels)) {
                    let out = tile.row(token);
                    let sums = &bytemuck::cast_slice(sums)[..out.len()];
                    match store {
                        Store::Set => out.copy_from_slice(sums),
                        Store::Add => vector::add(self.isa, out, sums),
                    }
                    if let Some(bias) = bias {
                        vector::add(self.isa, out, &bias[rows.clone()]);
                    }
                }
            }
            Epilogue::Gate { biases, activation } => {
                for (i, bias) in biases.into_iter().enumerate() {
                    let Some(bias) = bias else { continue };
                    for sums in sums.chunks_exact_mut(self.n_panels) {
                        for (sums, bias) in
                            sums.iter_mut().skip(i).step_by(2).zip(bias[rows.clone()].chunks(PANEL_ROWS))
                        {
                            vector::add(self.isa, &mut sums[..bias.len()], bias);
                        }
                    }
                }
                activate_panels(self.isa, activation, sums.as_chunks_mut().0);
                for (token, sums) in (first..).zip(sums.chunks_exact(self.n_panels)) {
                    for (out, gated) in tile.row(token).chunks_mut(PANEL_ROWS).zip(sums.iter().step_by(2)) {
                        out.copy_from_slice(&gated[..out.len()]);
                    }
                }
            }
        }
    }
}
