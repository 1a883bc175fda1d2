//! Norms over the rows of a batch, and sums.

use infer_kernels::Crew;
use infer_kernels::cpu::norm;

use crate::model::weights::Norm;

/// out = norm(x), row by row; without a norm, out = x.
pub(super) fn normalize(crew: &Crew<'_>, norm: Option<&Norm>, width: usize, x: &[f32], out: &mut Vec<f32>) {
    out.resize(x.len(), 0.0);
    match norm {
        None => out.copy_from_slice(x),
        Some(norm) => {
            crew.rows(out, width, |row, out| normalize_row(norm, &x[row * width..(row + 1) * width], 0, out));
        }
    }
}

/// Norm of one row, or of one head whose parameters begin at `start`.
fn normalize_row(norm: &Norm, x: &[f32], start: usize, out: &mut [f32]) {
    let range = start..start + x.len();
    match norm {
        Norm::Rms { eps, weight } => norm::rms_norm(x, &weight[range], *eps, out),
        Norm::Layer { eps, weight, bias } => {
            let weight = weight.as_ref().map(|weight| &weight[range.clone()]);
            let bias = bias.as_ref().map(|bias| &bias[range]);
            norm::layer_norm(x, weight, bias, *eps, out);
        }
    }
}

/// Norm of each head in place. The parameters are one head's, used for all, or those of all heads.
pub(super) fn normalize_heads(norm: &Norm, head_dim: usize, heads: &mut [f32]) {
    let own_parameters = norm.n_parameters() > head_dim;
    let mut head_before = vec![0.0; head_dim];
    for (index, head) in heads.chunks_exact_mut(head_dim).enumerate() {
        head_before.copy_from_slice(head);
        normalize_row(norm, &head_before, if own_parameters { index * head_dim } else { 0 }, head);
    }
}

/// x += norm(branch), row by row.
pub(super) fn add_normed(crew: &Crew<'_>, norm: Option<&Norm>, width: usize, branch: &[f32], x: &mut [f32]) {
    let Some(norm) = norm else {
        add(x, branch);
        return;
    };
    crew.rows(x, width, |row, x| {
        let mut normed = vec![0.0; width];
        normalize_row(norm, &branch[row * width..(row + 1) * width], 0, &mut normed);
        add(x, &normed);
    });
}

/// x += other.
pub(super) fn add(x: &mut [f32], other: &[f32]) {
    x.iter_mut().zip(other).for_each(|(x, other)| *x += other);
}
