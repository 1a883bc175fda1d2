//! Numbers of tokens and rows that a tier has no kernel for are multiplied by the scalar specification: correctly, and
//! many times slower. None that occurs may be one.

use super::*;
use crate::Team;
use crate::quant::product::CALLS;
use crate::quant::{int4, int8};

const COLS: usize = 320;

/// Above, tasks are cut as for the multiples of this.
const MOST_TOKENS: usize = 70;

#[test]
fn no_number_of_tokens_or_rows_falls_to_the_scalar_specification() {
    let x: Vec<f32> = (0..MOST_TOKENS * COLS).map(|i| (i % 31) as f32 - 15.0).collect();
    for isa in Isa::available().into_iter().filter(|isa| isa.name() != "portable") {
        let team = Team::new(1, isa).unwrap();
        for (n_panels, n_tokens) in (1..=9).flat_map(|panels| (1..=MOST_TOKENS).map(move |tokens| (panels, tokens))) {
            let rows = n_panels * PANEL_ROWS;
            let int4 = vec![0; int4::packed_bytes(rows, COLS).unwrap()];
            let int8 = vec![0; int8::packed_bytes(rows, COLS).unwrap()];
            let weights = [MatrixRef::int4(&int4, rows, COLS).unwrap(), MatrixRef::int8(&int8, rows, COLS).unwrap()];
            let x = &x[..n_tokens * COLS];
            for (weight, format) in weights.into_iter().zip(["int4", "int8"]) {
                let part = Projection { weight, bias: None };
                let mut out = vec![0.0; n_tokens * rows];
                // A team of one works on this thread, whose calls are counted.
                team.run(|crew| {
                    let before = CALLS.get();
                    matmul(crew, x, n_tokens, &[part], Arithmetic::Reduced, Store::Set, &mut out);
                    if let Some(gated) = Gated::new(&part, &part, Activation::Silu, Arithmetic::Reduced, n_tokens) {
                        gated.run(crew, x, &mut out);
                    }
                    let name = isa.name();
                    assert_eq!(CALLS.get(), before, "{name}, {format}, {n_tokens} tokens, {n_panels} panels of rows");
                });
            }
        }
    }
}
