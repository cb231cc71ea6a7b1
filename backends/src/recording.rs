//! Work that a device remembers: asked once, and asked again by one call. A serving pass of a small model is a hundred
//! launches, each of which costs the processor more than the device.
//!
//! ```text
//! record   work runs on the calling thread; the device notes what it is asked, and computes nothing
//!          memory that the work allocates comes from a pool, which is the recording's own or another's too
//! replay   the device computes what it noted, with the same addresses
//! ```
//!
//! Pooled memory goes back to the pool, not to the device, while a recording lives. Recordings that share a pool run
//! one at a time, and what one leaves there is read before another runs.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
        self.inner.downcast_ref().ok_or(FOREIGN)
    }

    pub(crate) fn inner_shared<R: Send + Sync + 'static>(&self) -> Result<Arc<R>> {
        self.inner.clone().downcast().map_err(|_| FOREIGN)
    }
}

const FOREIGN: crate::Error = crate::Error::Foreign { what: "recording" };

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
        *self.recorder.recording() = None;
    }
}

/// Which thread records, and where its memory comes from.
pub(crate) struct Recorder<T>(Mutex<Option<(ThreadId, Arc<Pool<T>>)>>);

impl<T> Default for Recorder<T> {
    fn default() -> Self {
        Recorder(Mutex::new(None))
    }
}

impl<T> Recorder<T> {
    fn recording(&self) -> MutexGuard<'_, Option<(ThreadId, Arc<Pool<T>>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on this thread records, in that memory or in memory of its own. Nothing if a thread does already.
    pub fn begin(&self, shared: Option<Arc<Pool<T>>>) -> Option<Session<'_, T>> {
        let mut recording = self.recording();
        if recording.is_some() {
            return None;
        }
        let pool = shared.unwrap_or_else(|| Arc::new(Pool { free: Mutex::default() }));
        *recording = Some((std::thread::current().id(), pool.clone()));
        Some(Session { recorder: self, pool })
    }

    /// Where this thread's memory comes from while it records.
    pub fn pool(&self) -> Option<Arc<Pool<T>>> {
        let recording = self.recording();
        let (thread, pool) = recording.as_ref()?;
        (*thread == std::thread::current().id()).then(|| pool.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_lent_again_to_recordings_that_share_them() {
        let recorder = Recorder::<usize>::default();
        assert!(recorder.pool().is_none());
        let session = recorder.begin(None).unwrap();
        assert!(recorder.begin(None).is_none());
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
        let shared = recorder.begin(Some(pool)).unwrap();
        assert_eq!(shared.pool.lend(50, || Ok(50)).unwrap().block(), &100);
        drop(shared);
        assert_eq!(recorder.begin(None).unwrap().pool.lend(5, || Ok(5)).unwrap().block(), &5);
    }
}
