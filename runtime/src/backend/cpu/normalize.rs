//! Norms over the rows of a batch, and sums.

use std::cell::Cell;

use infer_kernels::cpu::{norm, vector};
use infer_kernels::{Crew, Isa};

use crate::model::weights::Norm;

thread_local! {
    /// One row, kept from norm to norm.
    static ROW: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// out = norm(x), row by row; without a norm, out = x.
pub(super) fn normalize(crew: &Crew<'_>, norm: Option<&Norm>, width: usize, x: &[f32], out: &mut Vec<f32>) {
    out.resize(x.len(), 0.0);
    normalize_rows(crew, norm, width, |row| &x[row * width..(row + 1) * width], out);
}

/// The same for rows that need not lie one after the other: `x(i)` is the input of row i of `out`.
pub(super) fn normalize_rows<'a>(
    crew: &Crew<'_>,
    norm: Option<&Norm>,
    width: usize,
    x: impl Fn(usize) -> &'a [f32] + Sync,
    out: &mut [f32],
) {
    let isa = crew.isa();
    crew.rows(out, width, |row, out| match norm {
        None => out.copy_from_slice(x(row)),
        Some(norm) => normalize_row(isa, norm, x(row), 0, out),
    });
}

/// Norm of one row, or of one head whose parameters begin at `start`.
fn normalize_row(isa: Isa, norm: &Norm, x: &[f32], start: usize, out: &mut [f32]) {
    let range = start..start + x.len();
    match norm {
        Norm::Rms { eps, weight } => norm::rms_norm(isa, x, &weight[range], *eps, out),
        Norm::Layer { eps, weight, bias } => {
            let weight = weight.as_ref().map(|weight| &weight[range.clone()]);
            let bias = bias.as_ref().map(|bias| &bias[range]);
            norm::layer_norm(isa, x, weight, bias, *eps, out);
        }
    }
}

/// Norm of each head in place. The parameters are one head's, used for all, or those of all heads.
pub(super) fn normalize_heads(isa: Isa, norm: &Norm, head_dim: usize, heads: &mut [f32]) {
    let own_parameters = norm.n_parameters() > head_dim;
    let mut before = ROW.take();
    for (index, head) in heads.chunks_exact_mut(head_dim).enumerate() {
        before.clear();
        before.extend_from_slice(head);
        normalize_row(isa, norm, &before, if own_parameters { index * head_dim } else { 0 }, head);
    }
    ROW.set(before);
}

/// x += norm(branch), row by row.
pub(super) fn add_normed(crew: &Crew<'_>, norm: Option<&Norm>, width: usize, branch: &[f32], x: &mut [f32]) {
    let isa = crew.isa();
    crew.rows(x, width, |row, x| {
        let branch = &branch[row * width..(row + 1) * width];
        let Some(norm) = norm else { return vector::add(isa, x, branch) };
        let mut normed = ROW.take();
        normed.resize(width, 0.0);
        normalize_row(isa, norm, branch, 0, &mut normed);
        vector::add(isa, x, &normed);
        ROW.set(normed);
    });
}
