//! Memory of a CUDA device: counted, and given back in the order of the stream.

use std::any::Any;
use std::sync::Arc;

use super::driver::Driver;
use crate::buffer::{Buffer, View};
use crate::memory::{Category, Ledger};
use crate::recording::Recorder;
use crate::{Error, Result};

/// A driver with the count of its memory.
pub(super) struct Memory {
    pub driver: Box<dyn Driver>,
    pub ledger: Ledger,
    pub device: String,
    pub recorder: Recorder<Block>,
}

/// Memory of a buffer.
pub(super) struct Storage {
    pub address: u64,
    bytes: usize,
    /// Gives it back: a block, or one that recordings lend.
    _held: Box<dyn Any + Send + Sync>,
}

/// Memory that goes back to the device when it is dropped.
pub(super) struct Block {
    address: u64,
    bytes: usize,
    category: Category,
    memory: Arc<Memory>,
}

impl Memory {
    pub fn allocate(self: &Arc<Self>, bytes: usize, category: Category) -> Result<Storage> {
        let (address, held): (u64, Box<dyn Any + Send + Sync>) = match self.recorder.pool() {
            None => {
                let block = self.block(bytes, category)?;
                (block.address, Box::new(block))
            }
            Some(pool) => {
                let lent = pool.lend(bytes, || self.block(bytes, category))?;
                (lent.block().address, Box::new(lent))
            }
        };
        Ok(Storage { address, bytes, _held: held })
    }

    fn block(self: &Arc<Self>, bytes: usize, category: Category) -> Result<Block> {
        self.ledger.take(bytes as u64, category)?;
        match self.driver.allocate(bytes.max(1)) {
            Ok(Some(address)) => Ok(Block { address, bytes, category, memory: self.clone() }),
            refused => {
                self.ledger.give_back(bytes as u64, category);
                refused?;
                let (device, category) = (self.device.clone(), category.name());
                Err(Error::OutOfMemory { device, category, requested: bytes as u64, free: 0 })
            }
        }
    }

    pub fn buffer(self: &Arc<Self>, bytes: usize, category: Category) -> Result<Buffer> {
        Ok(Buffer::new(bytes, Arc::new(self.allocate(bytes, category)?)))
    }

    /// Memory that holds `bytes`.
    pub fn holding(self: &Arc<Self>, bytes: &[u8], category: Category) -> Result<Storage> {
        let storage = self.allocate(bytes.len(), category)?;
        self.driver.upload(bytes, storage.address)?;
        Ok(storage)
    }

    /// Host copy of the whole of `storage`.
    pub fn host(&self, storage: &Storage) -> Result<Vec<u8>> {
        let mut bytes = vec![0; storage.bytes];
        self.driver.download(storage.address, &mut bytes)?;
        Ok(bytes)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.memory.driver.free(self.address);
        self.memory.ledger.give_back(self.bytes as u64, self.category);
    }
}

/// Addresses of views, each to be read or (true) written.
///
/// # Errors
/// Foreign buffers, views outside of theirs, written parts that overlap others.
pub(super) fn addresses(what: &'static str, views: &[(View<'_>, bool)]) -> Result<Vec<u64>> {
    let mut found: Vec<(u64, u64, bool)> = Vec::with_capacity(views.len());
    for (view, writes) in views {
        let storage = view.buffer.memory::<Storage>().ok_or(Error::Foreign { what })?;
        view.check(what)?;
        let start = storage.address + view.offset as u64;
        let end = start + view.bytes as u64;
        if found.iter().any(|(s, e, w)| *s < end && start < *e && (*writes || *w)) {
            return Err(Error::Overlap { what });
        }
        found.push((start, end, *writes));
    }
    Ok(found.into_iter().map(|(start, _, _)| start).collect())
}
