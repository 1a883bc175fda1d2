//! How the workers of a pass share one operation.
//!
//! rayon's fork and join per operation is too slow for decoding, where a pass has hundreds of operations of
//! some ten microseconds each. Here the helpers already run and spin on one word, the gate. The leader opens
//! the gate for an operation; helpers that come by join it, claim tasks until none is left, and leave. The
//! leader works too, then closes the gate and waits only for those who joined: a helper that the system has
//! not scheduled holds nobody up. A helper that sees no operation for a while yields, then parks.
//!
//! Each worker claims from its own contiguous range of tasks first, so that it reads memory as one stream,
//! and from the others' ranges when its own is used up. A claim takes a part of what is left: a claim of each task by
//! itself would stop the stream, as nothing is read past it until it is made, and the last claims must be small, as
//! somebody waits for whoever made them. Which worker runs a task never changes a result.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Isa;

/// The gate's lowest bits count the helpers inside the operation, the next is set while helpers may join, and
/// the rest counts operations.
pub(super) const MEMBERS: usize = (1 << 14) - 1;
const OPEN: usize = 1 << 14;
const OPERATION: usize = 1 << 15;

/// How long a helper spins for the next operation, and how long it then offers its core to others, before it
/// parks. Between two operations of a decoding pass lie a few microseconds.
const SPIN: Duration = Duration::from_micros(50);
const YIELD: Duration = Duration::from_micros(250);

/// A claim takes one of so many parts of the tasks that are left of a range, but at least one task.
const PARTS: usize = 8;

/// One worker's part of an operation's tasks. A cache line each, so that claims do not disturb each other.
#[repr(align(128))]
#[derive(Default)]
struct Share {
    next: AtomicUsize,
    end: AtomicUsize,
}

impl Share {
    /// Tasks that nobody else has claimed or will.
    fn claim(&self) -> Option<Range<usize>> {
        let end = self.end.load(Ordering::Relaxed);
        let left = end.saturating_sub(self.next.load(Ordering::Relaxed));
        let wanted = (left / PARTS).max(1);
        let start = self.next.fetch_add(wanted, Ordering::Relaxed);
        (start < end).then(|| start..end.min(start + wanted))
    }
}

/// The operation that the gate is open for: a pointer whose pointee the leader keeps alive until it has closed
/// the gate and every member has left.
type Task = *const (dyn Fn(Range<usize>) + Sync);

/// What the workers of a team share.
pub(super) struct Shared {
    isa: Isa,
    gate: AtomicUsize,
    task: UnsafeCell<Option<Task>>,
    shares: Box<[Share]>,
    finished: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    parked: AtomicUsize,
    lobby: Mutex<()>,
    call: Condvar,
}

// SAFETY: `task` is the only field that is not Sync by itself. The leader writes it while the gate is closed
// and without members; helpers read it only as members. Joining (Acquire) reads what opening (SeqCst) published,
// and the leader sees the last member leave (Release to Acquire) before it writes again.
unsafe impl Sync for Shared {}

impl Shared {
    pub(super) fn new(threads: usize, isa: Isa) -> Shared {
        Shared {
            isa,
            gate: AtomicUsize::new(0),
            task: UnsafeCell::new(None),
            shares: (0..threads).map(|_| Share::default()).collect(),
            finished: AtomicBool::new(false),
            panic: Mutex::new(None),
            parked: AtomicUsize::new(0),
            lobby: Mutex::new(()),
            call: Condvar::new(),
        }
    }

    /// There will be no more passes: helpers return.
    pub(super) fn finish(&self) {
        self.finished.store(true, Ordering::SeqCst);
        self.wake();
    }

    fn wake(&self) {
        // A helper counts itself as parked before it looks at the gate for the last time, and the gate was
        // changed before this load: with SeqCst on all four, either this sees it or it sees the gate.
        if self.parked.load(Ordering::SeqCst) > 0 {
            drop(self.lobby.lock().unwrap_or_else(PoisonError::into_inner));
            self.call.notify_all();
        }
    }

    /// A helper's life: joins the operations of all passes.
    pub(super) fn help(&self, worker: usize) {
        let mut last = 0;
        while let Some(gate) = self.wait_for_operation(last) {
            last = gate / OPERATION;
            let join = |gate| (gate & OPEN != 0 && gate / OPERATION == last).then_some(gate + 1);
            if self.gate.fetch_update(Ordering::Acquire, Ordering::Relaxed, join).is_ok() {
                // SAFETY: this worker is a member, so the leader keeps `task` unchanged and its pointee alive
                // until the count is taken back.
                let task = unsafe { &*self.task.get() };
                if let Some(task) = task {
                    // SAFETY: as above.
                    self.work(worker, unsafe { &**task });
                }
                self.gate.fetch_sub(1, Ordering::Release);
            }
        }
    }

    /// The gate, once it is open for an operation other than `last`; None when there will be no more.
    fn wait_for_operation(&self, last: usize) -> Option<usize> {
        let look = || {
            let gate = self.gate.load(Ordering::SeqCst);
            let ready = gate & OPEN != 0 && gate / OPERATION != last;
            (ready || self.finished.load(Ordering::SeqCst)).then_some(ready.then_some(gate))
        };
        let start = Instant::now();
        loop {
            for _ in 0..64 {
                if let Some(answer) = look() {
                    return answer;
                }
                std::hint::spin_loop();
            }
            let waited = start.elapsed();
            if waited > SPIN + YIELD {
                break;
            } else if waited > SPIN {
                std::thread::yield_now();
            }
        }
        let mut lobby = self.lobby.lock().unwrap_or_else(PoisonError::into_inner);
        self.parked.fetch_add(1, Ordering::SeqCst);
        let answer = loop {
            if let Some(answer) = look() {
                break answer;
            }
            lobby = self.call.wait(lobby).unwrap_or_else(PoisonError::into_inner);
        };
        self.parked.fetch_sub(1, Ordering::SeqCst);
        answer
    }

    /// Claims and runs tasks until none is left. A panic is kept for the leader and ends the operation.
    fn work(&self, worker: usize, task: &(dyn Fn(Range<usize>) + Sync)) {
        let claim_all = || {
            for i in 0..self.shares.len() {
                let share = &self.shares[(worker + i) % self.shares.len()];
                while let Some(tasks) = share.claim() {
                    task(tasks);
                }
            }
        };
        if let Err(payload) = catch_unwind(AssertUnwindSafe(claim_all)) {
            for share in &self.shares {
                share.next.store(usize::MAX / 2, Ordering::Relaxed);
            }
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(payload);
        }
    }

    /// The leader's side of one operation of `n` tasks.
    fn lead(&self, n: usize, task: &(dyn Fn(Range<usize>) + Sync)) {
        let threads = self.shares.len();
        let start = |worker: usize| n / threads * worker + (n % threads).min(worker);
        for (worker, share) in self.shares.iter().enumerate() {
            share.next.store(start(worker), Ordering::Relaxed);
            share.end.store(start(worker + 1), Ordering::Relaxed);
        }
        // SAFETY: only the lifetime changes; the gate is closed and without members again before this returns.
        let erased = unsafe { std::mem::transmute::<*const (dyn Fn(Range<usize>) + Sync + '_), Task>(task) };
        // SAFETY: the gate is closed and without members, so nobody else looks at the cell.
        unsafe { *self.task.get() = Some(erased) };
        let operation = self.gate.load(Ordering::Relaxed) / OPERATION;
        self.gate.store(operation.wrapping_add(1).wrapping_mul(OPERATION) | OPEN, Ordering::SeqCst);
        self.wake();
        self.work(0, task);
        self.gate.fetch_and(!OPEN, Ordering::Relaxed);
        let mut spins = 0;
        while self.gate.load(Ordering::Acquire) & MEMBERS != 0 {
            // A member is in its last task, or the system took its core away: then the core here may help.
            spins += 1;
            if spins < 10_000 { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        let panic = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

/// A pass's handle to its workers. It stays on the thread that runs the pass, so that operations cannot nest:
/// ```compile_fail
/// # use infer_kernels::{Isa, Team};
/// # let team = Team::new(2, Isa::best()).unwrap();
/// team.run(|crew| crew.for_each(2, |_| crew.for_each(2, |_| ())));
/// ```
pub struct Crew<'a> {
    shared: &'a Shared,
    /// Not Sync: a task that calls an operation would wait for itself.
    _leader_only: PhantomData<Cell<()>>,
}

impl<'a> Crew<'a> {
    pub(super) fn new(shared: &'a Shared) -> Crew<'a> {
        Crew { shared, _leader_only: PhantomData }
    }

    /// The number of workers. Never let a result depend on it.
    pub fn threads(&self) -> usize {
        self.shared.shares.len()
    }

    /// The tier of kernels to use.
    pub fn isa(&self) -> Isa {
        self.shared.isa
    }

    /// Calls `task(i)` once for each i in 0..n, spread over the workers; returns when all are done.
    pub fn for_each(&self, n: usize, task: impl Fn(usize) + Sync) {
        self.runs(n, |tasks| tasks.for_each(&task));
    }

    /// Calls `task` with runs of 0..n that together cover it once, spread over the workers; returns when all are done.
    fn runs(&self, n: usize, task: impl Fn(Range<usize>) + Sync) {
        match n {
            0 => (),
            2.. if self.threads() > 1 => self.shared.lead(n, &task),
            _ => task(0..n),
        }
    }

    /// Splits `out` into rows of `row_len` and calls `task(row_index, row)` for each, spread over the workers.
    pub fn rows<T: Send>(&self, out: &mut [T], row_len: usize, task: impl Fn(usize, &mut [T]) + Sync) {
        assert!(row_len > 0 && out.len().is_multiple_of(row_len), "{} values in rows of {row_len}", out.len());
        self.tiles(out, &[row_len], row_len, 1, |mut tile| {
            let index = tile.rows.start;
            task(index, tile.row(0));
        });
    }

    /// Cuts `out`, a matrix whose rows are `segments` of columns side by side, into tiles of at most `height` rows and
    /// `width` columns of one segment, and calls `task(tile)` once for each, spread over the workers. Tiles below
    /// each other come one after the other, so that a worker stays with the columns of its weights.
    pub(super) fn tiles<T: Send>(
        &self,
        out: &mut [T],
        segments: &[usize],
        width: usize,
        height: usize,
        task: impl Fn(Tile<'_, T>) + Sync,
    ) {
        let row_len: usize = segments.iter().sum();
        assert!(row_len > 0 && out.len().is_multiple_of(row_len), "{} values in rows of {row_len}", out.len());
        assert!(width > 0 && height > 0, "tiles of {height} rows and {width} columns");
        let n_rows = out.len() / row_len;
        let n_down = n_rows.div_ceil(height);
        let n_across: usize = segments.iter().map(|segment| segment.div_ceil(width)).sum();
        let base = Base(out.as_mut_ptr());
        self.runs(n_down * n_across, |tiles| {
            let (mut across, mut row) = (tiles.start / n_down, tiles.start % n_down * height);
            let (mut segment, mut start) = (0, 0);
            while across >= segments[segment].div_ceil(width) {
                across -= segments[segment].div_ceil(width);
                start += segments[segment];
                segment += 1;
            }
            let mut column = across * width;
            for _ in tiles {
                while column >= segments[segment] {
                    (column, start, segment) = (0, start + segments[segment], segment + 1);
                }
                let end = segments[segment].min(column + width);
                task(Tile {
                    base: base.pointer(),
                    row_len,
                    rows: row..n_rows.min(row + height),
                    columns: start + column..start + end,
                    segment,
                    start_of_segment: start,
                    _out: PhantomData,
                });
                row += height;
                if row >= n_rows {
                    (row, column) = (0, end);
                }
            }
        });
    }

    /// Cuts `out`, a matrix whose rows hold `row_len` values, into columns of `width` and the given ranges of rows, which
    /// follow each other, and calls `task(range_index, tile)` once for each piece, spread over the workers.
    pub(super) fn row_ranges<T: Send>(
        &self,
        out: &mut [T],
        row_len: usize,
        width: usize,
        ranges: &[Range<usize>],
        task: impl Fn(usize, Tile<'_, T>) + Sync,
    ) {
        assert!(row_len > 0 && out.len().is_multiple_of(row_len), "{} values in rows of {row_len}", out.len());
        assert!(width > 0 && row_len.is_multiple_of(width), "columns of {width} in rows of {row_len}");
        let n_rows = out.len() / row_len;
        let mut end = 0;
        for rows in ranges {
            assert!(end <= rows.start && rows.start <= rows.end && rows.end <= n_rows, "rows {rows:?} after {end}");
            end = rows.end;
        }
        let n_across = row_len / width;
        let base = Base(out.as_mut_ptr());
        self.for_each(ranges.len() * n_across, |index| {
            let (range, segment) = (index / n_across, index % n_across);
            task(
                range,
                Tile {
                    base: base.pointer(),
                    row_len,
                    rows: ranges[range].clone(),
                    columns: segment * width..(segment + 1) * width,
                    segment,
                    start_of_segment: segment * width,
                    _out: PhantomData,
                },
            );
        });
    }
}

/// The start of an output that tasks write in disjoint parts.
struct Base<T>(*mut T);

// SAFETY: a shared Base gives no access by itself; Crew::tiles and row_ranges hand out disjoint tiles, each to one thread
// at a time, which is sending parts of a `&mut [T]`.
unsafe impl<T: Send> Sync for Base<T> {}

impl<T> Base<T> {
    fn pointer(&self) -> *mut T {
        self.0
    }
}

/// A rectangle of an output matrix, which nobody else writes or reads.
pub(super) struct Tile<'a, T> {
    base: *mut T,
    row_len: usize,
    /// The rows of the matrix that the tile covers.
    pub(super) rows: Range<usize>,
    /// The columns of the matrix that the tile covers.
    pub(super) columns: Range<usize>,
    /// The segment that they belong to, and its first column.
    pub(super) segment: usize,
    pub(super) start_of_segment: usize,
    _out: PhantomData<&'a mut [T]>,
}

impl<T> Tile<'_, T> {
    /// The tile's part of its row `i`, counted from the tile's top.
    pub(super) fn row(&mut self, i: usize) -> &mut [T] {
        assert!(i < self.rows.len(), "row {i} of a tile of {} rows", self.rows.len());
        let offset = (self.rows.start + i) * self.row_len + self.columns.start;
        // SAFETY: Crew::tiles or row_ranges cut the ranges from a matrix of whole rows, so the values lie inside it; tiles
        // are disjoint and made once each, and `&mut self` keeps the rows of one tile apart.
        unsafe { std::slice::from_raw_parts_mut(self.base.add(offset), self.columns.len()) }
    }
}
