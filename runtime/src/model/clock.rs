//! Where the time of forward passes goes, by operation. The clock is always there and off unless asked for: then it
//! costs one load of a flag per operation.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The operations of a forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Tokens to vectors.
    Embed,
    /// Norm, query, key and value, rotation, append to the cache.
    AttentionInput,
    /// Scores, softmax and the sum of values.
    Attend,
    /// Output projection and residual.
    AttentionOutput,
    /// Norm, gate and up, activation.
    MlpInput,
    /// Down projection and residual.
    MlpOutput,
    /// Norm and router.
    Route,
    /// The experts of a mixture.
    Experts,
    /// Final norm and output head.
    Head,
    /// What is left of a pass: the tables of its batch, room in the cache, waking the threads, looking at the logits.
    Rest,
}

impl Operation {
    /// All of them, in the order of a pass.
    pub const ALL: [Operation; 10] = [
        Operation::Embed,
        Operation::AttentionInput,
        Operation::Attend,
        Operation::AttentionOutput,
        Operation::MlpInput,
        Operation::MlpOutput,
        Operation::Route,
        Operation::Experts,
        Operation::Head,
        Operation::Rest,
    ];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Embed => "embed",
            Operation::AttentionInput => "attention_input",
            Operation::Attend => "attend",
            Operation::AttentionOutput => "attention_output",
            Operation::MlpInput => "mlp_input",
            Operation::MlpOutput => "mlp_output",
            Operation::Route => "route",
            Operation::Experts => "experts",
            Operation::Head => "head",
            Operation::Rest => "rest",
        }
    }
}

/// Time spent in each operation that took any.
pub type Profile = Vec<(Operation, Duration)>;

/// Adds up the time of operations while it is on.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    on: AtomicBool,
    nanoseconds: [AtomicU64; Operation::ALL.len()],
}

impl Clock {
    /// Starts from zero.
    pub fn start(&self) {
        self.nanoseconds.iter().for_each(|time| time.store(0, Ordering::Relaxed));
        self.on.store(true, Ordering::Relaxed);
    }

    /// Stops, and says what has come together.
    pub fn stop(&self) -> Profile {
        self.on.store(false, Ordering::Relaxed);
        let times = Operation::ALL.into_iter().zip(&self.nanoseconds);
        let times = times.map(|(operation, time)| (operation, Duration::from_nanos(time.load(Ordering::Relaxed))));
        times.filter(|(_, time)| !time.is_zero()).collect()
    }

    /// Runs an operation.
    pub fn time(&self, operation: Operation, run: impl FnOnce()) {
        if !self.on.load(Ordering::Relaxed) {
            return run();
        }
        let start = Instant::now();
        run();
        self.add(operation, nanoseconds(start));
    }

    /// Runs a whole pass: what its operations do not take goes to [`Operation::Rest`]. Passes of several callers at
    /// once wait for each other, and waiting counts.
    pub fn time_pass<R>(&self, run: impl FnOnce() -> R) -> R {
        if !self.on.load(Ordering::Relaxed) {
            return run();
        }
        let sum = || self.nanoseconds.iter().map(|time| time.load(Ordering::Relaxed)).sum::<u64>();
        let (before, start) = (sum(), Instant::now());
        let result = run();
        let in_operations = sum().saturating_sub(before);
        self.add(Operation::Rest, nanoseconds(start).saturating_sub(in_operations));
        result
    }

    fn add(&self, operation: Operation, nanoseconds: u64) {
        if let Some(time) = self.nanoseconds.get(operation as usize) {
            time.fetch_add(nanoseconds, Ordering::Relaxed);
        }
    }
}

fn nanoseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_counts_only_while_it_is_on() {
        let clock = Clock::default();
        let work = || clock.time(Operation::Head, || std::thread::sleep(Duration::from_millis(2)));
        work();
        clock.start();
        assert!(clock.stop().is_empty(), "nothing ran while the clock was on");
        clock.start();
        work();
        let profile = clock.stop();
        assert_eq!(profile.iter().map(|(operation, _)| *operation).collect::<Vec<_>>(), [Operation::Head]);
        assert!(profile.iter().all(|(_, time)| *time >= Duration::from_millis(2)), "{profile:?}");
    }

    #[test]
    fn what_operations_leave_of_a_pass_is_the_rest() {
        let clock = Clock::default();
        let wait = |milliseconds| std::thread::sleep(Duration::from_millis(milliseconds));
        clock.start();
        let result = clock.time_pass(|| {
            clock.time(Operation::Embed, || wait(20));
            wait(2);
            7
        });
        let profile = clock.stop();
        let [(Operation::Embed, embed), (Operation::Rest, rest)] = profile[..] else { panic!("{profile:?}") };
        assert!(result == 7 && embed >= Duration::from_millis(20) && rest >= Duration::from_millis(2), "{profile:?}");
    }
}
