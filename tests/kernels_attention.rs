//! Attention against its definition in double precision.

use infer_kernels::{
    Arithmetic, AttentionShape, BLOCK_TOKENS, BlockTable, CacheSlot, Isa, KvBlocks, KvLayout, KvType, QueryRow, Team,
    attend,
};

/// Sequences whose keys and values are in a pool, with the stored values beside them.
struct Cache {
    pool: KvBlocks,
    tables: Vec<Vec<u32>>,
    /// [sequence][position] = (key, value), as stored.
    tokens: Vec<Vec<(Vec<f32>, Vec<f32>)>>,
}

fn number(seed: usize) -> f32 {
    let z = (seed as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (z >> 40) as f32 / (1 << 23) as f32 - 1.0
}

const LAYER: usize = 1;

impl Cache {
    fn new(layout: KvLayout, lengths: &[usize]) -> Cache {
        let n = layout.n_kv_heads * layout.head_dim;
        let n_blocks: usize = lengths.iter().map(|len| len.div_ceil(BLOCK_TOKENS)).sum();
        let mut pool = KvBlocks::new(layout);
        pool.grow(n_blocks).unwrap();
        // What lies in slots that no token was written to must not matter.
        for block in 0..pool.len() {
            for slot in 0..BLOCK_TOKENS {
                pool.write(CacheSlot { block, slot }, LAYER, &vec![f32::NAN; n], &vec![f32::INFINITY; n]);
            }
        }
        let (mut tables, mut tokens, mut used) = (Vec::new(), Vec::new(), 0);
        for (sequence, len) in lengths.iter().enumerate() {
            let n_blocks_here = len.div_ceil(BLOCK_TOKENS);
            // Backwards, so that a table is not the identity.
            let table: Vec<u32> = (0..n_blocks_here).map(|i| (n_blocks - 1 - used - i) as u32).collect();
            used += n_blocks_here;
            let mut stored = Vec::new();
            for position in 0..*len {
                let value =
                    |part: usize| (0..n).map(|i| number(((sequence * 4096 + position) * 2 + part) * n + i)).collect();
                let (mut key, mut value): (Vec<f32>, Vec<f32>) = (value(0), value(1));
                let block = table[position / BLOCK_TOKENS] as usize;
                let at = CacheSlot { block, slot: position % BLOCK_TOKENS };
                pool.write(at, LAYER, &key, &value);
                pool.read(at, LAYER, &mut key, &mut value);
                stored.push((key, value));
            }
            tables.push(table);
            tokens.push(stored);
        }
        Cache { pool, tables, tokens }
    }

    fn run(
        &self,
        (isa, arithmetic, threads): (Isa, Arithmetic, usize),
        shape: &AttentionShape,
        q: &[f32],
        rows: &[QueryRow],
    ) -> Vec<f32> {
        let row_len = shape.n_heads * shape.head_dim;
        let q_stride = q.len() / rows.len();
        // With a window, blocks that no row can see have been given back.
        let table = |(sequence, table): (usize, &'_ Vec<u32>)| {
            let first = rows.iter().filter(|row| row.sequence == sequence).map(|row| row.position).min().unwrap_or(0);
            let hidden = shape.window.map_or(0, |window| (first + 1).saturating_sub(window) / BLOCK_TOKENS);
            (hidden, table[hidden..].to_vec())
        };
        let held: Vec<_> = self.tables.iter().enumerate().map(table).collect();
        let tables: Vec<_> = held.iter().map(|(first, t)| BlockTable { first_block: *first, blocks: t }).collect();
        let mut out = vec![f32::NAN; rows.len() * row_len];
        let team = Team::new(threads, isa).unwrap();
        let pool = &self.pool;
        team.run(|crew| attend(crew, shape, LAYER, q, q_stride, rows, &tables, pool, arithmetic, &mut out));
        out
    }

    /// One row by the definition.
    fn exact(&self, shape: &AttentionShape, q: &[f32], row: QueryRow) -> Vec<f64> {
        let d = shape.head_dim;
        let mut out = Vec::new();
        for head in 0..shape.n_heads {
            let kv = head / (shape.n_heads / shape.n_kv_heads) * d;
            let visible = |j: &usize| shape.window.is_none_or(|window| row.position - j < window);
            let keys: Vec<usize> = (0..=row.position).filter(visible).collect();
            let tokens = &self.tokens[row.sequence];
            let score = |j: &usize| {
                let products =
                    q[head * d..][..d].iter().zip(&tokens[*j].0[kv..][..d]).map(|(a, b)| *a as f64 * *b as f64);
                let score = shape.scale as f64 * products.sum::<f64>();
                shape.softcap.map_or(score, |cap| cap as f64 * (score / cap as f64).tanh())
            };
            let scores: Vec<f64> = keys.iter().map(score).collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            for i in 0..d {
                let sum: f64 = weights.iter().zip(&keys).map(|(w, j)| w * tokens[*j].1[kv + i] as f64).sum();
                out.push(sum / total);
            }
        }
        out
    }
}

struct Case {
    kv_type: KvType,
    heads: (usize, usize, usize),
    window: Option<usize>,
    softcap: Option<f32>,
    /// (sequence, positions) of the batch's rows.
    rows: Vec<(usize, std::ops::Range<usize>)>,
    lengths: Vec<usize>,
}

fn cases() -> Vec<Case> {
    let case = |kv_type, heads, window, softcap, lengths: &[usize], rows: &[(usize, std::ops::Range<usize>)]| Case {
        kv_type,
        heads,
        window,
        softcap,
        rows: rows.to_vec(),
        lengths: lengths.to_vec(),
    };
    use KvType::*;
    vec![
        // The first token, a decoded token, a prefill, a chunk of one, several sequences at once.
        case(F32, (1, 1, 2), None, None, &[1], &[(0, 0..1)]),
        case(F32, (4, 2, 20), None, None, &[70], &[(0, 69..70)]),
        case(F16, (8, 1, 64), None, None, &[100], &[(0, 0..100)]),
        case(Bf16, (6, 6, 80), None, None, &[90], &[(0, 33..90)]),
        case(F32, (6, 2, 36), None, None, &[40, 17, 130], &[(0, 39..40), (2, 100..130), (1, 0..17)]),
        case(F16, (3, 3, 16), None, Some(2.0), &[50], &[(0, 10..50)]),
        case(Int8, (8, 2, 64), None, None, &[90], &[(0, 0..90)]),
        case(Int8, (4, 4, 18), None, Some(2.0), &[50, 33], &[(0, 49..50), (1, 0..33)]),
        // Heads of every width and groups of every size; batches that fill no tile.
        case(Bf16, (1, 1, 256), None, None, &[37], &[(0, 36..37)]),
        case(Bf16, (2, 1, 128), None, None, &[150], &[(0, 149..150)]),
        case(F16, (3, 1, 96), None, None, &[77], &[(0, 70..77)]),
        case(Int8, (5, 1, 80), None, None, &[66], &[(0, 65..66)]),
        case(Bf16, (6, 1, 20), None, None, &[33], &[(0, 31..33)]),
        case(F16, (14, 2, 6), None, None, &[49], &[(0, 9..49)]),
        case(Bf16, (7, 1, 7), None, None, &[49], &[(0, 45..49)]),
        case(F32, (9, 3, 1), None, None, &[40], &[(0, 0..40)]),
        case(F16, (10, 2, 96), None, None, &[40], &[(0, 0..40)]),
        case(Bf16, (4, 1, 256), None, None, &[70], &[(0, 0..70)]),
        // Windows: of one, smaller and larger than a block, than the step, than the sequence.
        case(F32, (2, 1, 8), Some(1), None, &[40], &[(0, 0..40)]),
        case(F32, (2, 1, 8), Some(1), None, &[40], &[(0, 37..38)]),
        case(F16, (2, 2, 8), Some(5), None, &[60], &[(0, 30..60)]),
        case(F32, (4, 2, 24), Some(50), Some(5.0), &[200, 30], &[(0, 150..200), (1, 29..30)]),
        case(F32, (4, 2, 24), Some(999), None, &[90], &[(0, 80..90)]),
        case(Bf16, (4, 2, 48), Some(70), None, &[300], &[(0, 100..300)]),
        case(Int8, (8, 1, 32), Some(20), None, &[400], &[(0, 399..400)]),
        // Keys in several parts; with a window that hides whole parts from some rows.
        case(F16, (8, 2, 32), None, None, &[1500, 20], &[(0, 1499..1500), (1, 19..20)]),
        case(Int8, (8, 2, 32), None, None, &[1100], &[(0, 1096..1100)]),
        case(F32, (1, 1, 18), Some(40), None, &[1500], &[(0, 900..960)]),
        // Enough tiles that keys are not split.
        case(F32, (8, 8, 8), None, None, &[700], &[(0, 200..700)]),
        case(Bf16, (16, 8, 16), None, None, &[300], &[(0, 0..300)]),
        case(F16, (8, 8, 16), None, None, &[50, 20, 31, 7], &[(3, 6..7), (1, 19..20), (0, 49..50), (2, 30..31)]),
    ]
}

fn query_rows(case: &Case) -> Vec<QueryRow> {
    let rows = case.rows.iter().cloned();
    rows.flat_map(|(sequence, positions)| positions.map(move |position| QueryRow { sequence, position })).collect()
}

const EXACT: Arithmetic = Arithmetic::Exact;

/// Calls `check(label, case's cache, shape, q, q_stride, rows)` with the inputs of each case.
fn for_each_case(check: impl Fn(&str, &Cache, &AttentionShape, &[f32], usize, &[QueryRow])) {
    for (index, case) in cases().iter().enumerate() {
        let (n_heads, n_kv_heads, head_dim) = case.heads;
        let layout = KvLayout { n_layers: 3, n_kv_heads, head_dim, kv_type: case.kv_type };
        let cache = Cache::new(layout, &case.lengths);
        let scale = 2.0 / (head_dim as f32).sqrt();
        let shape = AttentionShape { n_heads, n_kv_heads, head_dim, scale, softcap: case.softcap, window: case.window };
        let rows = query_rows(case);
        // Rows of q hold more than the queries (keys and values of a fused projection).
        let q_stride = n_heads * head_dim + 5;
        let q: Vec<f32> = (0..rows.len() * q_stride).map(|i| 3.0 * number(i + 77)).collect();
        check(&format!("case {index}, {:?} {:?}", case.kv_type, case.heads), &cache, &shape, &q, q_stride, &rows);
    }
}

#[test]
fn attention_equals_its_definition() {
    for_each_case(|label, cache, shape, q, q_stride, rows| {
        let row_len = shape.n_heads * shape.head_dim;
        for isa in Isa::available() {
            let label = format!("{label}, {}", isa.name());
            let out = cache.run((isa, EXACT, 1), shape, q, rows);
            assert_eq!(out, cache.run((isa, EXACT, 3), shape, q, rows), "{label}: threads");
            for (i, row) in rows.iter().enumerate() {
                let q = &q[i * q_stride..][..q_stride];
                let found = &out[i * row_len..][..row_len];
                let alone = cache.run((isa, EXACT, 2), shape, q, &[*row]);
                for (j, expected) in cache.exact(shape, q, *row).iter().enumerate() {
                    let error = (found[j] as f64 - expected).abs();
                    assert!(error < 2e-6, "{label}, {row:?}, value {j}: {} is not {expected}", found[j]);
                    let moved = (found[j] - alone[j]).abs();
                    assert!(moved < 1e-5, "{label}, {row:?}, value {j}: the batch moves it by {moved:e}");
                }
            }
        }
    });
}

/// bf16 has eight significant bits: a query, a key, a weight and a value are each off by at most 2^-9 of themselves, and
/// a score of these cases by about 0.02.
#[test]
fn reduced_arithmetic_is_near_the_definition_and_exact_for_few_queries_or_an_f32_cache() {
    for_each_case(|label, cache, shape, q, q_stride, rows| {
        let row_len = shape.n_heads * shape.head_dim;
        let reduced = Arithmetic::Reduced;
        for isa in Isa::available() {
            let label = format!("{label}, {}", isa.name());
            let out = cache.run((isa, reduced, 1), shape, q, rows);
            assert_eq!(out, cache.run((isa, reduced, 3), shape, q, rows), "{label}: threads");
            if cache.pool.layout().kv_type == KvType::F32 {
                assert_eq!(out, cache.run((isa, EXACT, 1), shape, q, rows), "{label}: an f32 cache");
            }
            for (i, row) in rows.iter().enumerate() {
                let q = &q[i * q_stride..][..q_stride];
                let found = &out[i * row_len..][..row_len];
                let expected = cache.exact(shape, q, *row);
                let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
                let error = squares(&mut expected.iter().zip(found).map(|(a, b)| a - *b as f64));
                let share = (error / squares(&mut expected.iter().copied())).sqrt();
                assert!(share < 0.03, "{label}, {row:?}: relative error {share:.4}");
                if shape.n_heads / shape.n_kv_heads < 8 {
                    let alone = cache.run((isa, reduced, 1), shape, q, &[*row]);
                    assert_eq!(alone, cache.run((isa, EXACT, 1), shape, q, &[*row]), "{label}, {row:?}: one row");
                }
            }
        }
    });
}

/// Checking a draft behind a context that two sequences share, one of them with a copy of the block it went on in.
#[test]
fn shared_prefixes_and_copied_blocks_give_what_a_cache_of_ones_own_gives() {
    for kv_type in [KvType::F32, KvType::F16, KvType::Bf16, KvType::Int8] {
        for (n_heads, n_kv_heads, head_dim, prefix, n_new) in
            [(8, 1, 64, 1037, 4), (4, 4, 20, 333, 1), (6, 2, 7, 77, 40), (16, 2, 16, 700, 8)]
        {
            let layout = KvLayout { n_layers: 3, n_kv_heads, head_dim, kv_type };
            let len = prefix + n_new;
            let mut cache = Cache::new(layout, &[len, len]);
            // The second sequence's prefix is the first's: whole blocks shared, the rest copied.
            let (own, n_shared) = (cache.tables[1].clone(), prefix / BLOCK_TOKENS);
            cache.tokens[1] = cache.tokens[0][..prefix].iter().chain(&cache.tokens[1][prefix..]).cloned().collect();
            let mut shared = cache.tables[0][..n_shared].to_vec();
            shared.extend(&own[n_shared..]);
            cache.pool.copy(cache.tables[0][n_shared] as usize, own[n_shared] as usize);
            for position in 0..len {
                let at = CacheSlot { block: own[position / BLOCK_TOKENS] as usize, slot: position % BLOCK_TOKENS };
                if position < n_shared * BLOCK_TOKENS || position >= prefix {
                    let (key, value) = &cache.tokens[1][position];
                    cache.pool.write(at, LAYER, key, value);
                }
            }
            let shape = AttentionShape { n_heads, n_kv_heads, head_dim, scale: 0.4, softcap: None, window: None };
            let rows: Vec<_> = (prefix..len).map(|position| QueryRow { sequence: 1, position }).collect();
            let q: Vec<f32> = (0..n_new * n_heads * head_dim).map(|i| 2.0 * number(i + 9)).collect();
            for (isa, arithmetic) in
                Isa::available().into_iter().flat_map(|isa| [(isa, EXACT), (isa, Arithmetic::Reduced)])
            {
                cache.tables[1] = own.clone();
                let expected = cache.run((isa, arithmetic, 2), &shape, &q, &rows);
                cache.tables[1] = shared.clone();
                let label = format!("{layout:?}, {n_new} tokens behind {prefix}, {arithmetic:?}, {}", isa.name());
                for threads in [1, 3] {
                    let found = cache.run((isa, arithmetic, threads), &shape, &q, &rows);
                    assert_eq!(found, expected, "{label}, {threads} threads");
                }
                let exact: Vec<f64> = rows
                    .iter()
                    .zip(q.chunks(n_heads * head_dim))
                    .flat_map(|(row, q)| cache.exact(&shape, q, *row))
                    .collect();
                let bound = if arithmetic == EXACT { 2e-6 } else { 0.03 };
                let worst = exact.iter().zip(&expected).map(|(a, b)| (a - *b as f64).abs()).fold(0.0, f64::max);
                assert!(worst < bound, "{label}: off by {worst:e}");
            }
        }
    }
}

/// Weights are relative to a largest score that came before: slowly or at once, later ones may be far above it or below.
#[test]
fn scores_that_grow_and_fall_along_a_sequence_keep_their_weights() {
    type Course = (&'static str, fn(usize) -> f32);
    let courses: [Course; 4] = [
        ("slowly up", |position| position as f32 / 64.0),
        ("down", |position| -(position as f32) / 16.0),
        ("one far above", |position| if position == 500 { 60.0 } else { 0.25 }),
        ("in steps", |position| (position / 200) as f32 * 7.0),
    ];
    for (kv_type, (course, key_of)) in
        [KvType::F16, KvType::Bf16, KvType::Int8].into_iter().flat_map(|kv_type| courses.map(|c| (kv_type, c)))
    {
        let layout = KvLayout { n_layers: 2, n_kv_heads: 1, head_dim: 16, kv_type };
        let mut cache = Cache::new(layout, &[900]);
        for position in 0..900 {
            let block = cache.tables[0][position / BLOCK_TOKENS] as usize;
            let at = CacheSlot { block, slot: position % BLOCK_TOKENS };
            let (key, value) = &mut cache.tokens[0][position];
            *key = vec![key_of(position); 16];
            cache.pool.write(at, LAYER, key, value);
            cache.pool.read(at, LAYER, key, value);
        }
        let (n_heads, scale) = (8, 0.125);
        let shape = AttentionShape { n_heads, n_kv_heads: 1, head_dim: 16, scale, softcap: None, window: None };
        let rows: Vec<_> = (896..900).map(|position| QueryRow { sequence: 0, position }).collect();
        let q = vec![1.0; rows.len() * n_heads * 16];
        for isa in Isa::available() {
            let found = cache.run((isa, Arithmetic::Reduced, 1), &shape, &q, &rows);
            for (row, found) in rows.iter().zip(found.chunks(n_heads * 16)) {
                for (expected, found) in cache.exact(&shape, &q, *row).iter().zip(found) {
                    let error = (expected - *found as f64).abs();
                    assert!(error < 0.01, "{kv_type:?}, {course}, {}: {found} is not {expected}", isa.name());
                }
            }
        }
    }
}

#[test]
fn rows_and_tables_that_do_not_agree_are_named() {
    let layout = KvLayout { n_layers: 1, n_kv_heads: 1, head_dim: 4, kv_type: KvType::F32 };
    let shape = AttentionShape { n_heads: 1, n_kv_heads: 1, head_dim: 4, scale: 1.0, softcap: None, window: Some(20) };
    let mut pool = KvBlocks::new(layout);
    pool.grow(1).unwrap();
    let beyond = [pool.len() as u32];
    let beyond_message = format!("beyond the pool's {}", pool.len());
    let team = Team::new(1, Isa::best()).unwrap();
    let cases: [(usize, usize, &[u32], &str); 3] = [
        (16, 0, &[0], "keys 0..=16 of a cache of 0..16"),
        (40, 2, &[0], "keys 21..=40 of a cache of 32..48"),
        (3, 0, &beyond, &beyond_message),
    ];
    for (position, first_block, blocks, message) in cases {
        let rows = [QueryRow { sequence: 0, position }];
        let tables = [BlockTable { first_block, blocks }];
        let mut out = [0.0; 4];
        let run = || team.run(|crew| attend(crew, &shape, 0, &[0.0; 4], 4, &rows, &tables, &pool, EXACT, &mut out));
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_err();
        let text = panic.downcast_ref::<String>().unwrap();
        assert!(text.contains(message), "position {position}: {text}");
    }
}
