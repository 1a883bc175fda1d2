//! What the machine can do at most, measured between the runs of a model, with the threads and the instructions that
//! the model uses.

use std::time::{Duration, Instant};

use anyhow::Result;
use infer_kernels::cpu::probe::{self, Operation};
use infer_kernels::{Isa, Team};
use infer_runtime::Error;
use memmap2::MmapMut;

/// Bytes that are read: more than any cache holds.
const READ_BYTES: usize = 1 << 30;
/// How long a measurement of arithmetic takes at least.
const PEAK_TIME: Duration = Duration::from_millis(20);

/// The threads that measure, and the memory that they read.
pub struct Limits {
    team: Team,
    data: MmapMut,
    /// Tasks of a measurement of arithmetic.
    tasks: usize,
}

impl Limits {
    /// Takes the memory, in large pages where the system has some: they are read as fast as the pages of a mapped
    /// file, which weights are in, and small pages of memory are not.
    pub fn new(isa: Isa) -> Result<Limits> {
        let mut data = MmapMut::map_anon(READ_BYTES)
            .map_err(|error| Error::Memory(format!("measuring takes {READ_BYTES} bytes of memory: {error}")))?;
        #[cfg(target_os = "linux")]
        // Advice that is not taken gives small pages.
        let _ = data.advise(memmap2::Advice::HugePage);
        // Pages that were never written would all be the same page of zeros.
        data.fill(1);
        Ok(Limits { team: Team::new(1, isa)?, data, tasks: 1 })
    }

    /// Measures with so many threads from now on.
    pub fn set_threads(&mut self, threads: usize) -> Result<()> {
        self.team = Team::new(threads, self.team.isa())?;
        self.tasks = 1;
        Ok(())
    }

    /// Bytes read per second, each thread its own contiguous range.
    pub fn read_bandwidth(&self) -> f64 {
        let start = Instant::now();
        std::hint::black_box(self.team.run(|crew| probe::read(crew, &self.data)));
        self.data.len() as f64 / start.elapsed().as_secs_f64()
    }

    /// Operations per second from and to registers. Falls back to f32 where the instructions in use have no others.
    pub fn peak(&mut self, operation: Operation) -> f64 {
        loop {
            let start = Instant::now();
            let done = self.team.run(|crew| probe::multiply(crew, operation, self.tasks));
            let elapsed = start.elapsed();
            if done == 0 && operation != Operation::F32 {
                return self.peak(Operation::F32);
            }
            if elapsed >= PEAK_TIME || done == 0 {
                return done as f64 / elapsed.as_secs_f64();
            }
            self.tasks *= 2;
        }
    }
}
