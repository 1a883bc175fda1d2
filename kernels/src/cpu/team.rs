//! The threads of forward passes, and how a pass gets onto them.
//!
//! One worker of the team's own thread pool runs the passes as they come, the others help in each of their
//! operations (`crew` says how). Passes run one at a time. Two would starve each other, as each would
//! spin for workers that the other holds, so callers wait for their turn, and they wait blocked: a caller may
//! itself be a worker of some rayon pool, and waiting inside rayon would let it steal and run another caller's
//! job in the middle of its own. A dispatcher thread therefore enters the pool, once for all passes: small models
//! have tokens of a fraction of a millisecond, of which waking a pool would be a good part.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::Isa;
use super::crew::{Crew, MEMBERS, Shared};
use crate::error::KernelError;

/// The threads of forward passes.
///
/// Shared by any number of callers on any threads. Dropping it waits for its threads to end.
/// ```
/// use infer_kernels::{Isa, Team};
///
/// let team = Team::new(2, Isa::best())?;
/// let mut squares = vec![0; 1000];
/// team.run(|crew| crew.rows(&mut squares, 1, |i, row| row[0] = i * i));
/// assert_eq!(squares[31], 961);
/// # Ok::<(), infer_kernels::KernelError>(())
/// ```
pub struct Team {
    number: usize,
    threads: usize,
    isa: Isa,
    seat: Seat,
}

/// Where passes run.
enum Seat {
    /// A team of one has no threads: the pass runs on the caller's, and the lock makes callers wait.
    Caller(Mutex<()>),
    /// Passes are handed to the dispatcher, which ends when the sender is dropped.
    Pool { queue: Option<Sender<Ticket>>, dispatcher: Option<JoinHandle<()>> },
}

/// One pass on its way to the workers.
struct Ticket {
    pass: ErasedPass,
    /// Dropped or sent to after the last use of `pass`.
    done: SyncSender<()>,
}

/// A pass whose lifetime [`Team::run`] guards: it does not return before the ticket is used up.
struct ErasedPass(*mut (dyn FnMut(&Shared) + Send));

// SAFETY: the pointee is Send, and only the holder of the ticket uses it, one thread at a time.
unsafe impl Send for ErasedPass {}

thread_local! {
    /// The number of the team whose passes this thread works for; 0 for none.
    static WORKS_FOR: Cell<usize> = const { Cell::new(0) };
}

/// The number of the next team.
static NEXT_NUMBER: AtomicUsize = AtomicUsize::new(1);

impl Team {
    /// A team of `threads` workers that use the kernels of `isa`. [`KernelError::Threads`] if `threads` is 0 or
    /// the system does not give them.
    pub fn new(threads: usize, isa: Isa) -> Result<Team, KernelError> {
        let refuse = |reason: String| KernelError::Threads { threads, reason };
        let number = NEXT_NUMBER.fetch_add(1, Ordering::Relaxed);
        let seat = match threads {
            0 => return Err(refuse("a team needs at least one".to_owned())),
            MEMBERS.. => return Err(refuse(format!("a team has fewer than {MEMBERS}"))),
            1 => Seat::Caller(Mutex::new(())),
            _ => {
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .thread_name(|i| format!("infer-worker-{i}"))
                    .start_handler(move |_| WORKS_FOR.set(number))
                    .build()
                    .map_err(|error| refuse(error.to_string()))?;
                let (queue, tickets) = channel();
                let dispatcher = std::thread::Builder::new()
                    .name("infer-dispatcher".to_owned())
                    .spawn(move || dispatch(&pool, threads, isa, tickets))
                    .map_err(|error| refuse(error.to_string()))?;
                Seat::Pool { queue: Some(queue), dispatcher: Some(dispatcher) }
            }
        };
        Ok(Team { number, threads, isa, seat })
    }

    /// The number of workers.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// The tier of kernels that the workers use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Runs one forward pass: `pass` runs on one worker, and the others help in the operations of its [`Crew`].
    ///
    /// Waits, blocked, for passes of other callers. A panic in `pass` or in a task of its operations continues
    /// here, and the team stays usable.
    ///
    /// # Panics
    /// If called from inside a pass of the same team, which would otherwise wait for itself forever.
    pub fn run<R: Send>(&self, pass: impl FnOnce(&Crew<'_>) -> R + Send) -> R {
        assert_ne!(WORKS_FOR.get(), self.number, "Team::run was called from inside a pass of the same team");
        let guarded = |shared: &Shared| catch_unwind(AssertUnwindSafe(|| pass(&Crew::new(shared))));
        let result = match &self.seat {
            Seat::Caller(turn) => {
                let _turn: MutexGuard<'_, ()> = turn.lock().unwrap_or_else(PoisonError::into_inner);
                let outer = WORKS_FOR.replace(self.number);
                let result = guarded(&Shared::new(1, self.isa));
                WORKS_FOR.set(outer);
                result
            }
            Seat::Pool { queue, .. } => {
                let mut guarded = Some(guarded);
                let mut result: Option<Result<R, Box<dyn Any + Send>>> = None;
                let mut erased = |shared: &Shared| result = guarded.take().map(|pass| pass(shared));
                let pass: *mut (dyn FnMut(&Shared) + Send + '_) = &mut erased;
                // SAFETY: only the lifetime changes. The pointee outlives its use because this function waits
                // below until the ticket is used up: `done` is sent to, or dropped, after the last use of `pass`,
                // and a ticket that is not taken is dropped unused.
                let pass: *mut (dyn FnMut(&Shared) + Send + 'static) = unsafe { std::mem::transmute(pass) };
                let (done, wait) = sync_channel(1);
                if let Some(queue) = queue {
                    // An error gives the ticket back and drops it, so that the wait ends in either case.
                    let _ = queue.send(Ticket { pass: ErasedPass(pass), done });
                }
                let _ = wait.recv();
                result.expect("the dispatcher lives as long as its team and runs each ticket")
            }
        };
        result.unwrap_or_else(|panic| resume_unwind(panic))
    }
}

/// Runs the passes of the tickets until the team is dropped.
fn dispatch(pool: &rayon::ThreadPool, threads: usize, isa: Isa, tickets: Receiver<Ticket>) {
    let shared = Shared::new(threads, isa);
    // Worker 0 takes the tickets out.
    let tickets = Mutex::new(Some(tickets));
    pool.broadcast(|context| match context.index() {
        0 => {
            let tickets = tickets.lock().unwrap_or_else(PoisonError::into_inner).take();
            for Ticket { pass, done } in tickets.into_iter().flatten() {
                // SAFETY: `Team::run` keeps the pointee alive and untouched until `done` is sent to or
                // dropped, which happens below; nobody else has the pointer.
                (unsafe { &mut *pass.0 })(&shared);
                // The caller may be gone only if it was killed; there is nobody to tell.
                let _ = done.send(());
            }
            shared.finish();
        }
        helper => shared.help(helper),
    });
}

impl Drop for Team {
    fn drop(&mut self) {
        if let Seat::Pool { queue, dispatcher } = &mut self.seat {
            drop(queue.take());
            if let Some(dispatcher) = dispatcher.take() {
                // Passes catch their panics, so the dispatcher has none to report.
                let _ = dispatcher.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayon::prelude::*;

    fn team(threads: usize) -> Team {
        Team::new(threads, Isa::best()).expect("threads")
    }

    /// A pass of many small operations, each of which reads what the one before wrote.
    fn chain(crew: &Crew<'_>, seed: u64) -> u64 {
        let mut values = vec![seed; 97];
        for step in 0..200 {
            let before = values.clone();
            crew.rows(&mut values, 1, |i, row| {
                row[0] = before[(i * 31 + step) % before.len()].wrapping_mul(6_364_136_223_846_793_005) + i as u64;
            });
        }
        values.iter().fold(0, |sum, v| sum ^ v)
    }

    #[test]
    fn each_task_runs_once_and_is_done_when_the_operation_returns() {
        for threads in [1, 2, 3, 8] {
            let team = team(threads);
            for n in [0, 1, 2, 5, 64, 1001] {
                let mut counts = vec![0u32; n];
                team.run(|crew| {
                    for _ in 0..50 {
                        crew.rows(&mut counts, 1, |_, row| row[0] += 1);
                    }
                });
                assert!(counts.iter().all(|c| *c == 50), "{n} tasks on {threads} threads: {counts:?}");
            }
        }
    }

    #[test]
    fn tiles_cover_a_matrix_once() {
        let cases: [(usize, &[usize], usize, usize); 6] = [
            (1, &[1], 1, 1),
            (7, &[10], 3, 2),
            (5, &[4], 9, 9),
            (16, &[32], 16, 4),
            (5, &[7, 0, 1, 9], 3, 2),
            (3, &[0, 2], 3, 5),
        ];
        for (rows, segments, width, height) in cases {
            let row_len: usize = segments.iter().sum();
            let mut out = vec![0u32; rows * row_len];
            team(2).run(|crew| {
                crew.tiles(&mut out, segments, width, height, |mut tile| {
                    let start: usize = segments[..tile.segment].iter().sum();
                    assert_eq!(tile.start_of_segment, start);
                    assert!(start <= tile.columns.start && tile.columns.end <= start + segments[tile.segment]);
                    for i in 0..tile.rows.len() {
                        let first = (tile.rows.start + i) * row_len + tile.columns.start;
                        tile.row(i).iter_mut().enumerate().for_each(|(j, v)| *v += (first + j) as u32 + 1);
                    }
                });
            });
            let expected: Vec<u32> = (1..=out.len() as u32).collect();
            assert_eq!(out, expected, "{rows} x {segments:?} in tiles of {height} x {width}");
        }
    }

    #[test]
    fn callers_from_any_threads_take_turns() {
        let expected: Vec<u64> = (0..8).map(|seed| team(1).run(|crew| chain(crew, seed))).collect();
        let team = team(2);
        // From rayon's global pool, whose workers would steal each other's callers if one waited inside rayon.
        for _ in 0..20 {
            let found: Vec<u64> = (0..8u64).into_par_iter().map(|s| team.run(|crew| chain(crew, s))).collect();
            assert_eq!(found, expected);
        }
        std::thread::scope(|scope| {
            let run = |seed: u64| (0..20).map(|_| team.run(|crew| chain(crew, seed))).collect::<Vec<_>>();
            let callers: Vec<_> = (0..4u64).map(|seed| scope.spawn(move || run(seed))).collect();
            for (caller, expected) in callers.into_iter().zip(&expected) {
                assert_eq!(caller.join().expect("a caller"), vec![*expected; 20]);
            }
        });
    }

    #[test]
    fn more_workers_than_cores_and_long_pauses_are_only_slow() {
        let crowded = team(16);
        let expected = team(1).run(|crew| chain(crew, 3));
        assert_eq!(crowded.run(|crew| chain(crew, 3)), expected);
        let after_pause = crowded.run(|crew| {
            // Longer than helpers spin and yield, so that they are parked when the next operation comes.
            std::thread::sleep(std::time::Duration::from_millis(5));
            chain(crew, 3)
        });
        assert_eq!(after_pause, expected);
    }

    fn panic_text(payload: Box<dyn Any + Send>) -> String {
        payload.downcast_ref::<&str>().map_or_else(|| "not a text".to_owned(), |text| (*text).to_owned())
    }

    #[test]
    fn a_panic_reaches_its_caller_and_leaves_the_team_usable() {
        for threads in [1, 2, 5] {
            let team = team(threads);
            let in_pass = catch_unwind(AssertUnwindSafe(|| team.run(|_| -> u64 { panic!("in the pass") })));
            assert_eq!(in_pass.map_err(panic_text), Err("in the pass".to_owned()));
            for culprit in [0, 50, 99] {
                let task = |i: usize| assert!(i != culprit, "in a task");
                let in_task = catch_unwind(AssertUnwindSafe(|| team.run(|crew| crew.for_each(100, task))));
                assert_eq!(in_task.map_err(panic_text), Err("in a task".to_owned()), "{threads} threads");
            }
            assert_eq!(team.run(|crew| chain(crew, 9)), Team::run(&self::team(1), |crew| chain(crew, 9)));
        }
    }

    #[test]
    fn a_pass_that_starts_a_pass_of_its_own_team_is_told_so() {
        for threads in [1, 2] {
            let team = team(threads);
            let nested = catch_unwind(AssertUnwindSafe(|| team.run(|_| team.run(|_| ()))));
            assert!(nested.is_err(), "{threads} threads");
            let in_task = catch_unwind(AssertUnwindSafe(|| team.run(|crew| crew.for_each(8, |_| team.run(|_| ())))));
            assert!(in_task.is_err(), "{threads} threads, from a task");
            assert_eq!(team.run(|_| 7), 7);
        }
    }

    #[test]
    fn a_team_is_shared_between_threads() {
        fn shared<T: Send + Sync>(_: &T) {}
        shared(&team(2));
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        for threads in [0, 1 << 20] {
            let refused = Team::new(threads, Isa::best()).map(|team| team.threads());
            assert!(matches!(refused, Err(KernelError::Threads { .. })), "{threads} threads: {refused:?}");
        }
    }
}
