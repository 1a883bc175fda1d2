//! Products of activations with weight matrices.
//!
//! Few tokens (decoding) are bound by reading the weights: they are read once, front to back, and multiplied with
//! all tokens as they come. More tokens (prefill) are bound by arithmetic: a tile of weights is brought into the
//! form that the inner kernel likes best and stays in the caches while it meets all tokens.

mod bf16;
mod exact;
mod few;
mod integer;

use std::ops::Range;

use super::crew::{Crew, Tile};
use super::matrix::MatrixRef;
use super::{Isa, vector};
use crate::quant::inputs::Kind;
use crate::quant::product::TILE_PANELS;
use crate::quant::{Lanes, PANEL_ROWS};
use bf16::RoundedInputs;
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
    let height = n_tokens.div_ceil(tile_width).div_ceil(n_tokens.div_ceil(HEIGHT)) * tile_width;
    crew.tiles(out, &widths, n_panels * PANEL_ROWS, height, |mut tile| {
        let part = Part { isa, projection: &group[tile.segment], first: tile.start_of_segment, n_panels, store };
        match (&part.projection.weight, &inputs, &rounded) {
            (MatrixRef::Int4(m), Some(inputs), _) if n_panels == 1 => part.int4_few(m, inputs, &mut tile),
            (MatrixRef::Int8(m), Some(inputs), _) if n_panels == 1 => part.int8_few(m, inputs, &mut tile),
            (MatrixRef::Int4(m), Some(inputs), _) => part.int4(m, inputs, &mut tile),
            (MatrixRef::Int8(m), Some(inputs), _) => part.int8(m, inputs, &mut tile),
            (MatrixRef::Bf16(m), _, Some(inputs)) => part.bf16(m, inputs, cols, &mut tile),
            _ => {
                let x = &x[tile.rows.start * cols..tile.rows.end * cols];
                part.exact(x, cols, &mut tile);
            }
        }
    });
}

/// The form of activations that a matrix wants, if it is quantized.
fn kind_of(weight: &MatrixRef<'_>) -> Option<Kind> {
    match weight {
        MatrixRef::Int8(_) => Some(Kind::Int8),
        MatrixRef::Int4(_) => Some(Kind::Int4),
        MatrixRef::F32(_) | MatrixRef::F16(_) | MatrixRef::Bf16(_) => None,
    }
}

/// What a task knows of the projection that its tile belongs to.
struct Part<'a> {
    isa: Isa,
    projection: &'a Projection<'a>,
    /// The output column of the projection's first row.
    first: usize,
    /// Panels of rows that a task has, unless the rows end before.
    n_panels: usize,
    store: Store,
}

impl Part<'_> {
    /// The projection's rows that a tile covers.
    fn rows(&self, tile: &Tile<'_, f32>) -> Range<usize> {
        tile.columns.start - self.first..tile.columns.end - self.first
    }

    /// The columns of the tile that have the rows of some panels, which may end before the panels do.
    fn columns(tile: &Tile<'_, f32>, panel: usize, n_panels: usize) -> Range<usize> {
        let end = |panel: usize| tile.columns.len().min(panel * PANEL_ROWS);
        end(panel)..end(panel + n_panels)
    }

    /// Asks for the outputs of a token that some panels' sums go to.
    fn ask_for(&self, tile: &mut Tile<'_, f32>, token: usize, panel: usize, n_panels: usize) {
        let columns = Self::columns(tile, panel, n_panels);
        self.isa.prefetch(&tile.row(token)[columns]);
    }

    /// Finishes the sums of one token and the panels from `panel` on.
    fn put(&self, tile: &mut Tile<'_, f32>, token: usize, panel: usize, sums: &[Lanes]) {
        let columns = Self::columns(tile, panel, sums.len());
        let first_row = self.rows(tile).start;
        let rows = first_row + columns.start..first_row + columns.end;
        let sums: &[f32] = bytemuck::cast_slice(sums);
        let (out, sums) = (&mut tile.row(token)[columns.clone()], &sums[..columns.len()]);
        match self.store {
            Store::Set => out.copy_from_slice(sums),
            Store::Add => vector::add(self.isa, out, sums),
        }
        if let Some(bias) = self.projection.bias {
            vector::add(self.isa, out, &bias[rows]);
        }
    }
}
