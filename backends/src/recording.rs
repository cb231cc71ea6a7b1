//! Work that a device remembers: asked once, and asked again by one call. A serving pass of a small model is a hundred
//! launches, each of which costs the processor more than the device.
//!
//! ```text
//! record   work runs on the calling thread; the device notes what it is asked, and computes nothing
//!          memory that the work allocates comes from a pool that all recordings of the device share
//! replay   the device computes what it noted, with the same addresses
//! ```
//!
//! Pooled memory goes back to the pool, not to the device, while a recording lives: replays come one after another, and
//! none looks at what another left there. What shall outlive a replay is a buffer that its maker keeps.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::ThreadId;

use crate::Result;

/// Remembered work of one device. It reads and writes the buffers that the work was given, which must live as long.
#[derive(Clone)]
pub struct Recording {
    inner: Arc<dyn Any + Send + Sync>,
}

impl Recording {
    pub(crate) fn new(inner: Arc<dyn Any + Send + Sync>) -> Self {
        Recording { inner }
    }

    pub(crate) fn inner<R: 'static>(&self) -> Result<&R> {
        self.inner.downcast_ref().ok_or(crate::Error::Foreign { what: "recording" })
    }
}

/// Blocks of memory that recordings share, by size.
pub(crate) struct Pool<T> {
    free: Mutex<BTreeMap<usize, Vec<T>>>,
}

/// A block of a pool, until it is dropped.
pub(crate) struct Lent<T> {
    size: usize,
    /// There until this is dropped.
    block: Option<T>,
    pool: Arc<Pool<T>>,
}

impl<T> Lent<T> {
    pub fn block(&self) -> &T {
        self.block.as_ref().expect("it is there until this is dropped")
    }
}

impl<T> Drop for Lent<T> {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            self.pool.free().entry(self.size).or_default().push(block);
        }
    }
}

impl<T> Pool<T> {
    fn free(&self) -> MutexGuard<'_, BTreeMap<usize, Vec<T>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The smallest free block that holds `bytes`, or one made of so many.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn lend(self: &Arc<Self>, bytes: usize, make: impl FnOnce() -> Result<T>) -> Result<Lent<T>> {
        let found = self.free().range_mut(bytes..).find_map(|(size, blocks)| Some((*size, blocks.pop()?)));
        let (size, block) = match found {
            Some(found) => found,
            None => (bytes, make()?),
        };
        Ok(Lent { size, block: Some(block), pool: self.clone() })
    }
}

/// From the begin of a recording to its end, which is when this is dropped.
pub(crate) struct Session<'a, T> {
    recorder: &'a Recorder<T>,
    pub pool: Arc<Pool<T>>,
}

impl<T> Drop for Session<'_, T> {
    fn drop(&mut self) {
        self.recorder.state().recording = None;
    }
}

/// Which thread records, and the pool of all recordings that live.
pub(crate) struct Recorder<T> {
    state: Mutex<State<T>>,
}

struct State<T> {
    recording: Option<(ThreadId, Arc<Pool<T>>)>,
    pool: Weak<Pool<T>>,
}

impl<T> Default for Recorder<T> {
    fn default() -> Self {
        Recorder { state: Mutex::new(State { recording: None, pool: Weak::new() }) }
    }
}

impl<T> Recorder<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on this thread records. Nothing if a thread does already.
    pub fn begin(&self) -> Option<Session<'_, T>> {
        let mut state = self.state();
        if state.recording.is_some() {
            return None;
        }
        let pool = state.pool.upgrade().unwrap_or_else(|| Arc::new(Pool { free: Mutex::default() }));
        state.pool = Arc::downgrade(&pool);
        state.recording = Some((std::thread::current().id(), pool.clone()));
        Some(Session { recorder: self, pool })
    }

    /// Where this thread's memory comes from while it records.
    pub fn pool(&self) -> Option<Arc<Pool<T>>> {
        let state = self.state();
        let (thread, pool) = state.recording.as_ref()?;
        (*thread == std::thread::current().id()).then(|| pool.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_lent_again_until_the_last_recording_is_gone() {
        let recorder = Recorder::<usize>::default();
        assert!(recorder.pool().is_none());
        let session = recorder.begin().unwrap();
        assert!(recorder.begin().is_none());
        let block = |bytes| recorder.pool().unwrap().lend(bytes, || Ok(bytes)).unwrap();
        let (large, small) = (block(100), block(10));
        drop((large, small));
        // The smallest that is large enough, whatever is asked.
        let (a, b) = (block(8), block(11));
        assert_eq!((a.block(), b.block()), (&10, &100));
        assert_eq!(block(12).block(), &12);
        std::thread::scope(|scope| {
            scope.spawn(|| assert!(recorder.pool().is_none())).join().unwrap();
        });
        let pool = session.pool.clone();
        drop((session, a, b));
        assert!(recorder.pool().is_none());
        assert!(Arc::ptr_eq(&recorder.begin().unwrap().pool, &pool));
        drop(pool);
        assert_eq!(recorder.begin().unwrap().pool.lend(5, || Ok(5)).unwrap().block(), &5);
    }
}
