//! Matrix products against sums in double precision: every format, every tier of this CPU, shapes that are a
//! multiple of nothing.

use half::{bf16, f16};
use infer_kernels::quant::{int4, int8};
use infer_kernels::{
    Activation, Arithmetic, Dense, ElementType, Gated, Isa, MatrixRef, Projection, Store, Team, activate_gated, matmul,
};

/// Reproducible numbers (Steele et al., SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// In -1..1.
    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }
}

const FORMATS: [&str; 5] = ["f32", "f16", "bf16", "int8", "int4"];

/// The weights of one projection, in all formats.
struct Weights {
    rows: usize,
    cols: usize,
    f32: Vec<f32>,
    f16: Vec<f16>,
    bf16: Vec<bf16>,
    int8: Vec<u8>,
    int4: Vec<u8>,
    bias: Option<Vec<f32>>,
}

impl Weights {
    fn random(numbers: &mut Numbers, rows: usize, cols: usize) -> Weights {
        let f32 = numbers.floats(rows * cols);
        let mut packed =
            (vec![0; int8::packed_bytes(rows, cols).unwrap()], vec![0; int4::packed_bytes(rows, cols).unwrap()]);
        int8::quantize_rows(&f32, cols, &mut packed.0);
        int4::quantize_rows(&f32, cols, &mut packed.1);
        Weights {
            rows,
            cols,
            f16: f32.iter().map(|v| f16::from_f32(*v)).collect(),
            bf16: f32.iter().map(|v| bf16::from_f32(*v)).collect(),
            int8: packed.0,
            int4: packed.1,
            bias: (numbers.below(2) == 1).then(|| numbers.floats(rows)),
            f32,
        }
    }

    fn projection(&self, format: &str) -> Projection<'_> {
        let (rows, cols) = (self.rows, self.cols);
        let weight = match format {
            "f32" => MatrixRef::F32(Dense::new(&self.f32, rows, cols).unwrap()),
            "f16" => MatrixRef::F16(Dense::new(&self.f16, rows, cols).unwrap()),
            "bf16" => MatrixRef::Bf16(Dense::new(&self.bf16, rows, cols).unwrap()),
            "int8" => MatrixRef::int8(&self.int8, rows, cols).unwrap(),
            _ => MatrixRef::int4(&self.int4, rows, cols).unwrap(),
        };
        Projection { weight, bias: self.bias.as_deref() }
    }
}

/// The product by its definition, over the weights' stored values.
fn exact(x: &[f32], n_tokens: usize, group: &[Projection<'_>], old: Option<&[f32]>) -> Vec<f64> {
    let cols = group[0].weight.cols();
    let mut out = Vec::new();
    for t in 0..n_tokens {
        for p in group {
            for r in 0..p.weight.rows() {
                let mut weights = vec![0.0; cols];
                p.weight.row_to_f32(r, &mut weights);
                let products = x[t * cols..][..cols].iter().zip(&weights).map(|(x, w)| *x as f64 * *w as f64);
                let sum = products.sum::<f64>() + p.bias.map_or(0.0, |bias| bias[r] as f64);
                out.push(sum + old.map_or(0.0, |old| old[out.len()] as f64));
            }
        }
    }
    out
}

/// What sums in f32 may be off from `expected`: each of at most cols + 2 additions rounds by 2^-24 of a partial sum,
/// which is at most the sum of magnitudes. Products of bf16 and their sums lose what is denormal besides.
fn off(x: &[f32], n_tokens: usize, group: &[Projection<'_>], old: Option<&[f32]>) -> Vec<f64> {
    let cols = group[0].weight.cols();
    let mut out = Vec::new();
    for x in x.chunks(cols).take(n_tokens) {
        for p in group {
            for r in 0..p.weight.rows() {
                let mut weights = vec![0.0; cols];
                p.weight.row_to_f32(r, &mut weights);
                let products = x.iter().zip(&weights).map(|(x, w)| (*x as f64 * *w as f64).abs());
                let lost = x.iter().zip(&weights).map(|(x, w)| (1.0 + x.abs() + w.abs()) as f64).sum::<f64>();
                let bias = p.bias.map_or(0.0, |bias| bias[r].abs() as f64);
                let all = products.sum::<f64>() + bias + old.map_or(0.0, |old| old[out.len()].abs() as f64);
                out.push((cols + 2) as f64 * 2f64.powi(-24) * all + lost * 2f64.powi(-126));
            }
        }
    }
    out
}

/// Activations of some kind: small, extreme in turn, all equal, zeros, denormal, or with outliers.
fn activations(numbers: &mut Numbers, n: usize, kind: usize) -> Vec<f32> {
    let value = |i: usize, random: f32| match kind % 7 {
        0 | 1 => random,
        2 => [-3.0, 3.0][i % 2],
        3 => -128.0,
        4 => 0.0,
        5 => random * f32::MIN_POSITIVE,
        _ if i % 61 == 7 => 1e4,
        _ => random,
    };
    (0..n).map(|i| value(i, numbers.float())).collect()
}

/// Whether bf16 weights of this tier meet rounded activations.
fn rounds_to_bf16(isa: Isa, n_tokens: usize) -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = isa.name() == "avx512" && std::is_x86_feature_detected!("avx512bf16");
    #[cfg(not(target_arch = "x86_64"))]
    let has = false;
    has && n_tokens > 4
}

#[test]
fn products_of_every_format_and_tier_equal_sums_in_double_precision() {
    let mut numbers = Numbers(1);
    let mut shapes = vec![(1, 1, 1), (1, 16, 256), (4, 17, 257), (5, 16, 8), (6, 64, 512), (13, 65, 300), (12, 1, 1)];
    // Every number of tokens, as each has a way of its own to be cut.
    for n_tokens in 1..=40 {
        shapes.push((n_tokens, 1 + numbers.below(140), 1 + numbers.below(300)));
    }
    for isa in Isa::available() {
        let team = Team::new(2, isa).unwrap();
        for (kind, (n_tokens, rows, cols)) in shapes.iter().enumerate() {
            let parts: Vec<Weights> =
                (0..1 + numbers.below(3)).map(|i| Weights::random(&mut numbers, rows + 3 * i, *cols)).collect();
            let x = activations(&mut numbers, n_tokens * cols, kind);
            let old = numbers.floats(n_tokens * parts.iter().map(|p| p.rows).sum::<usize>());
            for (i, format) in FORMATS.iter().enumerate() {
                // A group may mix formats.
                let format_of = |j: usize| FORMATS[(i + j * (rows % 2)) % FORMATS.len()];
                let group: Vec<_> = parts.iter().enumerate().map(|(j, p)| p.projection(format_of(j))).collect();
                for store in [Store::Set, Store::Add] {
                    let mut out = old.clone();
                    team.run(|crew| matmul(crew, &x, *n_tokens, &group, Arithmetic::Exact, store, &mut out));
                    let old = (store == Store::Add).then_some(&old[..]);
                    let (expected, off) = (exact(&x, *n_tokens, &group, old), off(&x, *n_tokens, &group, old));
                    for (i, (found, (expected, off))) in out.iter().zip(expected.iter().zip(off)).enumerate() {
                        assert!(
                            (*found as f64 - expected).abs() <= off,
                            "{} {format} {store:?}, {n_tokens} tokens, {rows} x {cols}, output {i}: {found}, expected {expected} within {off}",
                            isa.name()
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn reduced_products_of_dense_weights_are_those_of_activations_rounded_to_bf16_at_most() {
    let mut numbers = Numbers(5);
    let mut shapes = vec![(5, 1, 1), (16, 4, 32), (17, 16, 31), (40, 64, 256), (24, 65, 513), (16, 3, 33)];
    for n_tokens in 1..=40 {
        shapes.push((n_tokens, 1 + numbers.below(140), 1 + numbers.below(700)));
    }
    for isa in Isa::available() {
        let team = Team::new(2, isa).unwrap();
        for (kind, (n_tokens, rows, cols)) in shapes.iter().copied().enumerate() {
            let weights = Weights::random(&mut numbers, rows, cols);
            let x = activations(&mut numbers, n_tokens * cols, kind);
            let old = numbers.floats(n_tokens * rows);
            for format in ["f32", "f16", "bf16"] {
                let group = [weights.projection(format)];
                let mut out = old.clone();
                team.run(|crew| matmul(crew, &x, n_tokens, &group, Arithmetic::Reduced, Store::Add, &mut out));
                let rounded = format == "bf16" && rounds_to_bf16(isa, n_tokens);
                let x: Vec<f32> = x.iter().map(|x| if rounded { bf16::from_f32(*x).to_f32() } else { *x }).collect();
                let (expected, off) = (exact(&x, n_tokens, &group, Some(&old)), off(&x, n_tokens, &group, Some(&old)));
                for (i, (found, (expected, off))) in out.iter().zip(expected.iter().zip(off)).enumerate() {
                    assert!(
                        (*found as f64 - expected).abs() <= off,
                        "{} {format}, {n_tokens} tokens, {rows} x {cols}, activations {kind}, output {i}: {found}, expected {expected} within {off}",
                        isa.name()
                    );
                }
            }
        }
    }
}

/// Activations as integer arithmetic sees them: blocks of `block` rounded to multiples of max|x| / 127.
fn rounded(x: &[f32], cols: usize, block: usize) -> Vec<f32> {
    let blocks = x.chunks(cols).flat_map(|x| x.chunks(block));
    let values = blocks.flat_map(|x| {
        let largest = x.iter().fold(0.0f32, |a, x| a.max(x.abs()));
        x.iter().map(move |x| (x * (127.0 / largest)).round_ties_even() * (largest / 127.0))
    });
    values.collect()
}

#[test]
fn integer_products_are_those_of_rounded_activations_and_equal_on_every_tier() {
    let mut numbers = Numbers(3);
    let mut shapes = vec![(1, 1, 1), (1, 16, 256), (8, 17, 257), (9, 64, 64), (40, 65, 300), (7, 100, 1000)];
    for _ in 0..40 {
        shapes.push((1 + numbers.below(40), 1 + numbers.below(140), 1 + numbers.below(600)));
    }
    for (n_tokens, rows, cols) in shapes {
        let parts: Vec<Weights> =
            (0..1 + numbers.below(3)).map(|i| Weights::random(&mut numbers, rows + 3 * i, cols)).collect();
        let x = numbers.floats(n_tokens * cols);
        let old = numbers.floats(n_tokens * parts.iter().map(|p| p.rows).sum::<usize>());
        for (formats, block) in [(["int4", "int4"], 256), (["int8", "int8"], 32), (["int4", "int8"], 0)] {
            let group: Vec<_> = parts.iter().enumerate().map(|(i, p)| p.projection(formats[i % 2])).collect();
            let run = |isa: Isa| {
                let mut out = old.clone();
                let product = |crew: &infer_kernels::Crew<'_>| {
                    matmul(crew, &x, n_tokens, &group, Arithmetic::Reduced, Store::Add, &mut out);
                };
                Team::new(2, isa).unwrap().run(product);
                out
            };
            let what = format!("{formats:?}, {n_tokens} tokens, {rows} x {cols}");
            let portable = run(Isa::named("portable").unwrap());
            for isa in Isa::available() {
                assert_eq!(run(isa), portable, "{}, {what}", isa.name());
            }
            if block == 0 {
                continue; // A group may mix formats; there is no one way to round its activations.
            }
            let expected = exact(&rounded(&x, cols, block), n_tokens, &group, Some(&old));
            // With many tokens int4 weights are rounded again.
            let again = if block == 256 && n_tokens > 8 { 0.012 } else { 0.0 };
            let bound = (1e-6 + again) * (4.0 + (cols as f64).sqrt());
            for (i, (found, expected)) in portable.iter().zip(&expected).enumerate() {
                assert!((*found as f64 - expected).abs() < bound, "{what}, output {i}: {found}, expected {expected}");
            }
        }
    }
}

#[test]
fn gate_and_up_in_one_pass_give_the_bits_of_two_products_and_the_activation() {
    let mut numbers = Numbers(7);
    for (n_tokens, rows, cols) in [(33, 16, 64), (40, 1, 300), (64, 33, 257), (100, 70, 90), (530, 48, 40)] {
        let weights: Vec<Weights> = (0..2).map(|_| Weights::random(&mut numbers, rows, cols)).collect();
        let x = numbers.floats(n_tokens * cols);
        for (format, isa) in
            ["int4", "int8"].into_iter().flat_map(|f| Isa::available().into_iter().map(move |isa| (f, isa)))
        {
            let what = format!("{} {format}, {n_tokens} tokens, {rows} x {cols}", isa.name());
            let team = Team::new(2, isa).unwrap();
            let group = [weights[0].projection(format), weights[1].projection(format)];
            let activation = Activation::Silu;
            let gated = Gated::new(&group[0], &group[1], activation, Arithmetic::Reduced, n_tokens);
            let (mut found, mut expected) = (vec![1.0; n_tokens * rows], vec![0.0; n_tokens * rows]);
            let mut sums = vec![0.0; n_tokens * 2 * rows];
            team.run(|crew| {
                gated.expect("many tokens with integers").run(crew, &x, &mut found);
                matmul(crew, &x, n_tokens, &group, Arithmetic::Reduced, Store::Set, &mut sums);
            });
            for (sums, expected) in sums.chunks_exact(2 * rows).zip(expected.chunks_exact_mut(rows)) {
                activate_gated(isa, activation, &sums[..rows], &sums[rows..], expected);
            }
            assert_eq!(found, expected, "{what}");
        }
        let [dense, int4, int8] = ["f32", "int4", "int8"].map(|format| weights[0].projection(format));
        let new = |gate, up, arithmetic, n| Gated::new(gate, up, Activation::Silu, arithmetic, n);
        assert!(new(&int4, &int8, Arithmetic::Reduced, n_tokens).is_none(), "two formats");
        assert!(new(&dense, &dense, Arithmetic::Reduced, n_tokens).is_none(), "dense weights");
        assert!(new(&int4, &int4, Arithmetic::Exact, n_tokens).is_none(), "exact arithmetic");
        assert!(new(&int4, &int4, Arithmetic::Reduced, 1).is_none(), "one token");
    }
}

#[test]
fn results_are_bit_equal_for_any_number_of_threads() {
    let mut numbers = Numbers(2);
    for isa in Isa::available() {
        for n_tokens in [1, 3, 40, 700] {
            let weights = Weights::random(&mut numbers, 150, 290);
            let x = numbers.floats(n_tokens * 290);
            for format in FORMATS {
                let run = |threads: usize| {
                    let mut out = vec![0.0; 2 * n_tokens * 150];
                    let group = [weights.projection(format)];
                    let (exact, integer) = out.split_at_mut(n_tokens * 150);
                    Team::new(threads, isa).unwrap().run(|crew| {
                        matmul(crew, &x, n_tokens, &group, Arithmetic::Exact, Store::Set, exact);
                        matmul(crew, &x, n_tokens, &group, Arithmetic::Reduced, Store::Set, integer);
                    });
                    out
                };
                let one = run(1);
                for threads in [2, 3, 7] {
                    assert_eq!(one, run(threads), "{} {format} {n_tokens} tokens, {threads} threads", isa.name());
                }
            }
        }
    }
}

#[test]
fn what_is_not_finite_is_passed_on_and_stays_where_it_belongs() {
    let (rows, cols) = (70, 45);
    for isa in Isa::available() {
        let team = Team::new(1, isa).unwrap();
        for (n_tokens, value) in [1, 5, 20].into_iter().flat_map(|n| [(n, f32::NAN), (n, f32::INFINITY)]) {
            for (format, arithmetic) in
                FORMATS.into_iter().flat_map(|format| [(format, Arithmetic::Exact), (format, Arithmetic::Reduced)])
            {
                let what = format!("{} {format} {arithmetic:?}, {n_tokens} tokens, {value}", isa.name());
                let mut weights = Weights::random(&mut Numbers(4), rows, cols);
                let run = |weights: &Weights, x: &[f32]| {
                    let mut out = vec![0.0; n_tokens * rows];
                    let group = [weights.projection(format)];
                    team.run(|crew| matmul(crew, x, n_tokens, &group, arithmetic, Store::Set, &mut out));
                    out
                };
                let mut x = vec![1.0; n_tokens * cols];
                x[cols - 1] = value;
                let out = run(&weights, &x);
                assert!(out[..rows].iter().all(|v| !v.is_finite()), "{what} in the inputs: {out:?}");
                assert!(out[rows..].iter().all(|v| v.is_finite()), "{what} in the inputs: {out:?}");
                if format.starts_with("int") {
                    continue; // No bytes of a file are a code that is not finite.
                }
                x[cols - 1] = 1.0;
                weights.f32[3 * cols + 7] = value;
                weights.f16[3 * cols + 7] = f16::from_f32(value);
                weights.bf16[3 * cols + 7] = bf16::from_f32(value);
                for (i, out) in run(&weights, &x).into_iter().enumerate() {
                    assert_eq!(out.is_finite(), i % rows != 3, "{what} in row 3 of the weights, row {}", i % rows);
                }
            }
        }
    }
}

#[test]
fn shapes_that_do_not_agree_are_named() {
    let team = Team::new(1, Isa::best()).unwrap();
    let weights = vec![0.0f32; 12];
    let group = [Projection { weight: MatrixRef::F32(Dense::new(&weights, 3, 4).unwrap()), bias: None }];
    for (inputs, outputs) in [(5, 3), (4, 4)] {
        let (x, mut out) = (vec![0.0; inputs], vec![0.0; outputs]);
        let run = || team.run(|crew| matmul(crew, &x, 1, &group, Arithmetic::Exact, Store::Set, &mut out));
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_err();
        let text = panic.downcast_ref::<String>().unwrap();
        assert!(text.contains("of 1 tokens of"), "{inputs} inputs, {outputs} outputs: {text}");
    }
}

/// Memory that ends where nothing is mapped: the last page of a file, and a mapping that is longer.
#[cfg(target_os = "linux")]
struct Guarded {
    map: memmap2::MmapMut,
    start: usize,
    end: usize,
}

#[cfg(target_os = "linux")]
impl Guarded {
    fn new(bytes: &[u8]) -> Guarded {
        const PAGE: usize = 4096;
        let end = bytes.len().next_multiple_of(PAGE).max(PAGE);
        let file = tempfile::tempfile().unwrap();
        file.set_len(end as u64).unwrap();
        // SAFETY: nobody else has the file, and what lies behind its end is not touched.
        let mut map = unsafe { memmap2::MmapOptions::new().len(end + PAGE).map_mut(&file) }.unwrap();
        let start = end - bytes.len();
        map[start..end].copy_from_slice(bytes);
        Guarded { map, start, end }
    }

    fn floats(values: &[f32]) -> Guarded {
        Guarded::new(&values.iter().flat_map(|v| v.to_ne_bytes()).collect::<Vec<u8>>())
    }

    fn bytes(&self) -> &[u8] {
        &self.map[self.start..self.end]
    }

    fn as_floats(&mut self) -> &mut [f32] {
        // SAFETY: every bit pattern is a float.
        unsafe { self.map[self.start..self.end].align_to_mut::<f32>().1 }
    }
}

#[test]
#[cfg(target_os = "linux")]
fn nothing_is_read_or_written_behind_the_end_of_a_buffer() {
    let mut numbers = Numbers(6);
    for (rows, cols) in [(1, 1), (16, 64), (17, 65), (70, 300)] {
        let weights = Weights::random(&mut numbers, rows, cols);
        let f32 = Guarded::floats(&weights.f32);
        let halves =
            |bits: &mut dyn Iterator<Item = u16>| Guarded::new(&bits.flat_map(u16::to_ne_bytes).collect::<Vec<_>>());
        let f16 = halves(&mut weights.f16.iter().map(|v| v.to_bits()));
        let bf16 = halves(&mut weights.bf16.iter().map(|v| v.to_bits()));
        let (int8, int4) = (Guarded::new(&weights.int8), Guarded::new(&weights.int4));
        let matrices = [
            MatrixRef::dense(ElementType::F32, f32.bytes(), rows, cols),
            MatrixRef::dense(ElementType::F16, f16.bytes(), rows, cols),
            MatrixRef::dense(ElementType::Bf16, bf16.bytes(), rows, cols),
            MatrixRef::int8(int8.bytes(), rows, cols),
            MatrixRef::int4(int4.bytes(), rows, cols),
        ];
        for (isa, n_tokens) in Isa::available().into_iter().flat_map(|isa| [1, 4, 7, 20].map(|n| (isa, n))) {
            let team = Team::new(1, isa).unwrap();
            let mut x = Guarded::floats(&numbers.floats(n_tokens * cols));
            for weight in &matrices {
                let group = [Projection { weight: *weight.as_ref().unwrap(), bias: None }];
                for arithmetic in [Arithmetic::Exact, Arithmetic::Reduced] {
                    let mut out = Guarded::floats(&vec![f32::NAN; n_tokens * rows]);
                    let (x, out) = (x.as_floats(), out.as_floats());
                    team.run(|crew| matmul(crew, x, n_tokens, &group, arithmetic, Store::Set, out));
                    assert!(out.iter().all(|v| v.is_finite()), "{}, {n_tokens} tokens, {rows} x {cols}", isa.name());
                }
            }
        }
    }
}
