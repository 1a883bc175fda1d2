//! The quantized formats: their layout, their error, and weights that no model should have.

use half::{bf16, f16};
use infer_kernels::cpu::matrix::ElementType;
use infer_kernels::quant::{int4, int8, stored};
use infer_kernels::{Isa, MatrixRef};

/// Normally distributed numbers (Box and Muller) from SplitMix64.
fn normal(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64 + 1e-17
    };
    (0..n).map(|_| ((-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32).collect()
}

fn int8_values(source: &[f32], cols: usize) -> Vec<f32> {
    let rows = source.len() / cols;
    let mut packed = vec![0xff; int8::packed_bytes(rows, cols).unwrap()];
    int8::quantize_rows(source, cols, &mut packed);
    values(MatrixRef::int8(&packed, rows, cols).unwrap())
}

fn int4_values(source: &[f32], cols: usize) -> Vec<f32> {
    let rows = source.len() / cols;
    let mut packed = vec![0xff; int4::packed_bytes(rows, cols).unwrap()];
    int4::quantize_rows(source, cols, &mut packed);
    values(MatrixRef::int4(&packed, rows, cols).unwrap())
}

fn values(matrix: MatrixRef<'_>) -> Vec<f32> {
    let mut out = vec![f32::NAN; matrix.rows() * matrix.cols()];
    out.chunks_exact_mut(matrix.cols()).enumerate().for_each(|(row, out)| matrix.row_to_f32(row, out));
    out
}

/// Sum of squared errors over sum of squares.
fn relative_error(source: &[f32], found: &[f32]) -> f64 {
    let error: f64 = source.iter().zip(found).map(|(a, b)| (*a as f64 - *b as f64).powi(2)).sum();
    error / source.iter().map(|a| (*a as f64).powi(2)).sum::<f64>()
}

#[test]
fn the_layouts_are_those_of_the_specification() {
    // int8, rows 1 and 2 of 66 inputs: scale 1.0 = 0x3c00, largest weight 127.
    let (mut weights, cols) = (vec![0.0; 3 * 66], 66);
    weights[cols..][..4].copy_from_slice(&[127.0, -3.0, 0.4, 0.0]);
    weights[cols + 33] = 127.0;
    weights[2 * cols + 65] = -127.0;
    let mut packed = vec![0xff; int8::packed_bytes(3, cols).unwrap()];
    int8::quantize_rows(&weights, cols, &mut packed);
    let mut expected = [[vec![128; 1024], vec![0; 64]].concat(), [vec![128; 1024], vec![0; 64]].concat()];
    expected[0][4..6].copy_from_slice(&[255, 125]);
    expected[0][8 * 64 + 4 + 1] = 255; // quad 8, input 33
    expected[1][2 * 4 + 1] = 1; // step 1, row 2, input 65
    expected[0][1024 + 2..][..2].copy_from_slice(&[0x00, 0x3c]);
    expected[0][1024 + 32 + 2..][..2].copy_from_slice(&[0x00, 0x3c]);
    expected[1][1024 + 4..][..2].copy_from_slice(&[0x00, 0x3c]);
    assert!(packed == expected.concat(), "int8");

    // int4, row 1 built by hand: row scale 0.5; group 0 with scale -3 and shift 2, group 1 with scale 31 and shift 0.
    let mut packed = vec![0; int4::packed_bytes(2, 18).unwrap()];
    assert_eq!(packed.len(), 64 + 512 + 64);
    packed[4..8].copy_from_slice(&0.5f32.to_le_bytes());
    let (codes, heads) = packed[64..].split_at_mut(512);
    codes[4..8].copy_from_slice(&[0x40, 0x51, 0x62, 0x73]);
    codes[64 + 4..][..4].copy_from_slice(&[0xc8, 0xd9, 0xea, 0xfb]);
    codes[2 * 64 + 4..][..2].copy_from_slice(&[0x00, 0x0f]);
    (heads[1], heads[16 + 1]) = ((-3i8 << 2) as u8 | 2, 31 << 2);
    let found = values(MatrixRef::int4(&packed, 2, 18).unwrap());
    let group_0 = int4::TABLE.map(|level| 0.5 * -3.0 * (level as f32 + 8.0));
    let group_1 = [int4::TABLE[0], int4::TABLE[15]].map(|level| 0.5 * 31.0 * level as f32);
    assert_eq!(found, [&[0.0; 18][..], &group_0, &group_1].concat());
}

/// Student's t with five degrees of freedom: heavier tails, as trained weights have.
fn student_t5(n: usize, seed: u64) -> Vec<f32> {
    let (normal, others) = (normal(n, seed), normal(5 * n, seed + 1));
    let spread = others.chunks_exact(5).map(|z| (z.iter().map(|z| z * z).sum::<f32>() / 5.0).sqrt());
    normal.iter().zip(spread).map(|(z, spread)| z / spread).collect()
}

/// The values of Q8_0: blocks of 32 with the scale max|w| / 127 in f16.
fn q8_0_values(source: &[f32]) -> Vec<f32> {
    let blocks = source.chunks(32).flat_map(|block| {
        let scale = block.iter().fold(0.0f32, |a, w| a.max(w.abs())) / 127.0;
        let stored = f16::from_f32(scale).to_f32();
        block.iter().map(move |w| stored * (w / scale).round())
    });
    blocks.collect()
}

/// The values of Q4_K: super-blocks of 256 with two f16 factors d and m, blocks of 32 with 6-bit scale s and minimum t,
/// value = d * s * code - m * t with a 4-bit code. Scale and minimum of a block are the best of 41 least-squares fits.
fn q4_k_values(source: &[f32]) -> Vec<f32> {
    let mut values = Vec::new();
    for super_block in source.chunks_exact(256) {
        let fits: Vec<(f32, f32)> = super_block.chunks_exact(32).map(q4_k_fit).collect();
        let factor = |largest: f32| f16::from_f32(largest / 63.0).to_f32();
        let d = factor(fits.iter().fold(0.0, |a, fit| fit.0.max(a)));
        let m = factor(fits.iter().fold(0.0, |a, fit| fit.1.max(a)));
        for (block, (scale, minimum)) in super_block.chunks_exact(32).zip(fits) {
            let stored = |value: f32, factor: f32| factor * (value / factor).round().clamp(0.0, 63.0);
            let (scale, minimum) = (stored(scale, d), stored(minimum, m));
            values.extend(block.iter().map(|w| scale * ((w + minimum) / scale).round().clamp(0.0, 15.0) - minimum));
        }
    }
    values
}

/// Scale and minimum (not negative, and taken away) of a block of 32 with the least squared error.
fn q4_k_fit(block: &[f32]) -> (f32, f32) {
    let low = block.iter().fold(0.0f32, |a, w| a.min(*w)) as f64;
    let high = block.iter().fold(f32::MIN, |a, w| a.max(*w)) as f64;
    let mut best = (f64::MAX, (0.0, 0.0));
    for step in -20..=20 {
        let inverse = (15.0 + 0.1 * step as f64) / (high - low);
        let codes: Vec<f64> = block.iter().map(|w| (inverse * (*w as f64 - low)).round().clamp(0.0, 15.0)).collect();
        let n = block.len() as f64;
        let (mut sum, mut squares, mut weights, mut cross) = (0.0, 0.0, 0.0, 0.0);
        for (w, code) in block.iter().map(|w| *w as f64).zip(&codes) {
            (sum, squares, weights, cross) = (sum + code, squares + code * code, weights + w, cross + w * code);
        }
        let determinant = n * squares - sum * sum;
        let (mut scale, mut offset) =
            ((n * cross - sum * weights) / determinant, (squares * weights - sum * cross) / determinant);
        if offset > 0.0 {
            (scale, offset) = (cross / squares, 0.0);
        }
        let error: f64 = block.iter().zip(&codes).map(|(w, code)| (scale * code + offset - *w as f64).powi(2)).sum();
        if error < best.0 {
            best = (error, (scale as f32, -offset as f32));
        }
    }
    best.1
}

#[test]
fn errors_are_below_those_of_widespread_formats() {
    let cols = 4096;
    // (name, weights, error of int4 in the design's simulation)
    let cases = [("normal", normal(32 * cols, 5), 0.0035), ("Student's t", student_t5(32 * cols, 6), 0.0045)];
    for (name, source, simulated) in cases {
        let int4 = relative_error(&source, &int4_values(&source, cols));
        let q4_k = relative_error(&source, &q4_k_values(&source));
        assert!((0.004..0.008).contains(&q4_k), "{name}: Q4_K errs by {q4_k}, which is not what is known of it");
        assert!(int4 < simulated, "{name}: int4 errs by {int4}");
        assert!(int4 <= 0.75 * q4_k, "{name}: int4 errs by {int4}, Q4_K by {q4_k}");
        let int8 = relative_error(&source, &int8_values(&source, cols));
        let q8_0 = relative_error(&source, &q8_0_values(&source));
        assert!(int8 <= q8_0, "{name}: int8 errs by {int8}, Q8_0 by {q8_0}");
    }
}

#[test]
fn sizes_are_those_of_the_design() {
    for cols in [1024, 2048, 5632, 14336] {
        let bits = |bytes: Option<usize>| 8.0 * bytes.unwrap() as f64 / (4096 * cols) as f64;
        assert!(bits(int4::packed_bytes(4096, cols)) <= 4.55, "int4 of {cols} inputs");
        assert_eq!(bits(int8::packed_bytes(4096, cols)), 8.5, "int8 of {cols} inputs");
    }
    assert_eq!((int4::packed_bytes(usize::MAX, 64), int8::packed_bytes(64, usize::MAX)), (None, None));
}

#[test]
fn panels_are_independent_and_results_repeat() {
    for cols in [1, 15, 16, 33, 100] {
        let source = normal(37 * cols, cols as u64);
        let pack = |rows: std::ops::Range<usize>| {
            let mut packed = (
                vec![0xee; int8::packed_bytes(rows.len(), cols).unwrap()],
                vec![0xee; int4::packed_bytes(rows.len(), cols).unwrap()],
            );
            int8::quantize_rows(&source[rows.start * cols..rows.end * cols], cols, &mut packed.0);
            int4::quantize_rows(&source[rows.start * cols..rows.end * cols], cols, &mut packed.1);
            packed
        };
        let (whole, first, rest) = (pack(0..37), pack(0..16), pack(16..37));
        assert!(whole.0 == [first.0, rest.0].concat(), "int8, rows of {cols}");
        assert!(whole.1 == [first.1, rest.1].concat(), "int4, rows of {cols}");
    }
}

/// Weights of many kinds: normal ones as they are and in few bits, small integers that are often exactly between two
/// levels, any bits at all, denormal ones, extremes in turn, and outliers among zeros.
fn weights_of(kind: usize, n: usize) -> Vec<f32> {
    let normal = normal(n, kind as u64 + 100);
    let value = |(i, z): (usize, f32)| match kind {
        0 => z,
        1 => bf16::from_f32(z).to_f32(),
        2 => (4.0 * z).round(),
        3 => f32::from_bits(z.to_bits().wrapping_mul(0x9e37_79b9)),
        4 => f32::from_bits(z.to_bits() >> 10),
        5 => [1.0, -1.0][i % 2],
        _ => [0.0, 1e4 * z][usize::from(i % 61 == 7)],
    };
    normal.into_iter().enumerate().map(value).collect()
}

#[test]
fn every_tier_packs_the_same_bytes() {
    for kind in 0..7 {
        for (rows, cols) in [(16, 256), (33, 100), (1, 1), (7, 15), (17, 65), (3, 1000)] {
            let source = weights_of(kind, rows * cols);
            let (n4, n8) = (int4::packed_bytes(rows, cols).unwrap(), int8::packed_bytes(rows, cols).unwrap());
            let mut expected = (vec![0xee; n4], vec![0xee; n8]);
            int4::quantize_rows(&source, cols, &mut expected.0);
            int8::quantize_rows(&source, cols, &mut expected.1);
            for isa in Isa::available() {
                let mut found = (vec![0x11; n4], vec![0x11; n8]);
                isa.quantize_int4(&source, cols, &mut found.0);
                isa.quantize_int8(&source, cols, &mut found.1);
                let what = format!("{}, weights {kind}, {rows} x {cols}", isa.name());
                assert!(found.0 == expected.0, "int4, {what}");
                assert!(found.1 == expected.1, "int8, {what}");
            }
        }
    }
}

#[test]
fn every_tier_reads_stored_weights_exactly() {
    let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let finite: Vec<u8> = (0..0x7c00u16).flat_map(u16::to_le_bytes).collect();
    for element in [ElementType::F32, ElementType::F16, ElementType::Bf16] {
        let value = |bytes: &[u8]| match element {
            ElementType::F32 => f32::from_le_bytes(bytes.try_into().unwrap()),
            ElementType::F16 => f16::from_le_bytes(bytes.try_into().unwrap()).to_f32(),
            ElementType::Bf16 => bf16::from_le_bytes(bytes.try_into().unwrap()).to_f32(),
        };
        let size = if element == ElementType::F32 { 4 } else { 2 };
        // From the second value on, so that vectors of bytes are not aligned.
        for (bytes, expected_finite) in [(&all[size..], false), (&finite[size..], true), (&[], true)] {
            let expected: Vec<f32> = bytes.chunks_exact(size).map(value).collect();
            let same = |a: &f32, b: &f32| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
            let mut found = vec![1.0; expected.len()];
            assert_eq!(stored::to_f32(element, bytes, &mut found), expected_finite, "{element:?}");
            assert!(found.iter().zip(&expected).all(|(a, b)| same(a, b)), "{element:?}");
            for isa in Isa::available() {
                found.fill(1.0);
                assert_eq!(isa.to_f32(element, bytes, &mut found), expected_finite, "{}, {element:?}", isa.name());
                assert!(found.iter().zip(&expected).all(|(a, b)| same(a, b)), "{}, {element:?}", isa.name());
            }
        }
    }
}

#[test]
fn weights_that_no_model_should_have_give_defined_values() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let tiny = f32::from_bits(1);
    // (name, weights, largest error allowed relative to the row's largest finite weight: int8, int4)
    let cases: [(&str, Vec<f32>, f32, f32); 9] = [
        ("zeros", vec![0.0; 50], 0.0, 0.0),
        ("one weight", vec![-0.7], 0.004, 0.02),
        ("all equal", vec![0.25; 47], 0.004, 0.02),
        ("one outlier", (0..64).map(|i| if i == 9 { 1e6 } else { 0.01 }).collect(), 0.005, 0.1),
        ("alternating", (0..40).map(|i| if i % 2 == 0 { 1.0 } else { -1.0 }).collect(), 0.004, 0.2),
        ("denormal", vec![tiny, -tiny, 3.0 * tiny, 1e-40], 1.0, 1.0),
        ("beyond f16", vec![65504.0 * 127.0, 1.0, -65504.0 * 127.0], 0.005, 0.1),
        ("huge", vec![f32::MAX, 1.0, -f32::MAX], 1.0, 1.0),
        ("not finite", vec![nan, inf, -inf, 1.0, -1.0], 0.005, 0.1),
    ];
    for (name, source, int8_bound, int4_bound) in cases {
        let largest = source.iter().filter(|w| w.is_finite()).fold(0.0f32, |a, w| a.max(w.abs()));
        for (format, found, bound) in [
            ("int8", int8_values(&source, source.len()), int8_bound),
            ("int4", int4_values(&source, source.len()), int4_bound),
        ] {
            for (weight, found) in source.iter().zip(&found) {
                let expected = if weight.is_finite() { *weight } else { 0.0 };
                let near = found.is_finite() && (found - expected).abs() <= bound * largest;
                assert!(near, "{format}, {name}: {weight} became {found}");
            }
        }
    }
}
