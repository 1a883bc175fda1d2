//! The CPU: activations in f32, one team of threads, every operation a loop over tiles with one barrier.

mod experts;
mod normalize;
mod project;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use infer_kernels::cpu::attention::{self, AttentionShape, BlockTable, QueryRow};
use infer_kernels::cpu::kv::{self, BLOCK_TOKENS, CacheSlot, KvBlocks};
use infer_kernels::cpu::matmul::{Arithmetic, Store};
use infer_kernels::cpu::{activation, rope, vector};
use infer_kernels::{Crew, KvType, Team};

use super::KvAddress;
use super::batch::Batch;
use super::fair_mutex::FairMutex;
use crate::error::Result;
use crate::kv_cache::{BlockCopy, KvPool, LayerSlot, Sequence};
use crate::model::cost::Cost;
use crate::model::linear::Linear;
use crate::model::spec::{self, Block, Spec};
use crate::model::weights::{MlpWeights, Weights};
use crate::options::Compute;
use experts::{Experts, Hidden};
use normalize::{add_normed, normalize, normalize_heads, normalize_rows};
use project::Projector;

/// Weights, threads and cache memory of a model on the CPU.
pub(crate) struct CpuBackend {
    spec: Arc<Spec>,
    weights: Weights,
    slots: Vec<LayerSlot>,
    arithmetic: Arithmetic,
    /// See [`super::Backend::experts_read`].
    experts_read: AtomicU64,
    /// Changed only between passes.
    team: RwLock<Team>,
    /// Held for one whole pass. One that panicked leaves buffers that the next overwrites.
    state: FairMutex<State>,
}

#[derive(Default)]
struct State {
    /// The cache blocks of each layer group.
    blocks: Vec<KvBlocks>,
    buffers: Buffers,
}

/// Activations of one batch, kept from pass to pass.
#[derive(Default)]
struct Buffers {
    /// The residual stream, [n_rows, hidden_size].
    x: Vec<f32>,
    /// The input of the projections, [n_rows, hidden_size].
    normed: Vec<f32>,
    /// Query, key and value heads, [n_rows, (n_heads + 2 n_kv_heads) * head_dim].
    qkv: Vec<f32>,
    /// Where each row's key and value go.
    cache_slots: Vec<CacheSlot>,
    /// [n_rows, n_heads * head_dim].
    attended: Vec<f32>,
    /// Gate and up, [n_rows, 2 * intermediate].
    gate_up: Vec<f32>,
    /// [n_rows, intermediate].
    activated: Vec<f32>,
    /// The output of a half-layer before it is added, [n_rows, hidden_size].
    branch: Vec<f32>,
    experts: Experts,
    projector: Projector,
}

impl CpuBackend {
    pub fn new(spec: Arc<Spec>, weights: Weights, slots: Vec<LayerSlot>, team: Team, compute: Compute) -> CpuBackend {
        let arithmetic = match compute {
            Compute::Auto => Arithmetic::Reduced,
            Compute::F32 => Arithmetic::Exact,
        };
        CpuBackend {
            spec,
            weights,
            slots,
            arithmetic,
            experts_read: AtomicU64::new(0),
            team: RwLock::new(team),
            state: FairMutex::default(),
        }
    }

    /// See [`super::Backend::set_team`].
    pub fn set_team(&self, team: Team) {
        *self.team.write().unwrap_or_else(PoisonError::into_inner) = team;
    }

    /// See [`super::Backend::cost`].
    pub fn cost(&self, kv_type: KvType) -> Cost {
        Cost::new(&self.spec, &self.weights, kv_type)
    }

    /// See [`super::Backend::experts_read`].
    pub fn experts_read(&self) -> u64 {
        self.experts_read.load(Ordering::Relaxed)
    }

    /// See [`super::Backend::run`].
    pub fn run(&self, pool: &KvPool, batch: &Batch<'_>, logits: &mut Vec<f32>, pass: impl FnOnce(CpuPass<'_>) + Send) {
        let mut state = self.state.lock();
        let State { blocks, buffers } = &mut *state;
        buffers.projector.arithmetic = self.arithmetic;
        let queries = batch.positions.iter().zip(&batch.row_sequence);
        let queries: Vec<QueryRow> = queries.map(|(&position, &sequence)| QueryRow { sequence, position }).collect();
        let tables = |group: usize| {
            let lists = batch.sequences.iter().map(|sequence| sequence.list(group));
            lists.map(|list| BlockTable { first_block: list.first_block, blocks: &list.blocks }).collect()
        };
        let tables: Vec<Vec<BlockTable<'_>>> = (0..pool.groups().len()).map(tables).collect();
        let team = self.team.read().unwrap_or_else(PoisonError::into_inner);
        team.run(|crew| {
            pass(CpuPass { crew, backend: self, batch, queries: &queries, tables: &tables, blocks, buffers, logits })
        });
    }

    /// See [`super::Backend::make_room`].
    pub fn make_room<'a>(&self, pool: &KvPool, sequences: impl Iterator<Item = &'a Sequence>) -> Result<()> {
        let mut state = self.state.lock();
        if state.blocks.is_empty() {
            state.blocks.extend(pool.groups().iter().map(|group| KvBlocks::new(group.layout)));
        }
        for sequence in sequences {
            for (group, blocks) in state.blocks.iter_mut().enumerate() {
                let beyond = sequence.list(group).blocks.iter().map(|block| *block as usize + 1).max();
                blocks.grow(beyond.unwrap_or(0))?;
            }
        }
        Ok(())
    }

    /// See [`super::Backend::copy_blocks`].
    pub fn copy_blocks(&self, copies: &[BlockCopy]) {
        if copies.is_empty() {
            return;
        }
        let mut state = self.state.lock();
        for copy in copies {
            state.blocks[copy.group].copy(copy.from as usize, copy.to as usize);
        }
    }

    /// See [`super::Backend::read_kv`].
    pub fn read_kv(&self, address: KvAddress, key: &mut [f32], value: &mut [f32]) {
        let state = self.state.lock();
        state.blocks[address.group].read(address.cache_slot(), address.layer, key, value);
    }

    /// See [`super::Backend::write_kv`].
    pub fn write_kv(&self, address: KvAddress, key: &[f32], value: &[f32]) {
        let mut state = self.state.lock();
        state.blocks[address.group].write(address.cache_slot(), address.layer, key, value);
    }
}

impl KvAddress {
    fn cache_slot(&self) -> CacheSlot {
        CacheSlot { block: self.block as usize, slot: self.slot }
    }
}

/// One forward pass on the CPU; the operations are those of [`super::Pass`].
pub(crate) struct CpuPass<'a> {
    crew: &'a Crew<'a>,
    backend: &'a CpuBackend,
    batch: &'a Batch<'a>,
    queries: &'a [QueryRow],
    tables: &'a [Vec<BlockTable<'a>>],
    blocks: &'a mut Vec<KvBlocks>,
    buffers: &'a mut Buffers,
    logits: &'a mut Vec<f32>,
}

impl CpuPass<'_> {
    pub fn embed(&mut self) {
        let CpuPass { crew, backend, batch, buffers, .. } = self;
        let (spec, weights) = (&backend.spec, &backend.weights);
        let (n_rows, isa) = (batch.n_rows(), crew.isa());
        let (width, hidden_size) = (weights.embedding.cols(), spec.hidden_size);
        let embedded = if weights.project_in.is_some() { &mut buffers.branch } else { &mut buffers.x };
        embedded.resize(n_rows * width, 0.0);
        crew.rows(embedded, width, |row, out| {
            weights.embedding.view().row_to_f32(batch.tokens[row] as usize, out);
            if spec.embedding.scale != 1.0 {
                vector::scale(isa, out, spec.embedding.scale);
            }
        });
        if let Some(project_in) = &weights.project_in {
            buffers.x.resize(n_rows * hidden_size, 0.0);
            let Buffers { branch, x, projector, .. } = &mut **buffers;
            projector.project(crew, branch, &[project_in], Store::Set, x);
        }
        if let (Some(table), Some(positions)) = (&weights.positions, &spec.embedding.positions) {
            buffers.branch.resize(n_rows * hidden_size, 0.0);
            crew.rows(&mut buffers.branch, hidden_size, |row, out| {
                table.view().row_to_f32(batch.positions[row] + positions.offset, out);
            });
            add_normed(crew, None, hidden_size, &buffers.branch, &mut buffers.x);
        }
    }

    pub fn attention_input(&mut self, layer: usize) {
        let CpuPass { crew, backend, batch, tables, blocks, buffers, .. } = self;
        let weights = &backend.weights.layers[layer];
        let attention = &backend.spec.layers[layer].attention;
        let (n_rows, isa) = (batch.n_rows(), crew.isa());
        let head_dim = attention.head_dim;
        let (query_width, kv_width) = (attention.n_heads * head_dim, attention.n_kv_heads * head_dim);
        let width = query_width + 2 * kv_width;
        let Buffers { x, normed, qkv, cache_slots, projector, .. } = &mut **buffers;
        normalize(crew, weights.attention_norm.as_ref(), backend.spec.hidden_size, x, normed);
        qkv.resize(n_rows * width, 0.0);
        let group: Vec<&Linear> = weights.query_key_value.iter().collect();
        projector.project(crew, normed, &group, Store::Set, qkv);

        crew.rows(qkv, width, |row, heads| {
            let (query, key) = heads[..query_width + kv_width].split_at_mut(query_width);
            for (heads, norm) in [(&mut *query, &weights.query_norm), (&mut *key, &weights.key_norm)] {
                if let Some(norm) = norm {
                    normalize_heads(isa, norm, head_dim, heads);
                }
            }
            if let Some(index) = attention.rope {
                let (cos, sin) = batch.ropes[index].row(row);
                rope::rotate(isa, query, head_dim, cos, sin);
                rope::rotate(isa, key, head_dim, cos, sin);
            }
        });

        let slot = backend.slots[layer];
        let cache_slot = |(position, sequence): (&usize, &usize)| {
            let table = &tables[slot.group][*sequence];
            let block = table.blocks[position / BLOCK_TOKENS - table.first_block] as usize;
            CacheSlot { block, slot: position % BLOCK_TOKENS }
        };
        cache_slots.clear();
        cache_slots.extend(batch.positions.iter().zip(&batch.row_sequence).map(cache_slot));
        kv::append(crew, slot.layer, cache_slots, qkv, width, query_width, &mut blocks[slot.group]);
    }

    pub fn attend(&mut self, layer: usize) {
        let CpuPass { crew, backend, queries, tables, blocks, buffers, .. } = self;
        let attention = &backend.spec.layers[layer].attention;
        let shape = AttentionShape {
            n_heads: attention.n_heads,
            n_kv_heads: attention.n_kv_heads,
            head_dim: attention.head_dim,
            scale: attention.scale,
            softcap: attention.softcap,
            window: attention.window,
        };
        let slot = backend.slots[layer];
        let Buffers { qkv, attended, .. } = &mut **buffers;
        let width = (attention.n_heads + 2 * attention.n_kv_heads) * attention.head_dim;
        attended.resize(queries.len() * attention.n_heads * attention.head_dim, 0.0);
        let (tables, blocks) = (&tables[slot.group], &blocks[slot.group]);
        let arithmetic = backend.arithmetic;
        attention::attend(crew, &shape, slot.layer, qkv, width, queries, tables, blocks, arithmetic, attended);
    }

    pub fn attention_output(&mut self, layer: usize) {
        let CpuPass { crew, backend, buffers, .. } = self;
        let weights = &backend.weights.layers[layer];
        let Buffers { attended, x, normed, branch, projector, .. } = &mut **buffers;
        let post_norm = weights.post_attention_norm.as_ref();
        projector.project_onto(crew, attended, &weights.output, post_norm, x, branch);
        if weights.attention_output_norm.is_some() {
            normalize(crew, weights.attention_output_norm.as_ref(), backend.spec.hidden_size, x, normed);
            std::mem::swap(x, normed);
        }
    }

    /// The input of the MLP. A parallel block without a norm of its own for it reads what attention has read.
    fn mlp_norm(&mut self, layer: usize) {
        let CpuPass { crew, backend, buffers, .. } = self;
        let (spec, weights) = (&backend.spec.layers[layer], &backend.weights.layers[layer]);
        if spec.block == Block::Sequential || weights.mlp_norm.is_some() {
            let Buffers { x, normed, .. } = &mut **buffers;
            normalize(crew, weights.mlp_norm.as_ref(), backend.spec.hidden_size, x, normed);
        }
    }

    pub fn mlp_input(&mut self, layer: usize) {
        self.mlp_norm(layer);
        let CpuPass { crew, backend, buffers, .. } = self;
        let spec::Mlp::Dense(network) = &backend.spec.layers[layer].mlp else { return };
        let MlpWeights::Dense(weights) = &backend.weights.layers[layer].mlp else { return };
        let Buffers { normed, gate_up, activated, projector, .. } = &mut **buffers;
        projector.feed_forward_input(crew, network, &[weights], normed, gate_up, activated);
    }

    pub fn mlp_output(&mut self, layer: usize) {
        let CpuPass { crew, backend, buffers, .. } = self;
        let weights = &backend.weights.layers[layer];
        let MlpWeights::Dense(network) = &weights.mlp else { return };
        let Buffers { activated, x, branch, projector, .. } = &mut **buffers;
        let post_norm = weights.post_mlp_norm.as_ref();
        projector.project_onto(crew, activated, &network.down, post_norm, x, branch);
        self.mlp_output_norm(layer);
    }

    fn mlp_output_norm(&mut self, layer: usize) {
        let CpuPass { crew, backend, buffers, .. } = self;
        let weights = &backend.weights.layers[layer];
        if weights.mlp_output_norm.is_some() {
            let Buffers { x, normed, .. } = &mut **buffers;
            normalize(crew, weights.mlp_output_norm.as_ref(), backend.spec.hidden_size, x, normed);
            std::mem::swap(x, normed);
        }
    }

    pub fn route(&mut self, layer: usize) {
        self.mlp_norm(layer);
        let CpuPass { crew, backend, buffers, .. } = self;
        let spec::Mlp::Experts { routing, .. } = &backend.spec.layers[layer].mlp else { return };
        let MlpWeights::Experts { router, .. } = &backend.weights.layers[layer].mlp else { return };
        let Buffers { normed, experts, projector, .. } = &mut **buffers;
        experts.route(crew, projector, router, *routing, normed);
    }

    pub fn experts(&mut self, layer: usize) {
        let CpuPass { crew, backend, buffers, .. } = self;
        let hidden_size = backend.spec.hidden_size;
        let spec::Mlp::Experts { experts: networks, .. } = &backend.spec.layers[layer].mlp else { return };
        let weights = &backend.weights.layers[layer];
        let MlpWeights::Experts { experts: network_weights, .. } = &weights.mlp else { return };
        let Some(network) = networks.first() else { return };
        let Buffers { x, normed, gate_up, activated, branch, experts, projector, .. } = &mut **buffers;
        experts.run(crew, projector, network, network_weights, normed, Hidden { gate_up, activated });
        backend.experts_read.fetch_add(experts.n_read() as u64, Ordering::Relaxed);
        let post_norm = weights.post_mlp_norm.as_ref();
        if post_norm.is_none() {
            experts.add_outputs(crew, hidden_size, x);
        } else {
            branch.clear();
            branch.resize(x.len(), 0.0);
            experts.add_outputs(crew, hidden_size, branch);
            add_normed(crew, post_norm, hidden_size, branch, x);
        }
        self.mlp_output_norm(layer);
    }

    pub fn head(&mut self) {
        let CpuPass { crew, backend, batch, buffers, logits, .. } = self;
        let (spec, weights) = (&backend.spec, &backend.weights);
        let hidden_size = spec.hidden_size;
        let n_rows = batch.logit_rows.len();
        if n_rows == 0 {
            return;
        }
        let Buffers { x, normed, branch, projector, .. } = &mut **buffers;
        normed.resize(n_rows * hidden_size, 0.0);
        let row_of_x = |i: usize| &x[batch.logit_rows[i] * hidden_size..][..hidden_size];
        normalize_rows(crew, weights.final_norm.as_ref(), hidden_size, row_of_x, normed);
        let input = match &weights.project_out {
            None => normed,
            Some(project_out) => {
                branch.resize(n_rows * project_out.rows(), 0.0);
                projector.project(crew, normed, &[project_out], Store::Set, branch);
                branch
            }
        };
        let start = logits.len();
        logits.resize(start + n_rows * spec.vocab_size, 0.0);
        let new = &mut logits[start..];
        projector.project(crew, input, &[&weights.head], Store::Set, new);
        if let Some(cap) = spec.logit_softcap {
            let isa = crew.isa();
            crew.rows(new, spec.vocab_size, |_, logits| activation::softcap(isa, logits, cap));
        }
    }
}
