//! Every matrix and vector that a [`Spec`] names, with what it is for.

use crate::model::spec::{FeedForward, Linear, Matrix, Mlp, Norm, Spec, Vector};

/// What a matrix is for, which decides its format.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Role {
    /// Token embedding; of a tied one the head decides.
    Embedding,
    /// Learned positions.
    Positions,
    /// Query, key and output of attention.
    Attention,
    /// Value of attention.
    Value,
    /// Scores of experts.
    Router,
    /// Gate and up.
    Mlp,
    /// Back to the residual stream.
    Down,
    /// Between embedding or head and the hidden size.
    Projection,
    /// Output head.
    Head,
}

/// A parameter of the model.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Parameter<'a> {
    Matrix(&'a Matrix, Role),
    Vector(&'a Vector),
}

/// Calls `visit` for every parameter, in the order in which a token meets them.
pub(crate) fn for_each_parameter<'a>(spec: &'a Spec, visit: &mut dyn FnMut(Parameter<'a>)) {
    visit(Parameter::Matrix(&spec.embedding.weight, Role::Embedding));
    linears(&spec.embedding.project_in, Role::Projection, visit);
    if let Some(positions) = &spec.embedding.positions {
        visit(Parameter::Matrix(&positions.weight, Role::Positions));
    }
    for layer in &spec.layers {
        let attention = &layer.attention;
        norms([&layer.attention_norm], visit);
        linears([&attention.query, &attention.key], Role::Attention, visit);
        linears([&attention.value], Role::Value, visit);
        linears([&attention.output], Role::Attention, visit);
        norms([&attention.query_norm, &attention.key_norm], visit);
        norms([&layer.post_attention_norm, &layer.attention_output_norm, &layer.mlp_norm], visit);
        match &layer.mlp {
            Mlp::Dense(network) => feed_forward(network, visit),
            Mlp::Experts { router, experts, .. } => {
                linears([router.as_ref()], Role::Router, visit);
                experts.iter().for_each(|expert| feed_forward(expert, visit));
            }
        }
        norms([&layer.post_mlp_norm, &layer.mlp_output_norm], visit);
    }
    norms([&spec.final_norm], visit);
    linears(&spec.project_out, Role::Projection, visit);
    linears([&spec.head], Role::Head, visit);
}

fn feed_forward<'a>(network: &'a FeedForward, visit: &mut dyn FnMut(Parameter<'a>)) {
    linears(network.gate.iter().chain([&network.up]), Role::Mlp, visit);
    linears([&network.down], Role::Down, visit);
}

fn linears<'a>(linears: impl IntoIterator<Item = &'a Linear>, role: Role, visit: &mut dyn FnMut(Parameter<'a>)) {
    for linear in linears {
        linear.inner.iter().chain([&linear.weight]).for_each(|matrix| visit(Parameter::Matrix(matrix, role)));
        if let Some(bias) = &linear.bias {
            visit(Parameter::Vector(bias));
        }
    }
}

fn norms<'a>(norms: impl IntoIterator<Item = &'a Option<Norm>>, visit: &mut dyn FnMut(Parameter<'a>)) {
    for norm in norms.into_iter().flatten() {
        norm.weight.iter().chain(&norm.bias).for_each(|vector| visit(Parameter::Vector(vector)));
    }
}
