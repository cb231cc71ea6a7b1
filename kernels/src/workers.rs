//! The threads that a backend lends to its kernels. Work is cut by named constants, never by the number of threads,
//! so that results do not depend on it.

use rayon::prelude::*;

/// A pool of a fixed number of threads, owned by one backend.
pub struct Workers {
    pool: rayon::ThreadPool,
}

impl Workers {
    /// Starts `threads` threads (at least one).
    ///
    /// # Errors
    /// The operating system refuses.
    pub fn new(threads: usize) -> Result<Self, rayon::ThreadPoolBuildError> {
        let name = |index| format!("motley-cpu-{index}");
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.max(1)).thread_name(name).build()?;
        Ok(Workers { pool })
    }

    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// Runs `work` on one of the threads; calls from within start at once.
    pub fn enter<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.install(work)
    }

    /// Runs `work(0..tasks)` in any order, on all threads.
    pub fn each(&self, tasks: usize, work: impl Fn(usize) + Sync) {
        match tasks {
            0 => {}
            1 => work(0),
            _ => self.pool.install(|| (0..tasks).into_par_iter().with_max_len(1).for_each(&work)),
        }
    }

    /// Cuts `data` into pieces of `length` and runs `work(index, piece)` on all threads.
    pub fn pieces<T: Send>(&self, data: &mut [T], length: usize, work: impl Fn(usize, &mut [T]) + Sync) {
        if data.len() <= length {
            if !data.is_empty() {
                work(0, data);
            }
            return;
        }
        self.pool.install(|| {
            data.par_chunks_mut(length).enumerate().for_each(|(index, piece)| work(index, piece))
        });
    }

    /// Like [`Workers::pieces`] for two arrays cut in step.
    pub fn pieces_of_two<T: Send, U: Send>(
        &self,
        (first, first_length): (&mut [T], usize),
        (second, second_length): (&mut [U], usize),
        work: impl Fn(usize, &mut [T], &mut [U]) + Sync,
    ) {
        let pairs = first.par_chunks_mut(first_length).zip(second.par_chunks_mut(second_length));
        self.pool.install(|| pairs.enumerate().for_each(|(index, (a, b))| work(index, a, b)));
    }
}
