//! Every tier against the scalar specification, bit for bit.

use super::*;
use crate::quant::int4::Int4Ref;
use crate::quant::int8::Int8Ref;
use crate::quant::product::BLOCK_STEPS;
use crate::quant::{PANEL_ROWS, QUAD, STEP};

/// Reproducible bytes (Marsaglia's xorshift).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| (self.next() >> 32) as u8).collect()
    }

    /// Activations of some kind: small, extreme in turn, all equal, zeros, denormal, or with one outlier.
    fn inputs(&mut self, n: usize, kind: usize) -> Vec<f32> {
        let value = |i: usize, random: u64| match kind % 7 {
            0 | 1 => (random >> 40) as f32 / (1 << 23) as f32 - 1.0,
            2 => [-3.0, 3.0][i % 2],
            3 => -128.0,
            4 => 0.0,
            5 => f32::from_bits((random >> 41) as u32),
            _ => {
                if i % 61 == 7 {
                    1e4
                } else {
                    (random >> 40) as f32 / (1 << 24) as f32
                }
            }
        };
        (0..n).map(|i| value(i, self.next())).collect()
    }
}

/// Rows of a tile.
const TILE_ROWS: usize = TILE_PANELS * PANEL_ROWS;

const COLS: [usize; 11] = [1, 15, 16, 17, 63, 64, 65, 256, 257, 300, 1000];

/// Bytes of weights that no quantizer makes, besides random ones.
fn packed(numbers: &mut Numbers, n: usize, kind: usize) -> Vec<u8> {
    match kind % 4 {
        0 => vec![0x00; n],
        1 => vec![0x80; n],
        2 => (0..n).map(|i| [0x00, 0xff][i % 2]).collect(),
        _ => numbers.bytes(n),
    }
}

/// Whether two results are the same: equal bits, or both NaN.
fn same(found: &[f32], expected: &[f32]) -> bool {
    let equal = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
    found.len() == expected.len() && found.iter().zip(expected).all(equal)
}

fn int4_bytes(numbers: &mut Numbers, rows: usize, cols: usize, kind: usize) -> Vec<u8> {
    let mut bytes = packed(numbers, int4::packed_bytes(rows, cols).unwrap(), kind);
    // The scales of rows are floats: random ones would mostly be huge.
    let panel_bytes = bytes.len() / rows.div_ceil(PANEL_ROWS);
    for panel in bytes.chunks_exact_mut(panel_bytes) {
        for (row, scale) in panel.as_chunks_mut::<4>().0.iter_mut().take(PANEL_ROWS).enumerate() {
            *scale = (0.01 * (row as f32 - 7.0)).to_le_bytes();
        }
    }
    bytes
}

#[test]
fn every_tier_unpacks_weights_as_specified() {
    let mut numbers = Numbers(1);
    for (kind, cols) in COLS.into_iter().enumerate() {
        let bytes8 = packed(&mut numbers, int8::packed_bytes(19, cols).unwrap(), 3);
        let bytes4 = int4_bytes(&mut numbers, 19, cols, kind);
        let int8 = Int8Ref::new(&bytes8, 19, cols).unwrap();
        let int4 = Int4Ref::new(&bytes4, 19, cols).unwrap();
        for row in [0, 5, 15, 16, 18] {
            let (index, lane) = (row / PANEL_ROWS, row % PANEL_ROWS);
            let (mut expected8, mut expected4) = (vec![1.0; cols], vec![1.0; cols]);
            int8.dequantize(row, &mut expected8);
            int4.dequantize(row, &mut expected4);
            for isa in Isa::available() {
                let mut out = vec![Lanes([0.0; PANEL_ROWS]); cols];
                isa.unpack_int8(int8.panel(index), &mut out);
                let found: Vec<f32> = out.iter().map(|values| values[lane]).collect();
                assert!(same(&found, &expected8), "int8, {}, row {row} of {cols}", isa.name());
                let panel = int4.panel(index);
                isa.unpack_int4(&panel.row_scales, panel.steps, &mut out);
                let found: Vec<f32> = out.iter().map(|values| values[lane]).collect();
                assert!(same(&found, &expected4), "int4, {}, row {row} of {cols}", isa.name());
            }
        }
    }
}

#[test]
fn every_tier_quantizes_inputs_as_specified() {
    let mut numbers = Numbers(2);
    for kind in [Kind::Int4, Kind::Int8] {
        for (i, cols) in COLS.into_iter().enumerate() {
            for width in 1..=8 {
                let mut x = numbers.inputs(width * cols, i + width);
                if i == 3 {
                    x[cols - 1] = f32::NAN;
                }
                let (mut found, mut expected) = (InputTile::default(), InputTile::default());
                expected.fill(kind, &x, width);
                for isa in Isa::available() {
                    isa.quantize(kind, &x, width, &mut found);
                    let what = format!("{}, {kind:?}, {width} rows of {cols}", isa.name());
                    assert_eq!(found.codes, expected.codes, "codes, {what}");
                    assert!(same(&found.scales, &expected.scales), "scales, {what}");
                    assert_eq!(found.corrections, expected.corrections, "corrections, {what}");
                    assert_eq!(found.group_sums, expected.group_sums, "group sums, {what}");
                }
            }
        }
    }
}

#[test]
fn every_tier_multiplies_int4_weights_as_specified() {
    let mut numbers = Numbers(3);
    for (i, cols) in COLS.into_iter().enumerate() {
        for (width, kind) in (1..=8).flat_map(|width| (0..4).map(move |kind| (width, kind))) {
            let bytes = int4_bytes(&mut numbers, TILE_ROWS, cols, kind);
            let matrix = Int4Ref::new(&bytes, TILE_ROWS, cols).unwrap();
            let mut inputs = InputTile::default();
            inputs.fill(Kind::Int4, &numbers.inputs(width * cols, i + width + kind), width);
            let panels: Vec<Panel<'_>> = (0..TILE_PANELS).map(|index| matrix.panel(index)).collect();
            for n in [1, 2, 4] {
                let mut expected = vec![Lanes([0.0; PANEL_ROWS]); width * n];
                product::int4_product(&panels[..n], &inputs, &mut expected);
                for isa in Isa::available() {
                    let mut found = vec![Lanes([1.0; PANEL_ROWS]); width * n];
                    isa.int4_product(&panels[..n], &inputs, &mut found);
                    let same = same(bytemuck::cast_slice(&found), bytemuck::cast_slice(&expected));
                    assert!(same, "{}, {n} panels, {width} columns, {cols} inputs, weights {kind}", isa.name());
                }
            }
        }
    }
}

#[test]
fn every_tier_multiplies_expanded_int4_weights_as_specified() {
    let mut numbers = Numbers(4);
    for (i, cols) in COLS.into_iter().enumerate() {
        for (width, kind) in (1..=8).flat_map(|width| (0..4).map(move |kind| (width, kind))) {
            let bytes = int4_bytes(&mut numbers, TILE_ROWS, cols, kind);
            let matrix = Int4Ref::new(&bytes, TILE_ROWS, cols).unwrap();
            let mut inputs = InputTile::default();
            inputs.fill(Kind::Int4, &numbers.inputs(width * cols, i + width + kind), width);
            let mut expected = vec![Lanes([0.5; PANEL_ROWS]); width * TILE_PANELS];
            let run = |isa: Option<Isa>, sums: &mut [Lanes]| {
                let mut tiles = Vec::new();
                for block in 0..cols.div_ceil(STEP).div_ceil(BLOCK_STEPS) {
                    let mut tile = vec![[[7; 64]; TILE_PANELS]; BLOCK_STEPS * STEP / QUAD];
                    let mut depth = 0;
                    let scales = std::array::from_fn(|index| {
                        let panel = matrix.panel(index);
                        let start = block * BLOCK_STEPS;
                        let steps = &panel.steps[start..panel.steps.len().min(start + BLOCK_STEPS)];
                        depth = steps.len() * STEP / QUAD;
                        match isa {
                            Some(isa) => isa.expand(&panel.row_scales, steps, index, &mut tile[..depth]),
                            None => product::expand(&panel.row_scales, steps, index, &mut tile[..depth]),
                        }
                    });
                    tile.truncate(depth);
                    match isa {
                        Some(isa) => isa.expanded_product(&tile, &scales, &inputs, block, sums),
                        None => product::expanded_product(&tile, &scales, &inputs, block, sums),
                    }
                    tiles.push(tile);
                }
                tiles
            };
            let expected_tiles = run(None, &mut expected);
            for isa in Isa::available() {
                let mut found = vec![Lanes([0.5; PANEL_ROWS]); width * TILE_PANELS];
                let tiles = run(Some(isa), &mut found);
                assert!(tiles == expected_tiles, "expanded weights, {}, {cols} inputs, weights {kind}", isa.name());
                let same = same(bytemuck::cast_slice(&found), bytemuck::cast_slice(&expected));
                assert!(same, "{}, {width} columns, {cols} inputs, weights {kind}", isa.name());
            }
        }
    }
}

#[test]
fn every_tier_multiplies_int8_weights_as_specified() {
    let mut numbers = Numbers(5);
    for (i, cols) in COLS.into_iter().enumerate() {
        for (width, kind) in (1..=8).flat_map(|width| (0..4).map(move |kind| (width, kind))) {
            let bytes = packed(&mut numbers, int8::packed_bytes(TILE_ROWS, cols).unwrap(), kind);
            let matrix = Int8Ref::new(&bytes, TILE_ROWS, cols).unwrap();
            let mut inputs = InputTile::default();
            inputs.fill(Kind::Int8, &numbers.inputs(width * cols, i + width + kind), width);
            let first = cols.div_ceil(STEP) / 2;
            let panels: Vec<&[int8::Step]> = (0..TILE_PANELS).map(|index| &matrix.panel(index)[first..]).collect();
            for n in [1, 2, 4] {
                let mut expected = vec![Lanes([0.5; PANEL_ROWS]); width * n];
                product::int8_product(&panels[..n], &inputs, first, &mut expected);
                for isa in Isa::available() {
                    let mut found = vec![Lanes([0.5; PANEL_ROWS]); width * n];
                    isa.int8_product(&panels[..n], &inputs, first, &mut found);
                    let same = same(bytemuck::cast_slice(&found), bytemuck::cast_slice(&expected));
                    assert!(same, "{}, {n} panels, {width} columns, {cols} inputs, weights {kind}", isa.name());
                }
            }
        }
    }
}
