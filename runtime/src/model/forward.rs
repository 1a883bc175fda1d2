//! The one forward pass, for every model family and every device.

use crate::backend::Pass;
use crate::generate::CancelToken;
use crate::model::clock::{Clock, Operation};
use crate::model::spec::{Block, Mlp, Spec};

/// Runs the layers of a model over the batch that `pass` was made for. Returns whether it came to the end: a layer of a
/// large model takes long enough to look at `cancel` before each.
pub(crate) fn forward(spec: &Spec, pass: &mut Pass<'_>, clock: &Clock, cancel: &CancelToken) -> bool {
    clock.time(Operation::Embed, || pass.embed());
    for (index, layer) in spec.layers.iter().enumerate() {
        if cancel.is_cancelled() {
            return false;
        }
        clock.time(Operation::AttentionInput, || pass.attention_input(index));
        clock.time(Operation::Attend, || pass.attend(index));
        // In a parallel block the MLP reads x as it was before attention is added.
        if layer.block == Block::Sequential {
            clock.time(Operation::AttentionOutput, || pass.attention_output(index));
        }
        match layer.mlp {
            Mlp::Dense(_) => clock.time(Operation::MlpInput, || pass.mlp_input(index)),
            Mlp::Experts { .. } => clock.time(Operation::Route, || pass.route(index)),
        }
        if layer.block == Block::Parallel {
            clock.time(Operation::AttentionOutput, || pass.attention_output(index));
        }
        match layer.mlp {
            Mlp::Dense(_) => clock.time(Operation::MlpOutput, || pass.mlp_output(index)),
            Mlp::Experts { .. } => clock.time(Operation::Experts, || pass.experts(index)),
        }
    }
    clock.time(Operation::Head, || pass.head());
    true
}
