//! Where a forward pass runs: the same dozen operations for every device.
//!
//! A backend owns the weights in its device's form, the inside of the cache blocks and the activations of one batch.
//! [`crate::model::forward`] calls the operations of a [`Pass`] in order and never looks at a value in between, so a
//! device may queue them. A new device is one more file and one more member of these two enums.

pub(crate) mod batch;
pub(crate) mod cpu;
pub(crate) mod fair_mutex;

use infer_kernels::{KvType, Team};

use crate::error::Result;
use crate::kv_cache::{BlockCopy, KvPool, Sequence};
use crate::model::cost::Cost;
use batch::Batch;

/// The devices.
pub(crate) enum Backend {
    Cpu(cpu::CpuBackend),
}

/// One forward pass in progress on a device. Each operation reads and writes the pass's own activations:
/// `x` is the residual stream [n_rows, hidden_size].
pub(crate) enum Pass<'a> {
    Cpu(cpu::CpuPass<'a>),
}

/// One token of one layer in the cache.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KvAddress {
    pub group: usize,
    pub block: u32,
    /// Index of the layer inside the group.
    pub layer: usize,
    /// Index of the token inside the block.
    pub slot: usize,
}

impl Backend {
    /// Runs `pass` over `batch` and appends the logits of the rows that the batch asks for to `logits`.
    /// One pass runs at a time; callers wait.
    pub fn run(
        &self,
        pool: &KvPool,
        batch: &Batch<'_>,
        logits: &mut Vec<f32>,
        pass: impl FnOnce(&mut Pass<'_>) + Send,
    ) {
        match self {
            Backend::Cpu(backend) => backend.run(pool, batch, logits, |cpu| pass(&mut Pass::Cpu(cpu))),
        }
    }

    /// Changes the threads of later passes; waits for the one that is running.
    pub fn set_team(&self, team: Team) {
        match self {
            Backend::Cpu(backend) => backend.set_team(team),
        }
    }

    /// What passes read and compute.
    pub fn cost(&self, kv_type: KvType) -> Cost {
        match self {
            Backend::Cpu(backend) => backend.cost(kv_type),
        }
    }

    /// How many experts' weights all passes so far have read: each counts once in a pass and a layer.
    pub fn experts_read(&self) -> u64 {
        match self {
            Backend::Cpu(backend) => backend.experts_read(),
        }
    }

    /// Gives memory to the blocks of these sequences. Passes, copies and single tokens find it there.
    ///
    /// # Errors
    /// [`Error::Kernel`](crate::Error::Kernel) if the system does not give it.
    pub fn make_room<'a>(&self, pool: &KvPool, sequences: impl Iterator<Item = &'a Sequence>) -> Result<()> {
        match self {
            Backend::Cpu(backend) => backend.make_room(pool, sequences),
        }
    }

    /// Copies whole blocks: what a fork shared and is about to overwrite.
    pub fn copy_blocks(&self, copies: &[BlockCopy]) {
        match self {
            Backend::Cpu(backend) => backend.copy_blocks(copies),
        }
    }

    /// Reads cached keys and values of one token in one layer, both [n_kv_heads * head_dim], as f32.
    pub fn read_kv(&self, address: KvAddress, key: &mut [f32], value: &mut [f32]) {
        match self {
            Backend::Cpu(backend) => backend.read_kv(address, key, value),
        }
    }

    /// Writes keys and values of one token in one layer.
    pub fn write_kv(&self, address: KvAddress, key: &[f32], value: &[f32]) {
        match self {
            Backend::Cpu(backend) => backend.write_kv(address, key, value),
        }
    }
}

impl Pass<'_> {
    /// x = embedding of each row's token: scaled, projected, learned positions added, as the model has them.
    pub fn embed(&mut self) {
        match self {
            Pass::Cpu(pass) => pass.embed(),
        }
    }

    /// Norm, query/key/value, per-head norms, rotation; keys and values are appended to the cache.
    pub fn attention_input(&mut self, layer: usize) {
        match self {
            Pass::Cpu(pass) => pass.attention_input(layer),
        }
    }

    /// Each row attends to its sequence's cached tokens up to and including itself.
    pub fn attend(&mut self, layer: usize) {
        match self {
            Pass::Cpu(pass) => pass.attend(layer),
        }
    }

    /// Output projection, its norm, added to x.
    pub fn attention_output(&mut self, layer: usize) {
        match self {
            Pass::Cpu(pass) => pass.attention_output(layer),
        }
    }

    /// Norm, gate and up, activation.
    pub fn mlp_input(&mut self, layer: usize) {
        match self {
            Pass::Cpu(pass) => pass.mlp_input(layer),
        }
    }

    /// Down projection, its norm, added to x.
    pub fn mlp_output(&mut self, layer: usize) {
        match self {
            Pass::Cpu(pass) => pass.mlp_output(layer),
        }
    }

    /// Norm and router: chooses the experts of each row.
    pub fn route(&mut self, layer: usize) {
        match self {
            Pass::Cpu(pass) => pass.route(layer),
        }
    }

    /// The chosen experts, weighted and summed, their norm, added to x.
    pub fn experts(&mut self, layer: usize) {
        match self {
            Pass::Cpu(pass) => pass.experts(layer),
        }
    }

    /// Final norm and head for the rows whose logits are wanted.
    pub fn head(&mut self) {
        match self {
            Pass::Cpu(pass) => pass.head(),
        }
    }
}
