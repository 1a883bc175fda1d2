//! Which experts of a mixture a token goes to, and with what weights.

use super::math::exp;

/// How experts are chosen from the router's logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Routing {
    /// Softmax over all experts, then the `top_k` largest (Mixtral, arXiv:2401.04088, section 2.1).
    SoftmaxTopK {
        /// Experts a token goes to.
        top_k: usize,
        /// Whether the chosen weights are divided by their sum.
        renormalize: bool,
    },
    /// Two experts, one after the other, by SparseMixer's rule (Liu et al., arXiv:2310.00811; as in Phi-3.5-MoE).
    SparseMixer {
        /// Logits further from the largest than twice this share do not count.
        jitter: f32,
    },
}

impl Routing {
    /// Experts a token goes to.
    pub fn n_chosen(&self) -> usize {
        match self {
            Routing::SoftmaxTopK { top_k, .. } => *top_k,
            Routing::SparseMixer { .. } => 2,
        }
    }
}

/// An expert that a token goes to, and the factor of its output.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Choice {
    /// The expert's index.
    pub expert: u32,
    /// What its output is multiplied with.
    pub weight: f32,
}

/// Chooses the experts of one token, the best first.
///
/// There are [`Routing::n_chosen`] choices, and at least as many logits. A tie goes to the lower id. Logits that are
/// not finite give distinct experts whose weights may be not finite.
pub fn route(routing: Routing, router_logits: &[f32], choices: &mut [Choice]) {
    let n = routing.n_chosen();
    assert_eq!(choices.len(), n, "choices of a token");
    assert!(n <= router_logits.len(), "{n} of {} experts", router_logits.len());
    match routing {
        Routing::SoftmaxTopK { renormalize, .. } => {
            let (largest, mut total) = (best(router_logits, &[]).1, 0.0);
            router_logits.iter().for_each(|logit| total += exp(logit - largest));
            for i in 0..n {
                let (expert, logit) = best(router_logits, &choices[..i]);
                choices[i] = Choice { expert, weight: exp(logit - largest) / total };
            }
            if renormalize {
                let sum: f32 = choices.iter().map(|choice| choice.weight).sum();
                choices.iter_mut().for_each(|choice| choice.weight /= sum);
            }
        }
        Routing::SparseMixer { jitter } => {
            for i in 0..n {
                let (expert, largest) = best(router_logits, &choices[..i]);
                let mut total = 0.0;
                for (id, logit) in (0..).zip(router_logits) {
                    let distance = (largest - logit) / logit.abs().max(largest);
                    // Not `<=`: zero by zero is NaN and counts.
                    let masked = distance > 2.0 * jitter;
                    if !masked && !is_taken(&choices[..i], id) {
                        total += exp(logit - largest);
                    }
                }
                choices[i] = Choice { expert, weight: 1.0 / total };
            }
        }
    }
}

/// The expert with the largest logit that is not taken, and the logit.
fn best(logits: &[f32], taken: &[Choice]) -> (u32, f32) {
    let free = (0..).zip(logits.iter().copied()).filter(|(id, _)| !is_taken(taken, *id));
    // A later one wins only if it is larger, or if what was first is NaN.
    free.reduce(|a, b| if b.1 > a.1 || a.1.is_nan() && !b.1.is_nan() { b } else { a }).unwrap_or((0, f32::NAN))
}

fn is_taken(choices: &[Choice], expert: u32) -> bool {
    choices.iter().any(|choice| choice.expert == expert)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routed(routing: Routing, logits: &[f32]) -> (Vec<u32>, Vec<f32>) {
        let mut choices = vec![Choice::default(); routing.n_chosen()];
        route(routing, logits, &mut choices);
        choices.iter().map(|choice| (choice.expert, choice.weight)).unzip()
    }

    #[test]
    fn experts_and_weights_are_those_of_the_definition() {
        let top = |top_k, renormalize| Routing::SoftmaxTopK { top_k, renormalize };
        let mixer = Routing::SparseMixer { jitter: 0.01 };
        let e = std::f32::consts::E;
        type Case<'a> = (Routing, &'a [f32], &'a [u32], &'a [f32]);
        let cases: [Case<'_>; 9] = [
            (top(1, true), &[0.3, 2.0, -1.0], &[1], &[1.0]),
            (top(2, true), &[0.0, 1.0, -5.0, 0.0], &[1, 0], &[e / (e + 1.0), 1.0 / (e + 1.0)]),
            (top(2, false), &[0.0, 1.0, 0.0], &[1, 0], &[e / (e + 2.0), 1.0 / (e + 2.0)]),
            (top(3, true), &[7.0, 7.0, 7.0], &[0, 1, 2], &[1.0 / 3.0; 3]),
            // Nothing else is near: each weight is 1.
            (mixer, &[1.0, 3.0, 2.0], &[1, 2], &[1.0, 1.0]),
            // 2.99 is within 2 % of 3, in both rounds.
            (mixer, &[1.0, 3.0, 2.99], &[1, 2], &[1.0 / (1.0 + (-0.01f32).exp()), 1.0]),
            // All negative: the distance is divided by |s|, not by the largest.
            (mixer, &[-3.0, -1.0, -1.01], &[1, 2], &[1.0 / (1.0 + (-0.01f32).exp()), 1.0]),
            (mixer, &[0.0, 0.0], &[0, 1], &[0.5, 1.0]),
            (mixer, &[5.0, -8.0, -9.0, 5.0], &[0, 3], &[0.5, 1.0]),
        ];
        for (routing, logits, experts, weights) in cases {
            let found = routed(routing, logits);
            assert_eq!(found.0, experts, "{routing:?} of {logits:?}");
            for (found, expected) in found.1.iter().zip(weights) {
                assert!((found - expected).abs() < 1e-6, "{routing:?} of {logits:?}: {found}, expected {expected}");
            }
        }
    }

    #[test]
    fn logits_that_are_not_finite_still_choose_distinct_experts() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        for routing in [Routing::SoftmaxTopK { top_k: 2, renormalize: true }, Routing::SparseMixer { jitter: 0.01 }] {
            for logits in [[nan; 3], [inf, inf, -inf], [-inf; 3], [nan, 1.0, nan], [1.0, nan, inf]] {
                let (experts, _) = routed(routing, &logits);
                assert!(
                    experts[0] != experts[1] && experts.iter().all(|e| *e < 3),
                    "{routing:?} of {logits:?}: {experts:?}"
                );
            }
        }
    }
}
