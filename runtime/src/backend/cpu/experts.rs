//! The experts of a mixture: which rows go to which, and how their outputs come together.

use infer_kernels::Crew;
use infer_kernels::cpu::matmul::Store;
use infer_kernels::cpu::moe::{self, Choice, Routing};
use infer_kernels::cpu::vector;

use super::project::Projector;
use crate::model::linear::Linear;
use crate::model::spec;
use crate::model::weights::FeedForward;

/// The choices of a batch's rows, and room for what the experts make of them. A place is a pair of a row and an
/// expert that it goes to; places are numbered by expert, so that each expert's rows lie together.
#[derive(Default)]
pub(super) struct Experts {
    /// [n_rows, n_experts].
    router_logits: Vec<f32>,
    /// [n_rows, n_chosen].
    choices: Vec<Choice>,
    /// The place of each choice, and the row of each place.
    places: Vec<usize>,
    rows: Vec<usize>,
    /// The first place of each expert, and the number of places.
    starts: Vec<usize>,
    /// The input and the output of each place, [n_places, hidden_size].
    gathered: Vec<f32>,
    outputs: Vec<f32>,
}

/// Activations between the two halves of the networks, shared with layers that have one network.
pub(super) struct Hidden<'a> {
    pub gate_up: &'a mut Vec<f32>,
    pub activated: &'a mut Vec<f32>,
}

impl Experts {
    /// Chooses the experts of each row of `x`, [n_rows, hidden_size].
    pub fn route(&mut self, crew: &Crew<'_>, projector: &mut Projector, router: &Linear, routing: Routing, x: &[f32]) {
        let (n_rows, n_experts, n_chosen) = (x.len() / router.cols(), router.rows(), routing.n_chosen());
        self.router_logits.resize(n_rows * n_experts, 0.0);
        projector.project(crew, x, &[router], Store::Set, &mut self.router_logits);
        self.choices.resize(n_rows * n_chosen, Choice::default());
        let logits = &self.router_logits;
        crew.rows(&mut self.choices, n_chosen, |row, choices| {
            moe::route(routing, &logits[row * n_experts..(row + 1) * n_experts], choices);
        });
        self.number_places(n_experts, n_chosen);
    }

    fn number_places(&mut self, n_experts: usize, n_chosen: usize) {
        let Experts { choices, places, rows, starts, .. } = self;
        starts.clear();
        starts.resize(n_experts + 1, 0);
        choices.iter().for_each(|choice| starts[choice.expert as usize + 1] += 1);
        for expert in 0..n_experts {
            starts[expert + 1] += starts[expert];
        }
        let mut next = starts.clone();
        places.clear();
        rows.resize(choices.len(), 0);
        for (index, choice) in choices.iter().enumerate() {
            let place = &mut next[choice.expert as usize];
            rows[*place] = index / n_chosen;
            places.push(*place);
            *place += 1;
        }
    }

    /// Runs the chosen experts over the rows of `x`. Each expert's weights are read once, and none that nobody chose.
    pub fn run(
        &mut self,
        crew: &Crew<'_>,
        projector: &mut Projector,
        network: &spec::FeedForward,
        weights: &[FeedForward],
        x: &[f32],
        hidden: Hidden<'_>,
    ) {
        let hidden_size = weights.first().map_or(1, |weights| weights.down.rows());
        let Experts { rows, starts, gathered, outputs, .. } = self;
        let Hidden { gate_up, activated } = hidden;
        let n_rows = x.len() / hidden_size;
        outputs.resize(rows.len() * hidden_size, 0.0);
        let chosen = weights.iter().zip(starts.windows(2)).filter(|(_, range)| range[0] < range[1]);
        if n_rows == 1 {
            // All of them have the same input, so the first halves are one product.
            let chosen: Vec<&FeedForward> = chosen.map(|(weights, _)| weights).collect();
            projector.feed_forward_input(crew, network, &chosen, x, gate_up, activated);
            let inputs = activated.chunks_exact(activated.len() / chosen.len().max(1));
            for ((weights, input), output) in chosen.iter().zip(inputs).zip(outputs.chunks_exact_mut(hidden_size)) {
                projector.project(crew, input, &[&weights.down], Store::Set, output);
            }
            return;
        }
        gathered.resize(rows.len() * hidden_size, 0.0);
        crew.rows(gathered, hidden_size, |place, out| {
            out.copy_from_slice(&x[rows[place] * hidden_size..][..hidden_size])
        });
        for (weights, range) in chosen {
            let range = range[0] * hidden_size..range[1] * hidden_size;
            projector.feed_forward_input(crew, network, &[weights], &gathered[range.clone()], gate_up, activated);
            projector.project(crew, activated, &[&weights.down], Store::Set, &mut outputs[range]);
        }
    }

    /// How many experts were chosen by any row.
    pub fn n_read(&self) -> usize {
        self.starts.windows(2).filter(|range| range[0] < range[1]).count()
    }

    /// out += the weighted sum of the outputs of each row's experts, [n_rows, hidden_size].
    pub fn add_outputs(&self, crew: &Crew<'_>, hidden_size: usize, out: &mut [f32]) {
        let n_chosen = self.choices.len() * hidden_size / out.len().max(1);
        let isa = crew.isa();
        crew.rows(out, hidden_size, |row, out| {
            let range = row * n_chosen..(row + 1) * n_chosen;
            for (choice, place) in self.choices[range.clone()].iter().zip(&self.places[range]) {
                vector::add_scaled(isa, out, choice.weight, &self.outputs[place * hidden_size..][..hidden_size]);
            }
        });
    }
}
