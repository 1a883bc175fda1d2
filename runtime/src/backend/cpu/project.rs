//! Linear maps over the rows of a batch: groups that share an input, whole or factored, and what is fused to them.

use infer_kernels::Crew;
use infer_kernels::cpu::matmul::{Arithmetic, Gated, Projection, Store, matmul};
use infer_kernels::cpu::{activation, vector};

use super::normalize::add_normed;
use crate::model::linear::{Linear, Matrix, Weight};
use crate::model::spec;
use crate::model::weights::{FeedForward, Norm};

/// The arithmetic of projections, and room for factored ones.
#[derive(Default)]
pub(super) struct Projector {
    pub arithmetic: Arithmetic,
    /// inner * x, [n_rows, rank].
    inner: Vec<f32>,
    /// One member of a group, [n_rows, its rows], before it is moved beside the others.
    member: Vec<f32>,
}

impl Projector {
    /// out = (or +=) the outputs of a group of linears side by side, [n_rows, sum of their rows].
    pub fn project(&mut self, crew: &Crew<'_>, x: &[f32], group: &[&Linear], store: Store, out: &mut [f32]) {
        let n_rows = group.first().map_or(0, |linear| x.len() / linear.cols());
        let arithmetic = self.arithmetic;
        let product = |x: &[f32], group: &[Projection<'_>], store: Store, out: &mut [f32]| {
            matmul(crew, x, n_rows, group, arithmetic, store, out);
        };
        let matrices: Vec<Projection<'_>> = group.iter().filter_map(|linear| projection(linear)).collect();
        if matrices.len() == group.len() {
            return product(x, &matrices, store, out);
        }
        let width: usize = group.iter().map(|linear| linear.rows()).sum();
        let mut column = 0;
        for linear in group {
            let rows = linear.rows();
            let bias = linear.bias.as_deref();
            self.member.resize(n_rows * rows, 0.0);
            match &linear.weight {
                Weight::Matrix(matrix) => product(x, &[whole(matrix, bias)], Store::Set, &mut self.member),
                Weight::Factored { inner, outer } => {
                    self.inner.resize(n_rows * inner.rows(), 0.0);
                    product(x, &[whole(inner, None)], Store::Set, &mut self.inner);
                    product(&self.inner, &[whole(outer, bias)], Store::Set, &mut self.member);
                }
            }
            let (member, isa) = (&self.member, crew.isa());
            crew.rows(out, width, |row, out| {
                let (out, member) = (&mut out[column..column + rows], &member[row * rows..(row + 1) * rows]);
                match store {
                    Store::Set => out.copy_from_slice(member),
                    Store::Add => vector::add(isa, out, member),
                }
            });
            column += rows;
        }
    }

    /// x += post_norm(linear(input)).
    pub fn project_onto(
        &mut self,
        crew: &Crew<'_>,
        input: &[f32],
        linear: &Linear,
        post_norm: Option<&Norm>,
        x: &mut [f32],
        branch: &mut Vec<f32>,
    ) {
        if post_norm.is_none() {
            self.project(crew, input, &[linear], Store::Add, x);
            return;
        }
        branch.resize(x.len(), 0.0);
        self.project(crew, input, &[linear], Store::Set, branch);
        add_normed(crew, post_norm, linear.rows(), branch, x);
    }

    /// activated = act(gate) * up, or act(up) for networks without a gate, of each row of x and each of the networks,
    /// [n_rows, n_networks, intermediate]. The networks differ in their weights alone.
    pub fn feed_forward_input(
        &mut self,
        crew: &Crew<'_>,
        network: &spec::FeedForward,
        weights: &[&FeedForward],
        x: &[f32],
        gate_up: &mut Vec<f32>,
        activated: &mut Vec<f32>,
    ) {
        let group: Vec<&Linear> = weights.iter().flat_map(|weights| &weights.input).collect();
        let (Some(first), Some(width)) = (group.first(), weights.first().map(|weights| weights.down.cols())) else {
            return;
        };
        let (isa, n_rows) = (crew.isa(), x.len() / first.cols() * weights.len());
        activated.resize(n_rows * width, 0.0);
        if network.gate.is_none() {
            self.project(crew, x, &group, Store::Set, activated);
            crew.rows(activated, width, |_, row| activation::activate(isa, network.activation, row));
            return;
        }
        if let [gate, up] = group[..]
            && let (Some(gate), Some(up)) = (projection(gate), projection(up))
            && let Some(gated) = Gated::new(&gate, &up, network.activation, self.arithmetic, n_rows)
        {
            return gated.run(crew, x, activated);
        }
        gate_up.resize(n_rows * 2 * width, 0.0);
        self.project(crew, x, &group, Store::Set, gate_up);
        crew.rows(activated, width, |row, out| {
            let (gate, up) = gate_up[row * 2 * width..(row + 1) * 2 * width].split_at(width);
            activation::activate_gated(isa, network.activation, gate, up, out);
        });
    }
}

/// A linear as one product, unless it is factored.
fn projection(linear: &Linear) -> Option<Projection<'_>> {
    match &linear.weight {
        Weight::Matrix(matrix) => Some(whole(matrix, linear.bias.as_deref())),
        Weight::Factored { .. } => None,
    }
}

fn whole<'a>(matrix: &'a Matrix, bias: Option<&'a [f32]>) -> Projection<'a> {
    Projection { weight: matrix.view(), bias }
}
