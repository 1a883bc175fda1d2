//! Matrix products against sums in double precision: every format, every tier of this CPU, shapes that are a
//! multiple of nothing.

use half::{bf16, f16};
use infer_kernels::quant::{int4, int8};
use infer_kernels::{Arithmetic, Dense, Isa, MatrixRef, Projection, Store, Team, matmul};

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

#[test]
fn products_of_every_format_and_tier_equal_sums_in_double_precision() {
    let mut numbers = Numbers(1);
    let mut shapes = vec![(1, 1, 1), (1, 16, 256), (4, 17, 257), (5, 16, 8), (6, 64, 512), (13, 65, 300), (12, 1, 1)];
    for _ in 0..40 {
        shapes.push((1 + numbers.below(40), 1 + numbers.below(70), 1 + numbers.below(300)));
    }
    for isa in Isa::available() {
        let team = Team::new(2, isa).unwrap();
        for (n_tokens, rows, cols) in &shapes {
            let parts: Vec<Weights> =
                (0..1 + numbers.below(3)).map(|i| Weights::random(&mut numbers, rows + 3 * i, *cols)).collect();
            let x = numbers.floats(n_tokens * cols);
            let old = numbers.floats(n_tokens * parts.iter().map(|p| p.rows).sum::<usize>());
            for (i, format) in FORMATS.iter().enumerate() {
                // A group may mix formats.
                let format_of = |j: usize| FORMATS[(i + j * (rows % 2)) % FORMATS.len()];
                let group: Vec<_> = parts.iter().enumerate().map(|(j, p)| p.projection(format_of(j))).collect();
                for store in [Store::Set, Store::Add] {
                    let mut out = old.clone();
                    team.run(|crew| matmul(crew, &x, *n_tokens, &group, Arithmetic::Exact, store, &mut out));
                    let expected = exact(&x, *n_tokens, &group, (store == Store::Add).then_some(&old));
                    for (i, (found, expected)) in out.iter().zip(&expected).enumerate() {
                        // Values are at most 1, so rounding grows at most with the number of them.
                        let bound = 1e-6 * (4.0 + (*cols as f64).sqrt());
                        assert!(
                            (*found as f64 - expected).abs() < bound,
                            "{} {format} {store:?}, {n_tokens} tokens, {rows} x {cols}, output {i}: {found}, expected {expected}",
                            isa.name()
                        );
                    }
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
fn what_is_not_finite_is_passed_on() {
    for isa in Isa::available() {
        let team = Team::new(1, isa).unwrap();
        for n_tokens in [1, 5, 20] {
            let weights = vec![1.0f32; 3 * 20];
            let mut x = vec![1.0; n_tokens * 20];
            x[19] = f32::NAN;
            let mut out = vec![0.0; n_tokens * 3];
            let group = [Projection { weight: MatrixRef::F32(Dense::new(&weights, 3, 20).unwrap()), bias: None }];
            team.run(|crew| matmul(crew, &x, n_tokens, &group, Arithmetic::Exact, Store::Set, &mut out));
            let quantized = Weights::random(&mut Numbers(4), 3, 20);
            for format in ["int8", "int4"] {
                let (group, mut out) = ([quantized.projection(format)], vec![0.0; n_tokens * 3]);
                team.run(|crew| matmul(crew, &x, n_tokens, &group, Arithmetic::Reduced, Store::Set, &mut out));
                assert!(out[..3].iter().all(|v| v.is_nan()), "{} {format}, {n_tokens} tokens: {out:?}", isa.name());
                assert!(out[3..].iter().all(|v| v.is_finite()), "{} {format}, {n_tokens} tokens: {out:?}", isa.name());
            }
            assert!(out[..3].iter().all(|v| v.is_nan()), "{}, {n_tokens} tokens: {out:?}", isa.name());
            assert!(out[3..].iter().all(|v| *v == 20.0), "{}, {n_tokens} tokens: {out:?}", isa.name());
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
        let (int8, int4) = (Guarded::new(&weights.int8), Guarded::new(&weights.int4));
        let matrices = [
            MatrixRef::dense(infer_kernels::ElementType::F32, f32.bytes(), rows, cols),
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
