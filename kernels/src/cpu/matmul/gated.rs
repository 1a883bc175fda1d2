//! The input half of a gated network, with sums that are finished while they are in the caches.

use super::integer::{self, QuantizedInputs};
use super::{Arithmetic, Epilogue, Part, Projection};
use crate::cpu::activation::Activation;
use crate::cpu::crew::Crew;
use crate::cpu::matrix::MatrixRef;
use crate::quant::PANEL_ROWS;
use crate::quant::inputs::Kind;
use crate::quant::int4::Int4Ref;
use crate::quant::int8::Int8Ref;
use crate::quant::product::TILE_PANELS;

/// `out[t, r] = f(sum_k x[t, k] * gate[r, k]) * (sum_k x[t, k] * up[r, k])`, each sum with its bias: what
/// [`matmul()`](super::matmul) and [`activate_gated`](crate::activate_gated) give, bit for bit, without writing gate and up
/// to memory.
#[derive(Debug)]
pub struct Gated<'a> {
    weights: Weights<'a>,
    biases: [Option<&'a [f32]>; 2],
    rows: usize,
    cols: usize,
    n_tokens: usize,
    activation: Activation,
}

/// Gate and up in one format.
#[derive(Debug)]
enum Weights<'a> {
    Int4([Int4Ref<'a>; 2]),
    Int8([Int8Ref<'a>; 2]),
}

impl<'a> Gated<'a> {
    /// For products that are bound by arithmetic: many tokens with integer weights of one format. None for others.
    pub fn new(
        gate: &Projection<'a>,
        up: &Projection<'a>,
        activation: Activation,
        arithmetic: Arithmetic,
        n_tokens: usize,
    ) -> Option<Self> {
        let weights = match (gate.weight, up.weight) {
            _ if arithmetic == Arithmetic::Exact || n_tokens <= integer::FEW => return None,
            (MatrixRef::Int4(gate), MatrixRef::Int4(up)) => Weights::Int4([gate, up]),
            (MatrixRef::Int8(gate), MatrixRef::Int8(up)) => Weights::Int8([gate, up]),
            _ => return None,
        };
        let (rows, cols) = (gate.weight.rows(), gate.weight.cols());
        assert_eq!((up.weight.rows(), up.weight.cols()), (rows, cols), "the shapes of gate and up");
        let biases = [gate.bias, up.bias];
        assert!(biases.iter().flatten().all(|bias| bias.len() == rows), "biases for {rows} rows");
        Some(Gated { weights, biases, rows, cols, n_tokens, activation })
    }

    /// Computes `out`, [n_tokens, rows], of `x`, [n_tokens, cols].
    pub fn run(&self, crew: &Crew<'_>, x: &[f32], out: &mut [f32]) {
        let Gated { n_tokens, rows, cols, biases, activation, .. } = *self;
        assert_eq!(x.len(), n_tokens * cols, "inputs of {n_tokens} tokens of {cols}");
        assert_eq!(out.len(), n_tokens * rows, "outputs of {n_tokens} tokens of {rows}");
        if out.is_empty() {
            return;
        }
        let kind = match self.weights {
            Weights::Int4(_) => Kind::Int4,
            Weights::Int8(_) => Kind::Int8,
        };
        let tile_width = integer::tile_width(n_tokens, false);
        let inputs = QuantizedInputs::new(crew, x, n_tokens, tile_width, cols, |wanted| wanted == kind);
        let (isa, height) = (crew.isa(), super::task_height(n_tokens, tile_width));
        // A task has the same rows of both, panels of gate and up in turn.
        crew.tiles(out, &[rows], TILE_PANELS / 2 * PANEL_ROWS, height, |mut tile| {
            let part = Part { isa, first: 0, n_panels: TILE_PANELS, epilogue: Epilogue::Gate { biases, activation } };
            // Behind the last row the last panels are repeated; those sums are not looked at.
            let (first, last) = (tile.columns.start / PANEL_ROWS, rows.div_ceil(PANEL_ROWS) - 1);
            let index = |i: usize| last.min(first + i / 2);
            match &self.weights {
                Weights::Int4(of) => {
                    part.int4_many(&std::array::from_fn(|i| of[i % 2].panel(index(i))), &inputs, &mut tile);
                }
                Weights::Int8(of) => {
                    let panels = std::array::from_fn(|i| of[i % 2].panel(index(i)));
                    let next = std::array::from_fn(|i| of[i % 2].panel(index(TILE_PANELS + i)));
                    part.int8_many(&panels, &next, &inputs, &mut tile);
                }
            }
        });
    }
}
