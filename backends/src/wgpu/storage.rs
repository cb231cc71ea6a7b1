//! Memory of a device: counted against a budget, kept for reuse when freed. The queue works in order, so freed memory
//! may be given out again at once: whatever used it before was recorded before.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wgpu::BufferUsages;

use super::gpu::Gpu;
use super::recorder::Recorder;
use crate::buffer::Buffer;
use crate::memory::{Category, Ledger};
use crate::{Error, Result};

/// Every buffer is a multiple of this: the largest alignment that WebGPU asks of offsets.
const GRANULE: u64 = 256;

/// Freed memory kept for reuse: about what the activations of one training step of a small encoder need.
const CACHED_BYTES_MAX: u64 = 1 << 30;

const USAGES: BufferUsages =
    BufferUsages::STORAGE.union(BufferUsages::COPY_SRC).union(BufferUsages::COPY_DST);

/// Freed buffers by their size.
type Free = BTreeMap<u64, Vec<wgpu::Buffer>>;

pub(super) struct Shelf {
    pub ledger: Ledger,
    gpu: Arc<Gpu>,
    recorder: Arc<Recorder>,
    free: Mutex<Free>,
}

/// Memory of one buffer.
pub(super) struct Storage {
    pub buffer: wgpu::Buffer,
    bytes: u64,
    category: Category,
    shelf: Arc<Shelf>,
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.shelf.ledger.give_back(self.bytes, self.category);
        self.shelf.keep(self.buffer.clone());
    }
}

impl Shelf {
    pub fn new(gpu: Arc<Gpu>, recorder: Arc<Recorder>, limit: Option<u64>) -> Self {
        let ledger = Ledger::new(&gpu.name, limit);
        Shelf { ledger, gpu, recorder, free: Mutex::default() }
    }

    /// Contents are zeros, or anything if `stale` will do.
    pub fn buffer(self: &Arc<Self>, bytes: usize, category: Category, stale: bool) -> Result<Buffer> {
        let size = (bytes as u64).next_multiple_of(GRANULE).max(GRANULE);
        let limit = self.gpu.limits.max_buffer_size;
        if size > limit {
            let device = self.gpu.name.clone();
            return Err(Error::BindingTooLarge { device, what: "a buffer", bytes: bytes as u64, limit });
        }
        self.ledger.take(bytes as u64, category)?;
        let buffer = self
            .find(size, stale)
            .and_then(|found| found.ok_or_else(|| self.out_of_memory(bytes as u64, category)));
        let buffer = buffer.inspect_err(|_| self.ledger.give_back(bytes as u64, category))?;
        let storage = Storage { buffer, bytes: bytes as u64, category, shelf: self.clone() };
        Ok(Buffer::new(bytes, Arc::new(storage)))
    }

    /// A small buffer of the backend's own, which is in no plan and not counted. Contents are anything.
    pub fn own(self: &Arc<Self>, bytes: usize) -> Result<Buffer> {
        let category = Category::Workspace;
        let found = self.find((bytes as u64).next_multiple_of(GRANULE), true)?;
        let buffer = found.ok_or_else(|| self.out_of_memory(bytes as u64, category))?;
        Ok(Buffer::new(bytes, Arc::new(Storage { buffer, bytes: 0, category, shelf: self.clone() })))
    }

    /// As the driver says, which tells no number: none of this size is free.
    fn out_of_memory(&self, requested: u64, category: Category) -> Error {
        let (device, category) = (self.gpu.name.clone(), category.name());
        Error::OutOfMemory { device, category, requested, free: 0 }
    }

    /// A freed buffer or a new one; nothing where the driver has no more memory.
    fn find(&self, size: u64, stale: bool) -> Result<Option<wgpu::Buffer>> {
        if let Some(buffer) = self.reuse(size) {
            if !stale {
                self.recorder.clear(&buffer)?;
            }
            return Ok(Some(buffer));
        }
        // Before the driver is asked: what is live and what is kept never pass the limit together.
        self.make_room(&mut self.free(), 0);
        // wgpu fills what is new with zeros.
        let buffer = self.gpu.create_buffer(size, USAGES)?;
        if buffer.is_some() {
            return Ok(buffer);
        }
        let kept = std::mem::take(&mut *self.free());
        self.ledger.report().cached = 0;
        drop(kept);
        // Memory comes back when nothing that was submitted uses it.
        self.recorder.flush()?;
        self.gpu.wait("allocate")?;
        self.gpu.create_buffer(size, USAGES)
    }

    /// The smallest freed buffer that is large enough and at most a quarter too large.
    fn reuse(&self, size: u64) -> Option<wgpu::Buffer> {
        let mut free = self.free();
        let (&found, _) = free.range(size..=size + size / 4).next()?;
        self.remove(&mut free, found)
    }

    fn keep(&self, buffer: wgpu::Buffer) {
        let size = buffer.size();
        let mut free = self.free();
        if self.make_room(&mut free, size) {
            self.ledger.report().cached += size;
            free.entry(size).or_default().push(buffer);
        }
    }

    /// Gives freed buffers back to the driver, the largest first, until `bytes` more may be kept; false if they may
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
            let Some(largest) = free.last_key_value().map(|(size, _)| *size) else { return false };
            self.remove(free, largest);
        }
    }

    /// A freed buffer of exactly that size.
    fn remove(&self, free: &mut Free, size: u64) -> Option<wgpu::Buffer> {
        let buffers = free.get_mut(&size)?;
        let buffer = buffers.pop();
        if buffers.is_empty() {
            free.remove(&size);
        }
        self.ledger.report().cached -= size;
        buffer
    }

    fn free(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
