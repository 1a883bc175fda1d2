//! Every matrix and vector that a [`Spec`] names, with what it is for.

use crate::model::spec::{FeedForward, Linear, Matrix, Mlp, Norm, Spec, Vector};
use crate::options::WeightFormat;

/// What a matrix is for, which decides its format.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Role {
    /// Inside a layer.
    Layer,
    /// Embedding or output head.
    Vocabulary,
    /// Small and sensitive: routers and learned positions stay as they are stored.
    AsStored,
}

impl Role {
    /// What a matrix of this role becomes when the model is asked for in `format`.
    pub fn stored_as(self, format: WeightFormat) -> WeightFormat {
        match (self, format) {
            (Role::AsStored, _) => WeightFormat::AsStored,
            // Errors in the head reach the logits unaveraged, and it is read once a token.
            (Role::Vocabulary, WeightFormat::Int4) => WeightFormat::Int8,
            _ => format,
        }
    }
}

/// A parameter of the model.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Parameter<'a> {
    Matrix(&'a Matrix, Role),
    Vector(&'a Vector),
}

/// Calls `visit` for every parameter, in the order in which a token meets them.
pub(crate) fn for_each_parameter<'a>(spec: &'a Spec, visit: &mut dyn FnMut(Parameter<'a>)) {
    visit(Parameter::Matrix(&spec.embedding.weight, Role::Vocabulary));
    linears(&spec.embedding.project_in, Role::Layer, visit);
    if let Some(positions) = &spec.embedding.positions {
        visit(Parameter::Matrix(&positions.weight, Role::AsStored));
    }
    for layer in &spec.layers {
        let attention = &layer.attention;
        norms([&layer.attention_norm], visit);
        linears([&attention.query, &attention.key, &attention.value, &attention.output], Role::Layer, visit);
        norms([&attention.query_norm, &attention.key_norm], visit);
        norms([&layer.post_attention_norm, &layer.attention_output_norm, &layer.mlp_norm], visit);
        match &layer.mlp {
            Mlp::Dense(network) => feed_forward(network, visit),
            Mlp::Experts { router, experts, .. } => {
                linears([router.as_ref()], Role::AsStored, visit);
                experts.iter().for_each(|expert| feed_forward(expert, visit));
            }
        }
        norms([&layer.post_mlp_norm, &layer.mlp_output_norm], visit);
    }
    norms([&spec.final_norm], visit);
    linears(&spec.project_out, Role::Layer, visit);
    linears([&spec.head], Role::Vocabulary, visit);
}

fn feed_forward<'a>(network: &'a FeedForward, visit: &mut dyn FnMut(Parameter<'a>)) {
    linears(&network.gate, Role::Layer, visit);
    linears([&network.up, &network.down], Role::Layer, visit);
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
