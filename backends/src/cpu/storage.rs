//! Host memory for buffers: aligned, counted, and kept for reuse when given back.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use crate::memory::Ledger;
use crate::{Category, Error};

/// A cache line; also the width of the widest vector register.
const ALIGNMENT: usize = 64;
/// Free memory kept for reuse; training steps ask for the same sizes again and again.
const FREE_BYTES_MAX: usize = 1 << 30;
/// Sizes are rounded up to this, so that batches of nearly the same size reuse each other's buffers.
const GRANULE: usize = 4096;

/// Given-back memory, by size.
pub(super) struct Store {
    ledger: Arc<Ledger>,
    free: Mutex<Free>,
}

#[derive(Default)]
struct Free {
    blocks: BTreeMap<usize, Vec<Block>>,
    bytes: usize,
}

/// Memory from the allocator.
struct Block {
    start: NonNull<u8>,
    capacity: usize,
}

// SAFETY: a block is plain memory; it is owned by one holder at a time.
unsafe impl Send for Block {}
// SAFETY: shared access goes through `Storage`, whose users hold the backend's queue.
unsafe impl Sync for Block {}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated in `Block::new` with this layout.
        unsafe { dealloc(self.start.as_ptr(), layout(self.capacity)) }
    }
}

impl Block {
    fn new(capacity: usize) -> Option<Self> {
        // SAFETY: `layout` never has size zero.
        let start = NonNull::new(unsafe { alloc(layout(capacity)) })?;
        // Contents are unspecified, but must be initialised; a NaN shows where they are used.
        // SAFETY: freshly allocated, `capacity` bytes.
        unsafe { start.as_ptr().write_bytes(0xff, capacity) };
        Some(Block { start, capacity })
    }
}

fn layout(capacity: usize) -> Layout {
    Layout::from_size_align(capacity.max(GRANULE), ALIGNMENT).expect("capacities are below isize::MAX")
}

/// Memory behind one buffer.
pub(super) struct Storage {
    block: Option<Block>,
    category: Category,
    store: Arc<Store>,
}

impl Store {
    pub(super) fn new(ledger: Arc<Ledger>) -> Self {
        Store { ledger, free: Mutex::default() }
    }

    pub(super) fn take(self: &Arc<Self>, bytes: usize, category: Category) -> Result<Storage, Error> {
        let refused = || Error::OutOfMemory { requested: bytes as u64, free: 0, category: category.name() };
        if bytes > isize::MAX as usize / 2 {
            return Err(refused());
        }
        let capacity = bytes.max(1).next_multiple_of(GRANULE);
        self.ledger.take(capacity as u64, category)?;
        let block = match self.reuse(capacity) {
            Some(block) => Some(block),
            None => Block::new(capacity),
        };
        if block.is_none() {
            self.ledger.give(capacity as u64, category);
            return Err(refused());
        }
        Ok(Storage { block, category, store: self.clone() })
    }

    fn reuse(&self, capacity: usize) -> Option<Block> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let block = free.blocks.get_mut(&capacity)?.pop()?;
        free.bytes -= capacity;
        Some(block)
    }

    fn keep(&self, block: Block) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.bytes + block.capacity > FREE_BYTES_MAX {
            // What was kept was of other sizes than what is asked for now.
            *free = Free::default();
        }
        if block.capacity <= FREE_BYTES_MAX {
            free.bytes += block.capacity;
            free.blocks.entry(block.capacity).or_default().push(block);
        }
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        if let Some(block) = self.block.take() {
            self.store.ledger.give(block.capacity as u64, self.category);
            self.store.keep(block);
        }
    }
}

impl Storage {
    fn start(&self) -> *mut u8 {
        self.block.as_ref().expect("only drop takes the block").start.as_ptr()
    }

    /// # Safety
    /// In bounds, and not written while the slice lives.
    pub(super) unsafe fn slice(&self, offset: usize, bytes: usize) -> &[u8] {
        // SAFETY: by the caller's promise; memory is initialised when allocated.
        unsafe { std::slice::from_raw_parts(self.start().add(offset), bytes) }
    }

    /// # Safety
    /// In bounds, and no other slice of it lives.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn slice_mut(&self, offset: usize, bytes: usize) -> &mut [u8] {
        // SAFETY: by the caller's promise; memory is initialised when allocated.
        unsafe { std::slice::from_raw_parts_mut(self.start().add(offset), bytes) }
    }
}
