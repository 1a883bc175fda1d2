//! The one forward pass, for every model family and every device.

use crate::backend::Pass;
use crate::generate::CancelToken;
use crate::model::spec::{Block, Mlp, Spec};

/// Runs the layers of a model over the batch that `pass` was made for. Returns whether it came to the end: a layer of a
/// large model takes long enough to look at `cancel` before each.
pub(crate) fn forward(spec: &Spec, pass: &mut Pass<'_>, cancel: &CancelToken) -> bool {
    pass.embed();
    for (index, layer) in spec.layers.iter().enumerate() {
        if cancel.is_cancelled() {
            return false;
        }
        pass.attention_input(index);
        pass.attend(index);
        // In a parallel block the MLP reads x as it was before attention is added.
        if layer.block == Block::Sequential {
            pass.attention_output(index);
        }
        match layer.mlp {
            Mlp::Dense(_) => pass.mlp_input(index),
            Mlp::Experts { .. } => pass.route(index),
        }
        if layer.block == Block::Parallel {
            pass.attention_output(index);
        }
        match layer.mlp {
            Mlp::Dense(_) => pass.mlp_output(index),
            Mlp::Experts { .. } => pass.experts(index),
        }
    }
    pass.head();
    true
}
