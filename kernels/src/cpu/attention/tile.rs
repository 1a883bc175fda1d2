//! One tile of queries over a part of their keys, for one KV head.

use std::cell::Cell;
use std::ops::Range;

use half::{bf16, f16};

use super::panels::{Panels, clear_slots};
use super::softmax::{self, Soften, Softmax};
use super::{AttentionShape, BlockTable, QueryRow};
use crate::cpu::Isa;
use crate::cpu::isa::bf16::Bf16Isa;
use crate::cpu::isa::{LANES, Product, QUERIES, STEP_BLOCKS};
use crate::cpu::kv::{BLOCK_TOKENS, HeadOfBlocks, KvBlocks, KvType, PANEL, Stored};
use crate::cpu::lines::Lines;
use crate::cpu::matmul::Arithmetic;

/// Queries of a tile from which products of bf16 pay: fewer are bound by reading the cache, and keep f32. Values that must
/// be converted first are shared by more.
const MANY_QUERIES: usize = 8;
const MANY_TO_CONVERT: usize = 16;

/// Blocks of a step where one group of [`QUERIES`] meets them: as it is bound by reading, this step and the next are to
/// stay in the first cache together.
const SHORT_STEP: usize = 4;

/// Keys of the longest step.
const STEP: usize = STEP_BLOCKS * BLOCK_TOKENS;

const _: () = assert!(BLOCK_TOKENS == LANES && PANEL == LANES, "a block's tokens and values are panels");

/// What all tasks of one call share.
pub(super) struct Inner<'a> {
    pub isa: Isa,
    pub arithmetic: Arithmetic,
    pub shape: &'a AttentionShape,
    pub layer: usize,
    pub q: &'a [f32],
    pub q_stride: usize,
    pub rows: &'a [QueryRow],
    pub tables: &'a [BlockTable<'a>],
    pub pool: &'a KvBlocks,
}

/// Memory that a thread keeps from task to task.
#[derive(Default)]
pub(super) struct Scratch {
    /// The tile's queries, one below the other, [n, key depth], times the scale.
    queries: Lines,
    half_queries: Lines,
    work: Work,
    /// Results, see [`Inner::run`].
    pub results: Lines,
}

/// What a chunk of queries and a step of keys need.
#[derive(Default)]
struct Work {
    /// [QUERIES, STEP].
    scores: Lines,
    half_weights: Lines,
    /// The scales of a step's keys, and of its values.
    scales: Vec<f32>,
    /// Keys and values of a step that cannot be used where they lie.
    keys: Lines,
    values: Lines,
}

/// Calls `run` with this thread's scratch memory.
pub(super) fn with_scratch(run: impl FnOnce(&mut Scratch)) {
    thread_local!(static SCRATCH: Cell<Scratch> = Cell::default());
    // Taken out meanwhile: should `run` panic, the next call starts with nothing.
    let mut scratch = SCRATCH.take();
    run(&mut scratch);
    SCRATCH.set(scratch);
}

/// How stored values of type T become panels of type P.
enum Form<T, P, C: Fn(&[T], &mut [P])> {
    /// They are such panels.
    InPlace(for<'a> fn(&'a [T]) -> &'a [P]),
    /// Once for all queries of a tile.
    Converted(C),
}

type InPlace<T> = Form<T, T, fn(&[T], &mut [T])>;

impl<T> InPlace<T> {
    const SAME: InPlace<T> = Form::InPlace(|panel| panel);
}

/// The forms of keys and of values.
struct Forms<T, K, V, CK: Fn(&[T], &mut [K]), CV: Fn(&[T], &mut [V])> {
    keys: Form<T, K, CK>,
    values: Form<T, V, CV>,
}

/// A few queries and the blocks of a step that they see.
struct Chunk<'a, K, V> {
    /// Queries of the tile.
    queries: Range<usize>,
    /// How many the tile has.
    n_queries: usize,
    /// The first of the blocks' keys.
    first_key: usize,
    keys: &'a [&'a [K]],
    values: &'a [&'a [V]],
    /// What all queries that see these blocks share in asking for: while they meet keys, and while values.
    ahead: (&'a [&'a [u8]], &'a [&'a [u8]]),
    scales: Option<(&'a [f32], &'a [f32])>,
}

impl Inner<'_> {
    /// See [`softmax::result_len`].
    pub fn result_len(&self) -> usize {
        softmax::result_len(self.pool.layout().padded_head_dim())
    }

    /// The results of a tile for one KV head over some of its blocks, [queries, result_len].
    pub fn run(
        &self,
        tile: Range<usize>,
        blocks: &Range<usize>,
        kv_head: usize,
        scratch: &mut Scratch,
        results: &mut [f32],
    ) {
        let (depth, result_len) = (self.pool.layout().key_depth(), self.result_len());
        results.chunks_exact_mut(result_len).for_each(softmax::start);
        let n = results.len() / result_len;
        let Scratch { queries, half_queries, work, .. } = scratch;
        let queries = queries.room(n * depth);
        self.load_queries(tile.clone(), kv_head, queries);
        let head = self.pool.head(self.layer, kv_head);
        let part = Part { rows: &self.rows[tile], blocks: blocks.clone(), head };
        let pays = match self.pool.layout().kv_type {
            KvType::F32 => false,
            KvType::F16 => n >= MANY_TO_CONVERT,
            KvType::Bf16 | KvType::Int8 => n >= MANY_QUERIES,
        };
        let halves = self.isa.bf16().filter(|_| pays && self.arithmetic == Arithmetic::Reduced);
        let Some(halves) = halves else {
            match self.pool.layout().kv_type {
                KvType::F32 => self.in_f32::<f32>(&part, queries, work, results),
                KvType::F16 => self.in_f32::<f16>(&part, queries, work, results),
                KvType::Bf16 => self.in_f32::<bf16>(&part, queries, work, results),
                KvType::Int8 => self.in_f32::<i8>(&part, queries, work, results),
            }
            return;
        };
        let half_queries = half_queries.room(n * depth);
        halves.narrow_panel::<f32>(queries, half_queries);
        let (queries, half_queries) = (&*queries, &*half_queries);
        match self.pool.layout().kv_type {
            KvType::Int8 => {
                // Exact: a code has at most the eight bits of a bf16.
                let narrow = |from: &[i8], to: &mut [bf16]| halves.narrow_panel(from, to);
                let forms = Forms { keys: Form::Converted(narrow), values: Form::Converted(narrow) };
                let score = |chunk: &Chunk<'_, bf16, bf16>, out: &mut [f32]| {
                    halves.scores(self.scores(half_queries, chunk, out))
                };
                self.in_bf16(halves, &part, forms, score, work, results);
            }
            KvType::F16 => {
                // Rounded to bf16, keys would lose the bits that their type was chosen for, and so would scores.
                let narrow = |from: &[f16], to: &mut [bf16]| halves.narrow_panel(from, to);
                let forms = Forms { keys: InPlace::SAME, values: Form::Converted(narrow) };
                let score =
                    |chunk: &Chunk<'_, f16, bf16>, out: &mut [f32]| self.isa.scores(self.scores(queries, chunk, out));
                self.in_bf16(halves, &part, forms, score, work, results);
            }
            KvType::F32 | KvType::Bf16 => {
                let forms = Forms { keys: InPlace::<bf16>::SAME, values: InPlace::SAME };
                let score = |chunk: &Chunk<'_, bf16, bf16>, out: &mut [f32]| {
                    halves.scores(self.scores(half_queries, chunk, out))
                };
                self.in_bf16(halves, &part, forms, score, work, results);
            }
        }
    }

    /// The heads of a group lie side by side in a row of q; here all queries lie one below the other.
    fn load_queries(&self, tile: Range<usize>, kv_head: usize, queries: &mut [f32]) {
        let (group, head_dim, depth) = (self.shape.group(), self.shape.head_dim, self.pool.layout().key_depth());
        let rows = tile.map(|row| &self.q[row * self.q_stride + kv_head * group * head_dim..][..group * head_dim]);
        let heads = rows.flat_map(|row| row.chunks_exact(head_dim));
        for (head, query) in heads.zip(queries.chunks_exact_mut(depth)) {
            query.iter_mut().zip(head).for_each(|(query, q)| *query = q * self.shape.scale);
            query[head_dim..].fill(0.0);
        }
    }

    fn in_f32<T: Stored>(&self, part: &Part<'_>, queries: &[f32], work: &mut Work, results: &mut [f32]) {
        if queries.len() <= QUERIES * self.pool.layout().key_depth() {
            let forms = Forms { keys: InPlace::<T>::SAME, values: InPlace::SAME };
            self.in_f32_from(part, forms, queries, work, results);
        } else {
            let widen = |from: &[T], to: &mut [f32]| self.isa.widen_panel(from, to);
            let forms = Forms { keys: Form::Converted(widen), values: Form::Converted(widen) };
            self.in_f32_from(part, forms, queries, work, results);
        }
    }

    fn in_f32_from<T: Stored, P: Stored>(
        &self,
        part: &Part<'_>,
        forms: Forms<T, P, P, impl Fn(&[T], &mut [P]), impl Fn(&[T], &mut [P])>,
        queries: &[f32],
        work: &mut Work,
        results: &mut [f32],
    ) {
        let result_len = self.result_len();
        let Work { scores, scales, keys, values, .. } = work;
        let scores = scores.room(QUERIES * STEP);
        self.for_each_chunk(part, forms, keys, values, scales, |chunk| {
            let n = chunk.queries.len();
            let out = &mut results[chunk.queries.start * result_len..][..n * result_len];
            self.isa.scores(self.scores(queries, &chunk, scores));
            let factors = &self.softmax(part, &chunk, scores, out, |softmax| self.isa.weigh(softmax))[..n];
            self.isa.add_values(self.values(scores, &chunk, factors, out));
        });
    }

    /// With weights and values in bf16; `score` fills a chunk's scores.
    fn in_bf16<T: Stored, K: Stored>(
        &self,
        halves: Bf16Isa,
        part: &Part<'_>,
        forms: Forms<T, K, bf16, impl Fn(&[T], &mut [K]), impl Fn(&[T], &mut [bf16])>,
        score: impl Fn(&Chunk<'_, K, bf16>, &mut [f32]),
        work: &mut Work,
        results: &mut [f32],
    ) {
        let result_len = self.result_len();
        let Work { scores, half_weights, scales, keys, values } = work;
        let (scores, weights) = (scores.room(QUERIES * STEP), half_weights.room(QUERIES * STEP));
        self.for_each_chunk(part, forms, keys, values, scales, |chunk| {
            let n = chunk.queries.len();
            let out = &mut results[chunk.queries.start * result_len..][..n * result_len];
            score(&chunk, scores);
            let factors = &self.softmax(part, &chunk, scores, out, |softmax| halves.weigh(softmax, weights))[..n];
            halves.add_values(self.values(weights, &chunk, factors, out));
        });
    }

    /// The product that gives a chunk's scores.
    fn scores<'a, X, K, V>(
        &self,
        queries: &'a [X],
        chunk: &'a Chunk<'_, K, V>,
        out: &'a mut [f32],
    ) -> Product<'a, X, K> {
        let (depth, n) = (self.pool.layout().key_depth(), chunk.queries.len());
        let (x, blocks, ahead) = (&queries[chunk.queries.start * depth..], chunk.keys, chunk.ahead.0);
        let share = (chunk.queries.start, chunk.n_queries);
        Product { n, x, x_stride: depth, blocks, ahead, share, factors: &[], out, out_stride: STEP }
    }

    /// The product that adds a chunk's weighted values to its results.
    fn values<'a, X, K, V>(
        &self,
        weights: &'a [X],
        chunk: &'a Chunk<'_, K, V>,
        factors: &'a [f32],
        out: &'a mut [f32],
    ) -> Product<'a, X, V> {
        let (n, blocks, ahead) = (chunk.queries.len(), chunk.values, chunk.ahead.1);
        let share = (chunk.queries.start, chunk.n_queries);
        Product { n, x: weights, x_stride: STEP, blocks, ahead, share, factors, out, out_stride: self.result_len() }
    }

    /// Calls `weigh` with the softmax of a chunk, and gives what old sums of values are to be multiplied with.
    fn softmax<K, V>(
        &self,
        part: &Part<'_>,
        chunk: &Chunk<'_, K, V>,
        scores: &mut [f32],
        results: &mut [f32],
        weigh: impl FnOnce(Softmax<'_>),
    ) -> [f32; QUERIES] {
        let n_keys = chunk.keys.len() * BLOCK_TOKENS;
        let mut visible = [const { 0..0 }; QUERIES];
        for (visible, query) in visible.iter_mut().zip(chunk.queries.clone()) {
            let position = part.rows[query / self.shape.group()].position;
            let key = |key: usize| key.saturating_sub(chunk.first_key).min(n_keys);
            *visible = key(self.shape.first_visible(position))..key(position + 1);
        }
        let visible = &visible[..chunk.queries.len()];
        let (mut key_scales, value_scales) = chunk.scales.unzip();
        if let Some(cap) = self.shape.softcap {
            for scores in scores.chunks_exact_mut(STEP).take(visible.len()) {
                self.isa.compute(Soften { scores: &mut scores[..n_keys], key_scales, cap });
            }
            key_scales = None;
        }
        let (stride, result_len) = (STEP, self.result_len());
        let mut factors = [1.0; QUERIES];
        weigh(Softmax {
            scores,
            stride,
            n_keys,
            visible,
            key_scales,
            value_scales,
            results,
            result_len,
            factors: &mut factors,
        });
        factors
    }

    /// Goes through a part's keys step by step, and for each through the queries that see some of them.
    fn for_each_chunk<T: Stored, K: Stored, V: Stored>(
        &self,
        part: &Part<'_>,
        forms: Forms<T, K, V, impl Fn(&[T], &mut [K]), impl Fn(&[T], &mut [V])>,
        key_memory: &mut Lines,
        value_memory: &mut Lines,
        scales: &mut Vec<f32>,
        mut run: impl FnMut(Chunk<'_, K, V>),
    ) {
        let group = self.shape.group();
        let n = part.rows.len() * group;
        let tokens = part.rows.iter().map(|row| row.position + 1).max().unwrap_or(0);
        let in_place = matches!(forms.values, Form::InPlace(_));
        let step_blocks = if n <= QUERIES { SHORT_STEP } else { STEP_BLOCKS };
        let step = |start: usize, end: usize| start..end.min(start + step_blocks);
        let mut next = self.panels::<T>(part, step(part.blocks.start, part.blocks.end));
        for start in part.blocks.clone().step_by(step_blocks) {
            let blocks = step(start, part.blocks.end);
            let panels = next;
            // Beyond the part as well: as a rule the same thread goes on with the next.
            next = self.panels(part, step(blocks.end, tokens.div_ceil(BLOCK_TOKENS)));
            let all_keys = self.step_keys(&panels, &forms.keys, key_memory);
            let all_values = self.step_values(&panels, blocks.clone(), tokens, &forms.values, value_memory);
            self.step_scales(part, blocks.clone(), tokens, scales);
            let ahead = in_place.then(|| panels.ahead(&next));
            if !in_place {
                next.ask(self.isa);
            }
            for first in (0..n).step_by(QUERIES) {
                let queries = first..n.min(first + QUERIES);
                let rows = &part.rows[queries.start / group..queries.end.div_ceil(group)];
                let first_visible = rows.iter().map(|row| self.shape.first_visible(row.position)).min().unwrap_or(0);
                let last = rows.iter().map(|row| row.position).max().unwrap_or(0);
                let seen = blocks.start.max(first_visible / BLOCK_TOKENS)..blocks.end.min(last / BLOCK_TOKENS + 1);
                if seen.is_empty() {
                    continue;
                }
                let within = seen.start - start..seen.end - start;
                let keys = within.start * BLOCK_TOKENS..within.end * BLOCK_TOKENS;
                run(Chunk {
                    queries,
                    n_queries: n,
                    first_key: seen.start * BLOCK_TOKENS,
                    keys: &all_keys[within.clone()],
                    values: &all_values[within.clone()],
                    ahead: ahead.as_ref().map_or((&[], &[]), |[keys, values]| (&keys[within.clone()], &values[within])),
                    scales: scales.split_at_checked(STEP).map(|(k, v)| (&k[keys.clone()], &v[keys])),
                });
            }
        }
    }

    /// Where the panels of some blocks lie.
    fn panels<'a, T: Stored>(&self, part: &Part<'a>, blocks: Range<usize>) -> Panels<'a, T> {
        let mut panels = Panels { n: blocks.len(), keys: [&[]; STEP_BLOCKS], values: [&[]; STEP_BLOCKS] };
        for (i, block) in blocks.enumerate() {
            (panels.keys[i], panels.values[i]) = part.head.panels(self.block(part, block));
        }
        panels
    }

    /// The keys of a step.
    fn step_keys<'a, T: Stored, K: Stored>(
        &self,
        panels: &Panels<'a, T>,
        form: &Form<T, K, impl Fn(&[T], &mut [K])>,
        memory: &'a mut Lines,
    ) -> [&'a [K]; STEP_BLOCKS] {
        let mut keys: [&[K]; STEP_BLOCKS] = [&[]; STEP_BLOCKS];
        match form {
            Form::InPlace(same) => keys.iter_mut().zip(panels.keys).for_each(|(keys, panel)| *keys = same(panel)),
            Form::Converted(convert) => {
                let n = self.pool.layout().key_depth() * BLOCK_TOKENS;
                let memory = memory.room(STEP_BLOCKS * n);
                let panels = panels.keys[..panels.n].iter().zip(memory.chunks_exact_mut(n));
                panels.for_each(|(panel, to)| convert(panel, to));
                keys.iter_mut().zip(memory.chunks_exact(n)).for_each(|(keys, converted)| *keys = converted);
            }
        }
        keys
    }

    /// The values of a step. Slots behind the last token may hold anything, even what is not finite: here they hold zeros.
    fn step_values<'a, T: Stored, V: Stored>(
        &self,
        panels: &Panels<'a, T>,
        blocks: Range<usize>,
        tokens: usize,
        form: &Form<T, V, impl Fn(&[T], &mut [V])>,
        memory: &'a mut Lines,
    ) -> [&'a [V]; STEP_BLOCKS] {
        let n = self.pool.layout().padded_head_dim() * BLOCK_TOKENS;
        let used = |block: usize| (tokens - block * BLOCK_TOKENS).min(BLOCK_TOKENS);
        let mut values: [&[V]; STEP_BLOCKS] = [&[]; STEP_BLOCKS];
        match form {
            Form::InPlace(same) => {
                values.iter_mut().zip(panels.values).for_each(|(values, panel)| *values = same(panel));
                let last = panels.n - 1;
                if used(blocks.start + last) < BLOCK_TOKENS {
                    let edge = memory.room(n);
                    edge.copy_from_slice(values[last]);
                    clear_slots(edge, used(blocks.start + last));
                    values[last] = edge;
                }
            }
            Form::Converted(convert) => {
                let memory = memory.room(STEP_BLOCKS * n);
                for ((block, panel), to) in blocks.zip(panels.values).zip(memory.chunks_exact_mut(n)) {
                    convert(panel, to);
                    clear_slots(to, used(block));
                }
                values.iter_mut().zip(memory.chunks_exact(n)).for_each(|(values, converted)| *values = converted);
            }
        }
        values
    }

    /// The scales of a step's keys, then of its values, [2, STEP]; those behind the last token are 0. Empty if the
    /// cache needs none.
    fn step_scales(&self, part: &Part<'_>, blocks: Range<usize>, tokens: usize, scales: &mut Vec<f32>) {
        scales.clear();
        if self.pool.layout().kv_type != KvType::Int8 {
            return;
        }
        scales.resize(2 * STEP, 0.0);
        for (i, block) in blocks.enumerate() {
            let (keys, values) = part.head.scales(self.block(part, block));
            let used = (tokens - block * BLOCK_TOKENS).min(BLOCK_TOKENS);
            scales[i * BLOCK_TOKENS..][..used].copy_from_slice(&keys[..used]);
            scales[STEP + i * BLOCK_TOKENS..][..used].copy_from_slice(&values[..used]);
        }
    }

    fn block(&self, part: &Part<'_>, block: usize) -> usize {
        let table = &self.tables[part.rows[0].sequence];
        table.blocks[block - table.first_block] as usize
    }
}

/// What one task looks at: the rows of a tile, and blocks of their sequence, for one KV head.
struct Part<'a> {
    rows: &'a [QueryRow],
    blocks: Range<usize>,
    head: HeadOfBlocks<'a>,
}
