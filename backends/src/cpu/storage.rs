//! Memory of the CPU: cache-line aligned, counted, kept for reuse when freed, and claimed by each call, so that two
//! threads never use one buffer at odds.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicIsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use motley_kernels::Slice;

use crate::buffer::{Buffer, View};
use crate::memory::{Category, Ledger};
use crate::{Error, Result};

/// One cache line, and one vector register at its widest.
#[repr(C, align(64))]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Line([u8; 64]);

/// Freed memory kept for reuse: about what the activations of one training step of a small encoder need.
const CACHED_BYTES_MAX: u64 = 1 << 30;

/// Freed blocks by their number of lines.
type Free = BTreeMap<usize, Vec<Box<[Line]>>>;

/// Freed memory of this device, and the count of all memory.
pub(super) struct Shelf {
    pub ledger: Ledger,
    free: Mutex<Free>,
}

impl Shelf {
    pub fn new(ledger: Ledger) -> Self {
        Shelf { ledger, free: Mutex::default() }
    }

    /// Counts `bytes` that lie elsewhere, and makes room for them.
    pub fn take(&self, bytes: u64, category: Category) -> Result<()> {
        self.ledger.take(bytes, category)?;
        self.make_room(&mut self.free(), 0);
        Ok(())
    }

    /// Allocates a buffer; its contents are zeros, or anything if `stale` will do.
    pub fn buffer(self: &Arc<Self>, bytes: usize, category: Category, stale: bool) -> Result<Buffer> {
        self.ledger.take(bytes as u64, category)?;
        let wanted = bytes.div_ceil(size_of::<Line>());
        let reused = self.reuse(wanted);
        // Before the system is asked: what is live and what is kept never pass the limit together.
        self.make_room(&mut self.free(), 0);
        let lines = match reused {
            Some(mut lines) => {
                if !stale {
                    lines[..wanted].fill(Line([0; 64]));
                }
                lines
            }
            None => bytemuck::allocation::zeroed_slice_box(wanted),
        };
        let count = lines.len();
        let start = Box::into_raw(lines).cast::<u8>();
        let storage =
            Storage { start, count, bytes, category, users: AtomicIsize::new(0), shelf: self.clone() };
        Ok(Buffer::new(bytes, Arc::new(storage)))
    }

    /// The smallest freed block that is large enough and at most a quarter too large.
    fn reuse(&self, wanted: usize) -> Option<Box<[Line]>> {
        let mut free = self.free();
        let (&count, _) = free.range(wanted..=wanted + wanted / 4).next()?;
        self.remove(&mut free, count)
    }

    fn keep(&self, lines: Box<[Line]>) {
        let bytes = size_of_val(&*lines) as u64;
        let mut free = self.free();
        if self.make_room(&mut free, bytes) {
            self.ledger.report().cached += bytes;
            free.entry(lines.len()).or_default().push(lines);
        }
    }

    /// Gives freed blocks back to the system, the largest first, until `bytes` more may be kept; false if they may
    /// not even when nothing else is.
    fn make_room(&self, free: &mut Free, bytes: u64) -> bool {
        loop {
            let (live, cached) = {
                let report = self.ledger.report();
                (report.live, report.cached)
            };
            let most = self.ledger.limit().map_or(u64::MAX, |limit| limit.saturating_sub(live));
            if cached + bytes <= most.min(CACHED_BYTES_MAX) {
                return true;
            }
            let Some(largest) = free.last_key_value().map(|(count, _)| *count) else { return false };
            self.remove(free, largest);
        }
    }

    /// A freed block of exactly `count` lines.
    fn remove(&self, free: &mut Free, count: usize) -> Option<Box<[Line]>> {
        let blocks = free.get_mut(&count)?;
        let block = blocks.pop();
        if blocks.is_empty() {
            free.remove(&count);
        }
        self.ledger.report().cached -= (count * size_of::<Line>()) as u64;
        block
    }

    fn free(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Memory of one buffer.
pub(super) struct Storage {
    start: *mut u8,
    /// Lines behind `start`.
    count: usize,
    bytes: usize,
    category: Category,
    /// Readers if positive, −1 for a writer.
    users: AtomicIsize,
    shelf: Arc<Shelf>,
}

// SAFETY: the memory is reached only through a `Claim`, which admits one writer or several readers.
unsafe impl Send for Storage {}
// SAFETY: as above.
unsafe impl Sync for Storage {}

impl Storage {
    fn take(&self, writes: bool) -> bool {
        let next = |users: isize| match (writes, users) {
            (true, 0) => Some(-1),
            (false, 0..) => Some(users + 1),
            _ => None,
        };
        self.users.fetch_update(Ordering::Acquire, Ordering::Relaxed, next).is_ok()
    }

    fn release(&self, writes: bool) {
        self.users.fetch_add(if writes { 1 } else { -1 }, Ordering::Release);
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        let lines = std::ptr::slice_from_raw_parts_mut(self.start.cast::<Line>(), self.count);
        // SAFETY: `start` and `count` are those of the box that `Shelf::buffer` took apart, and nobody has them now.
        let lines = unsafe { Box::from_raw(lines) };
        self.shelf.ledger.give_back(self.bytes as u64, self.category);
        self.shelf.keep(lines);
    }
}

/// The right of one call to use its buffers.
pub(super) struct Claim<'a> {
    views: Vec<(View<'a>, bool)>,
    /// Each storage once, with whether it is written.
    held: Vec<(&'a Storage, bool)>,
}

impl<'a> Claim<'a> {
    /// Claims views, each to be read or (true) written.
    ///
    /// # Errors
    /// Foreign buffers, written parts that overlap others, or another thread's call in the way.
    pub fn new(what: &'static str, views: Vec<(View<'a>, bool)>) -> Result<Self> {
        let mut wanted: Vec<(&'a Storage, bool)> = Vec::with_capacity(views.len());
        for (i, (view, writes)) in views.iter().enumerate() {
            let storage = view.buffer.memory::<Storage>().ok_or(Error::Foreign { what })?;
            view.check(what)?;
            for (other, other_writes) in &views[..i] {
                let same = other.buffer.memory().is_some_and(|s| std::ptr::eq::<Storage>(s, storage));
                let apart =
                    other.offset + other.bytes <= view.offset || view.offset + view.bytes <= other.offset;
                if same && !apart && (*writes || *other_writes) {
                    return Err(Error::Overlap { what });
                }
            }
            match wanted.iter_mut().find(|(known, _)| std::ptr::eq(*known, storage)) {
                Some((_, known)) => *known |= writes,
                None => wanted.push((storage, *writes)),
            }
        }
        let mut claim = Claim { views, held: Vec::with_capacity(wanted.len()) };
        for (storage, writes) in wanted {
            if !storage.take(writes) {
                return Err(Error::Busy { what });
            }
            claim.held.push((storage, writes));
        }
        Ok(claim)
    }

    /// The memory of each view, in order. Taken once.
    pub fn slices(&mut self) -> Vec<Slice<'_>> {
        let views = std::mem::take(&mut self.views);
        let slice = |(view, writes): (View<'a>, bool)| {
            let storage = view.buffer.memory::<Storage>().expect("checked when it was claimed");
            // SAFETY: `check` proved the range to lie inside the storage, whose memory is initialised and lives as
            // long as the claim; other calls are kept out by `users`, and within this one written ranges are disjoint
            // from all others. The views are taken away, so this happens once.
            unsafe {
                let start = storage.start.add(view.offset);
                if writes {
                    Slice::Write(std::slice::from_raw_parts_mut(start, view.bytes))
                } else {
                    Slice::Read(std::slice::from_raw_parts(start, view.bytes))
                }
            }
        };
        views.into_iter().map(slice).collect()
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        for (storage, writes) in &self.held {
            storage.release(*writes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shelf() -> Arc<Shelf> {
        Arc::new(Shelf::new(Ledger::new("cpu:0", None)))
    }

    #[test]
    fn freed_memory_is_used_again_and_is_zero_unless_stale_will_do() {
        let shelf = shelf();
        let buffer = shelf.buffer(1000, Category::Activations, false).unwrap();
        {
            let mut claim = Claim::new("test", vec![(buffer.all(), true)]).unwrap();
            let Slice::Write(bytes) = claim.slices().remove(0) else { panic!("asked for writing") };
            bytes.fill(7);
        }
        drop(buffer);
        assert_eq!(shelf.ledger.report().cached, 1024);
        for (stale, wanted) in [(true, 7), (false, 0)] {
            let buffer = shelf.buffer(900, Category::Activations, stale).unwrap();
            assert_eq!(shelf.ledger.report().cached, 0);
            let mut claim = Claim::new("test", vec![(buffer.all(), false)]).unwrap();
            let Slice::Read(bytes) = claim.slices().remove(0) else { panic!("asked for reading") };
            assert!(bytes.len() == 900 && bytes.iter().all(|b| *b == wanted));
        }
    }

    #[test]
    fn live_and_kept_memory_stay_within_the_limit_together() {
        let shelf = Arc::new(Shelf::new(Ledger::new("cpu:0", Some(10 << 10))));
        let buffer = |kibibytes: usize| shelf.buffer(kibibytes << 10, Category::Activations, true).unwrap();
        let check = |live: u64, cached: u64| {
            let report = shelf.ledger.report().clone();
            assert_eq!((report.live, report.cached), (live << 10, cached << 10));
        };
        drop((buffer(4), buffer(3), buffer(2)));
        check(0, 9);
        // Nothing kept is large enough to be used again, and 5 + 9 would pass 10: the largest goes.
        let large = buffer(5);
        check(5, 5);
        let weights = 3 << 10;
        shelf.take(weights, Category::Weights).unwrap();
        check(8, 2);
        drop(large);
        check(3, 7);
        // Where the limit is used up, nothing is kept.
        let last = buffer(1);
        shelf.take(6 << 10, Category::Weights).unwrap();
        check(10, 0);
        drop(last);
        check(9, 1);
    }

    #[test]
    fn calls_at_odds_are_refused() {
        let shelf = shelf();
        let buffer = shelf.buffer(64, Category::Workspace, false).unwrap();
        let claim = |views| Claim::new("test", views);
        assert!(claim(vec![(buffer.all(), false), (buffer.all(), false)]).is_ok());
        assert!(claim(vec![(buffer.part(0, 32), false), (buffer.part(32, 32), true)]).is_ok());
        let overlapping = claim(vec![(buffer.part(0, 36), false), (buffer.part(32, 32), true)]);
        assert!(matches!(overlapping, Err(Error::Overlap { .. })));
        assert!(matches!(claim(vec![(buffer.part(60, 8), false)]), Err(Error::OutOfBounds { .. })));
        assert!(matches!(claim(vec![(buffer.at(2), false)]), Err(Error::Misaligned { .. })));
        let first = claim(vec![(buffer.all(), false)]).unwrap();
        assert!(claim(vec![(buffer.all(), false)]).is_ok());
        assert!(matches!(claim(vec![(buffer.all(), true)]), Err(Error::Busy { .. })));
        drop(first);
        assert!(claim(vec![(buffer.all(), true)]).is_ok());
    }
}
