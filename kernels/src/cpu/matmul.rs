//! Products of activations with weight matrices.
//!
//! Few tokens (decoding) are bound by reading the weights: each row is read once, front to back, and multiplied
//! with all tokens. More tokens (prefill) are bound by arithmetic: a strip of weights is widened to f32 and
//! packed into panels that stay in the caches, and each panel meets all tokens in a register-blocked kernel.

use super::Isa;
use super::crew::{Crew, Tile};
use super::isa::LANES;
use super::matrix::{Dense, Element, MatrixRef};

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

/// Up to this many tokens, rows of weights are multiplied as they are read.
const FEW: usize = 4;

/// Output features of a task: for few tokens, and for many.
const FEW_WIDTH: usize = 16;
const WIDTH: usize = 4 * LANES;

/// Tokens of a task. The weights are packed again for each, so many; but its sums stay in the cache.
const HEIGHT: usize = 512;

/// Input features of a panel, which with LANES outputs takes 16 KiB: half of a first-level cache. A multiple of
/// the groups of every quantized format.
const DEPTH: usize = 256;

/// `out[t, o_p + r] (= or +=) sum_k x[t, k] * w_p[r, k] + bias_p[r]`, where o_p counts the rows of the
/// projections before p.
///
/// `x` is [n_tokens, cols], `out` [n_tokens, rows of the whole group].
pub fn matmul(crew: &Crew<'_>, x: &[f32], n_tokens: usize, group: &[Projection<'_>], store: Store, out: &mut [f32]) {
    let row_len: usize = group.iter().map(|p| p.weight.rows()).sum();
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
    let (width, height) = if n_tokens <= FEW { (FEW_WIDTH, FEW) } else { (WIDTH, HEIGHT) };
    crew.tiles(out, row_len, width, height, |mut tile| {
        let mut first = 0;
        for p in group {
            let last = first + p.weight.rows();
            let columns = tile.columns.start.max(first)..tile.columns.end.min(last);
            if !columns.is_empty() {
                let part = Part { projection: p, first, columns, store };
                if n_tokens <= FEW { part.few(isa, x, cols, &mut tile) } else { part.many(isa, x, cols, &mut tile) }
            }
            first = last;
        }
    });
}

/// The part of a tile that belongs to one projection.
struct Part<'a> {
    projection: &'a Projection<'a>,
    /// The output column of the projection's first row.
    first: usize,
    /// The output columns of the part.
    columns: std::ops::Range<usize>,
    store: Store,
}

impl Part<'_> {
    /// Finishes one sum.
    fn put(&self, out: &mut f32, row: usize, sum: f32) {
        let sum = self.projection.bias.map_or(sum, |bias| sum + bias[row]);
        match self.store {
            Store::Set => *out = sum,
            Store::Add => *out += sum,
        }
    }

    fn few(&self, isa: Isa, x: &[f32], cols: usize, tile: &mut Tile<'_, f32>) {
        let x = |i: usize| &x[(tile.rows.start + i) * cols..][..cols];
        match tile.rows.len() {
            1 => self.dots(isa, [x(0)], tile),
            2 => self.dots(isa, [x(0), x(1)], tile),
            3 => self.dots(isa, [x(0), x(1), x(2)], tile),
            _ => self.dots::<FEW>(isa, std::array::from_fn(x), tile),
        }
    }

    /// Row by row, each front to back (one stream of memory a worker is the fastest), for N tokens.
    fn dots<const N: usize>(&self, isa: Isa, x: [&[f32]; N], tile: &mut Tile<'_, f32>) {
        for column in self.columns.clone() {
            let row = column - self.first;
            let sums = match &self.projection.weight {
                MatrixRef::F32(m) => isa.dot(m.row(row), x),
                MatrixRef::F16(m) => isa.dot(m.row(row), x),
                MatrixRef::Bf16(m) => isa.dot(m.row(row), x),
                MatrixRef::Int8(m) => dequantized_dot(isa, x, |start, out| isa.int8(m, row, start, out)),
                MatrixRef::Int4(m) => dequantized_dot(isa, x, |start, out| isa.int4(m, row, start, out)),
            };
            for (t, sum) in sums.into_iter().enumerate() {
                let at = column - tile.columns.start;
                self.put(&mut tile.row(t)[at], row, sum);
            }
        }
    }

    fn many(&self, isa: Isa, x: &[f32], cols: usize, tile: &mut Tile<'_, f32>) {
        let n_tokens = tile.rows.len();
        let x = &x[tile.rows.start * cols..][..n_tokens * cols];
        let mut sums = vec![0.0; n_tokens * WIDTH];
        let mut rows = [0.0; LANES * DEPTH];
        let mut panel = [0.0; LANES * DEPTH];
        for start in (0..cols).step_by(DEPTH) {
            let depth = DEPTH.min(cols - start);
            let (rows, panel) = (&mut rows[..LANES * depth], &mut panel[..LANES * depth]);
            for (i, columns) in self.columns.clone().step_by(LANES).enumerate() {
                let used = LANES.min(self.columns.end - columns);
                for (r, out) in rows.chunks_exact_mut(depth).enumerate() {
                    // Lanes beyond the last row repeat it; their sums are not looked at.
                    let row = columns - self.first + r.min(used - 1);
                    match &self.projection.weight {
                        MatrixRef::F32(m) => widen(isa, m, row, start, out),
                        MatrixRef::F16(m) => widen(isa, m, row, start, out),
                        MatrixRef::Bf16(m) => widen(isa, m, row, start, out),
                        MatrixRef::Int8(m) => isa.int8(m, row, start, out),
                        MatrixRef::Int4(m) => isa.int4(m, row, start, out),
                    }
                }
                isa.pack(rows, depth, panel);
                isa.gemm(n_tokens, (&x[start..], cols), panel, (&mut sums[i * LANES..], WIDTH));
            }
        }
        for (t, sums) in sums.chunks_exact(WIDTH).enumerate() {
            let at = self.columns.start - tile.columns.start;
            let out = &mut tile.row(t)[at..][..self.columns.len()];
            for ((out, sum), row) in out.iter_mut().zip(sums).zip(self.columns.start - self.first..) {
                self.put(out, row, *sum);
            }
        }
    }
}

fn widen<T: Element>(isa: Isa, matrix: &Dense<'_, T>, row: usize, start: usize, out: &mut [f32]) {
    isa.widen(&matrix.row(row)[start..][..out.len()], out);
}

/// Dot products with a row that is dequantized a piece at a time.
fn dequantized_dot<const N: usize>(isa: Isa, x: [&[f32]; N], dequantize: impl Fn(usize, &mut [f32])) -> [f32; N] {
    let mut sums = [0.0; N];
    let mut weights = [0.0; DEPTH];
    let cols = x.first().map_or(0, |x| x.len());
    for start in (0..cols).step_by(DEPTH) {
        let weights = &mut weights[..DEPTH.min(cols - start)];
        dequantize(start, weights);
        let part = isa.dot(&*weights, x.map(|x| &x[start..][..weights.len()]));
        sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
    }
    sums
}
