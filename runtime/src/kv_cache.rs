//! The KV cache: a pool of blocks and, for each sequence, lists of the blocks it owns.
//!
//! Layers that share window, head count and head size form a group; a block holds [`BLOCK_TOKENS`] tokens of all layers
//! of one group. What is inside a block belongs to the backend; here are only its number, who uses it, and how many
//! there may be. Blocks are taken on demand. A fork shares them (a count of users for each block) and copies a block
//! when it is about to write into a shared one. Groups with a window give back blocks that no query can see again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use infer_kernels::cpu::kv::{BLOCK_TOKENS, KvLayout, KvType};

use crate::error::{Error, Result};
use crate::model::spec::Spec;

/// Layers whose keys and values share blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LayerGroup {
    /// The sliding window of all its layers.
    pub window: Option<usize>,
    /// Shape and type of a block.
    pub layout: KvLayout,
}

/// Where a layer's keys and values lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LayerSlot {
    /// Index of the group.
    pub group: usize,
    /// Index of the layer inside the group's blocks.
    pub layer: usize,
}

/// Sorts the layers of a model into groups. Returns the groups and, for each layer, its slot.
pub(crate) fn group_layers(spec: &Spec, kv_type: KvType) -> (Vec<LayerGroup>, Vec<LayerSlot>) {
    let mut groups: Vec<LayerGroup> = Vec::new();
    let mut slots = Vec::with_capacity(spec.layers.len());
    for layer in &spec.layers {
        let attention = &layer.attention;
        let same = |g: &LayerGroup| {
            g.window == attention.window
                && g.layout.n_kv_heads == attention.n_kv_heads
                && g.layout.head_dim == attention.head_dim
        };
        let group = groups.iter().position(same).unwrap_or_else(|| {
            groups.push(LayerGroup {
                window: attention.window,
                layout: KvLayout {
                    n_layers: 0,
                    n_kv_heads: attention.n_kv_heads,
                    head_dim: attention.head_dim,
                    kv_type,
                },
            });
            groups.len() - 1
        });
        slots.push(LayerSlot { group, layer: groups[group].layout.n_layers });
        groups[group].layout.n_layers += 1;
    }
    (groups, slots)
}

/// Bytes of cache that one sequence of `context` tokens needs, the chunk of the pass that is running included.
pub(crate) fn bytes_for_context(groups: &[LayerGroup], context: usize, chunk: usize) -> u64 {
    groups
        .iter()
        .map(|group| {
            let held = group.window.map_or(context, |window| context.min(window.saturating_add(chunk)));
            // One block more than the tokens fill: a window begins and ends inside a block.
            let blocks = held.div_ceil(BLOCK_TOKENS) + usize::from(group.window.is_some());
            group.layout.memory_bytes(blocks) as u64
        })
        .fold(0, u64::saturating_add)
}

/// The numbers of all blocks: which are free and how many sequences use each of the others.
#[derive(Debug)]
pub(crate) struct KvPool {
    groups: Vec<LayerGroup>,
    limit: u64,
    books: Mutex<Books>,
}

#[derive(Debug)]
struct Books {
    /// Bytes of memory that the blocks which exist take.
    bytes: u64,
    groups: Vec<GroupBooks>,
}

#[derive(Debug, Default)]
struct GroupBooks {
    /// Users of each block; 0 = free.
    users: Vec<u32>,
    /// The next to be taken comes last: as a rule blocks are taken in the order in which they lie in memory.
    free: Vec<u32>,
}

/// A block to be copied before the pass writes: shared by a fork until now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockCopy {
    pub group: usize,
    pub from: u32,
    pub to: u32,
}

impl KvPool {
    /// A pool whose blocks may take `limit` bytes together.
    pub fn new(groups: Vec<LayerGroup>, limit: u64) -> Arc<KvPool> {
        let books = Books { bytes: 0, groups: groups.iter().map(|_| GroupBooks::default()).collect() };
        Arc::new(KvPool { groups, limit, books: Mutex::new(books) })
    }

    pub fn groups(&self) -> &[LayerGroup] {
        &self.groups
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        // The books are changed in steps that cannot panic, so a poisoned lock still guards consistent books.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, books: &mut Books, group: usize) -> Result<u32> {
        let layout = &self.groups[group].layout;
        let group_books = &mut books.groups[group];
        let n_blocks = group_books.users.len();
        let more = layout.memory_bytes(n_blocks + 1) - layout.memory_bytes(n_blocks);
        let total = books.bytes.saturating_add(more as u64);
        if let Some(block) = group_books.free.pop() {
            group_books.users[block as usize] = 1;
            return Ok(block);
        }
        let too_many = u32::try_from(n_blocks);
        let (Ok(block), true) = (too_many, total <= self.limit) else {
            return Err(Error::Memory(format!(
                "the KV cache is full: {} bytes in use of {} allowed",
                books.bytes, self.limit
            )));
        };
        group_books.users.push(1);
        books.bytes = total;
        Ok(block)
    }

    /// The copies were carried out: gives back the blocks that were copied from.
    pub fn copied(&self, copies: &[BlockCopy]) {
        let mut books = self.books();
        for copy in copies {
            KvPool::give_back(&mut books, copy.group, copy.from);
        }
    }

    fn give_back(books: &mut Books, group: usize, block: u32) {
        let group_books = &mut books.groups[group];
        let users = &mut group_books.users[block as usize];
        *users -= 1;
        if *users == 0 {
            group_books.free.push(block);
        }
    }
}

/// Blocks of one sequence in one group: block i of `blocks` holds the tokens from (first_block + i) * BLOCK_TOKENS on.
#[derive(Debug, Clone, Default)]
pub(crate) struct BlockList {
    pub first_block: usize,
    pub blocks: Vec<u32>,
}

/// The first of `len` cached tokens whose block is kept: the next query, at position `len`, sees keys from
/// `len + 1 - window` on.
pub(crate) fn first_kept_token(len: usize, window: Option<usize>) -> usize {
    let first_visible = window.map_or(0, |window| (len + 1).saturating_sub(window));
    first_visible / BLOCK_TOKENS * BLOCK_TOKENS
}

/// The cached keys and values of one sequence of tokens.
#[derive(Debug)]
pub(crate) struct Sequence {
    pool: Arc<KvPool>,
    len: usize,
    lists: Vec<BlockList>,
    /// Whether the keys were rotated with the long factors of longrope.
    long_factors: bool,
}

impl Sequence {
    pub fn new(pool: Arc<KvPool>) -> Sequence {
        let lists = pool.groups.iter().map(|_| BlockList::default()).collect();
        Sequence { pool, len: 0, lists, long_factors: false }
    }

    /// A sequence of `len` tokens whose kept keys and values the caller must write before anything reads them.
    pub fn with_room(pool: Arc<KvPool>, len: usize, long_factors: bool) -> Result<Sequence> {
        let mut sequence = Sequence::new(pool);
        sequence.long_factors = long_factors;
        for (list, group) in sequence.lists.iter_mut().zip(&sequence.pool.groups) {
            list.first_block = first_kept_token(len, group.window) / BLOCK_TOKENS;
        }
        sequence.reserve(len, &mut Vec::new())?;
        sequence.len = len;
        Ok(sequence)
    }

    /// Tokens whose keys and values are in the cache.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the cached keys carry longrope's long factors.
    pub fn long_factors(&self) -> bool {
        self.long_factors
    }

    pub fn set_long_factors(&mut self, long: bool) {
        self.long_factors = long;
    }

    pub fn list(&self, group: usize) -> &BlockList {
        &self.lists[group]
    }

    /// Makes room for `n_tokens` more tokens: takes blocks, and replaces a shared block that will be written to. The
    /// caller must carry out `copies`, also when this fails half-way, before anything reads this sequence, and then
    /// call [`KvPool::copied`]: until then the shared blocks count this sequence as a user, so that nobody else takes
    /// them for theirs alone and writes to them.
    pub fn reserve(&mut self, n_tokens: usize, copies: &mut Vec<BlockCopy>) -> Result<()> {
        let end_block = self.len.saturating_add(n_tokens).div_ceil(BLOCK_TOKENS);
        let mut books = self.pool.books();
        for (group, list) in self.lists.iter_mut().enumerate() {
            // The first block that is written to, if it exists, may be shared with a fork.
            let index = (self.len / BLOCK_TOKENS).wrapping_sub(list.first_block);
            if let Some(block) = list.blocks.get_mut(index)
                && books.groups[group].users[*block as usize] > 1
            {
                let own = self.pool.take(&mut books, group)?;
                copies.push(BlockCopy { group, from: *block, to: own });
                *block = own;
            }
            while list.first_block + list.blocks.len() < end_block {
                list.blocks.push(self.pool.take(&mut books, group)?);
            }
        }
        Ok(())
    }

    /// Undoes those of `copies` that [`Self::reserve`] asked for here, in place of carrying them out.
    pub fn take_back(&mut self, copies: &[BlockCopy]) {
        let mut books = self.pool.books();
        for copy in copies {
            for block in self.lists[copy.group].blocks.iter_mut().filter(|block| **block == copy.to) {
                *block = copy.from;
                KvPool::give_back(&mut books, copy.group, copy.to);
            }
        }
    }

    /// Counts `n_tokens` more tokens as cached and gives back the blocks that no window reaches any more.
    pub fn advance(&mut self, n_tokens: usize) {
        self.len += n_tokens;
        let mut books = self.pool.books();
        for (group, list) in self.lists.iter_mut().enumerate() {
            let first_kept = first_kept_token(self.len, self.pool.groups[group].window) / BLOCK_TOKENS;
            let n_hidden = first_kept.saturating_sub(list.first_block).min(list.blocks.len());
            for block in list.blocks.drain(..n_hidden).rev() {
                KvPool::give_back(&mut books, group, block);
            }
            list.first_block += n_hidden;
        }
    }

    /// Whether the first `len` tokens can be kept: false where a window has given back blocks that are needed again.
    pub fn can_truncate(&self, len: usize) -> bool {
        len <= self.len
            && self
                .lists
                .iter()
                .zip(&self.pool.groups)
                .all(|(list, group)| list.first_block * BLOCK_TOKENS <= first_kept_token(len, group.window))
    }

    /// Forgets all but the first `len` tokens. `can_truncate` must hold, or `len` be 0.
    pub fn truncate(&mut self, len: usize) {
        if len == 0 {
            self.clear();
            return;
        }
        assert!(self.can_truncate(len), "cannot truncate a sequence of {} tokens to {len}", self.len);
        let n_blocks = len.div_ceil(BLOCK_TOKENS);
        let mut books = self.pool.books();
        for (group, list) in self.lists.iter_mut().enumerate() {
            let keep = n_blocks.saturating_sub(list.first_block).min(list.blocks.len());
            for block in list.blocks.drain(keep..).rev() {
                KvPool::give_back(&mut books, group, block);
            }
        }
        self.len = len;
    }

    fn clear(&mut self) {
        let mut books = self.pool.books();
        for (group, list) in self.lists.iter_mut().enumerate() {
            for block in list.blocks.drain(..).rev() {
                KvPool::give_back(&mut books, group, block);
            }
            list.first_block = 0;
        }
        self.len = 0;
        self.long_factors = false;
    }

    /// A second sequence with the same tokens; both share the blocks until one of them writes.
    pub fn fork(&self) -> Sequence {
        let mut books = self.pool.books();
        for (group, list) in self.lists.iter().enumerate() {
            for &block in &list.blocks {
                books.groups[group].users[block as usize] += 1;
            }
        }
        Sequence {
            pool: Arc::clone(&self.pool),
            len: self.len,
            lists: self.lists.clone(),
            long_factors: self.long_factors,
        }
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(windows: &[Option<usize>], limit_blocks: usize) -> Arc<KvPool> {
        let layout = KvLayout { n_layers: 1, n_kv_heads: 1, head_dim: 2, kv_type: KvType::F32 };
        let groups = windows.iter().map(|&window| LayerGroup { window, layout }).collect();
        KvPool::new(groups, layout.memory_bytes(limit_blocks) as u64)
    }

    fn grow(sequence: &mut Sequence, n_tokens: usize) -> Vec<BlockCopy> {
        let mut copies = Vec::new();
        sequence.reserve(n_tokens, &mut copies).unwrap();
        sequence.pool.copied(&copies);
        sequence.advance(n_tokens);
        copies
    }

    fn n_blocks(pool: &KvPool) -> usize {
        pool.books().groups.iter().map(|group| group.users.len()).sum()
    }

    fn free_blocks(pool: &KvPool) -> usize {
        pool.books().groups.iter().map(|group| group.free.len()).sum()
    }

    #[test]
    fn blocks_are_taken_on_demand_and_given_back_on_drop() {
        let pool = pool(&[None], 8);
        let mut sequence = Sequence::new(Arc::clone(&pool));
        grow(&mut sequence, BLOCK_TOKENS + 1);
        assert_eq!(n_blocks(&pool), 2);
        drop(sequence);
        assert_eq!(free_blocks(&pool), 2);
    }

    #[test]
    fn a_full_pool_is_an_error_and_leaves_the_tokens() {
        let pool = pool(&[None], 1);
        let memory = |n_blocks: usize| pool.groups[0].layout.memory_bytes(n_blocks);
        // Memory for one block is memory for a few.
        let n_blocks = (1..).take_while(|n| memory(*n) == memory(1)).count();
        let mut sequence = Sequence::new(Arc::clone(&pool));
        grow(&mut sequence, n_blocks * BLOCK_TOKENS);
        let error = sequence.reserve(1, &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("KV cache is full"), "{error}");
        assert_eq!(sequence.len(), n_blocks * BLOCK_TOKENS);
    }

    #[test]
    fn a_copy_that_is_taken_back_leaves_the_shared_block() {
        let pool = pool(&[None, None], 200);
        let mut first = Sequence::new(Arc::clone(&pool));
        grow(&mut first, 3);
        let mut second = first.fork();
        let mut copies = Vec::new();
        second.reserve(BLOCK_TOKENS, &mut copies).unwrap();
        assert_eq!(copies.len(), 2, "a block of each group is shared");
        second.take_back(&copies);
        for group in 0..2 {
            assert_eq!(second.list(group).blocks[0], first.list(group).blocks[0], "group {group}");
        }
        assert_eq!(grow(&mut second, 1).len(), 2, "shared again, so copied again");
        drop((first, second));
        assert_eq!(free_blocks(&pool), n_blocks(&pool), "every block is given back");
    }

    #[test]
    fn a_shared_block_belongs_to_nobody_alone_before_its_copy_is_made() {
        let pool = pool(&[None], 8);
        let mut first = Sequence::new(Arc::clone(&pool));
        grow(&mut first, 3);
        let mut second = first.fork();
        let (mut first_copies, mut second_copies) = (Vec::new(), Vec::new());
        second.reserve(1, &mut second_copies).unwrap();
        // Another thread comes between, before the second sequence's copy.
        first.reserve(1, &mut first_copies).unwrap();
        assert_eq!(first_copies, [BlockCopy { group: 0, from: 0, to: 2 }], "written to while it is being copied");
        pool.copied(&second_copies);
        pool.copied(&first_copies);
        assert_eq!(free_blocks(&pool), 1);
    }

    #[test]
    fn a_fork_copies_only_the_block_it_writes_to() {
        let pool = pool(&[None], 8);
        let mut first = Sequence::new(Arc::clone(&pool));
        grow(&mut first, BLOCK_TOKENS + 3);
        let mut second = first.fork();
        assert_eq!(n_blocks(&pool), 2);
        let copies = grow(&mut second, 1);
        assert_eq!(copies, [BlockCopy { group: 0, from: 1, to: 2 }]);
        assert!(grow(&mut first, 1).is_empty(), "the first sequence owns its last block alone again");
    }

    #[test]
    fn a_fork_at_a_block_border_copies_nothing() {
        let pool = pool(&[None], 8);
        let mut first = Sequence::new(Arc::clone(&pool));
        grow(&mut first, BLOCK_TOKENS);
        let mut second = first.fork();
        assert!(grow(&mut second, 1).is_empty());
    }

    #[test]
    fn a_window_gives_back_what_it_cannot_see() {
        for window in [1, 2, BLOCK_TOKENS, BLOCK_TOKENS + 1, 3 * BLOCK_TOKENS] {
            let pool = pool(&[Some(window)], 1 << 20);
            let mut sequence = Sequence::new(Arc::clone(&pool));
            for len in 1..10 * BLOCK_TOKENS {
                grow(&mut sequence, 1);
                let first_visible = (len + 1).saturating_sub(window);
                let list = sequence.list(0);
                assert!(list.first_block * BLOCK_TOKENS <= first_visible, "window {window}, length {len}");
                let held = (list.first_block + list.blocks.len()) * BLOCK_TOKENS - first_visible;
                assert!(held < window + 2 * BLOCK_TOKENS, "window {window}, length {len}: holds {held} tokens");
            }
        }
    }

    #[test]
    fn truncating_is_refused_only_where_a_window_lost_its_blocks() {
        let windowed = pool(&[Some(4)], 1 << 20);
        let mut sequence = Sequence::new(windowed);
        grow(&mut sequence, 4 * BLOCK_TOKENS);
        let len = sequence.len();
        assert!(sequence.can_truncate(len));
        assert!(!sequence.can_truncate(BLOCK_TOKENS));
        assert!(!sequence.can_truncate(len + 1));
        let mut full = Sequence::new(pool(&[None], 1 << 20));
        grow(&mut full, 4 * BLOCK_TOKENS);
        assert!(full.can_truncate(BLOCK_TOKENS));
        full.truncate(BLOCK_TOKENS - 1);
        assert_eq!((full.len(), full.list(0).blocks.len()), (BLOCK_TOKENS - 1, 1));
    }
}
