//! What the CUDA backend asks of a device: memory, copies, launches and products on one in-order stream. Two things
//! answer: the NVIDIA driver (`device.rs`), and the emulation on the processor that tests use (`emulated.rs`).

use motley_kernels::Grid;

use super::product::Product;
use crate::Result;

/// A function of a compiled source: the source's name (a kernel's, or one of this backend's own) and its symbol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Symbol<'a> {
    pub source: &'static str,
    pub name: &'a str,
}

/// One launch: the addresses of the buffers in order, then the argument struct by value.
pub(super) struct Enqueue<'a> {
    pub symbol: Symbol<'a>,
    /// Its `tensor` is not looked at: `symbol` and `shared_bytes` are those of the function that is meant.
    pub grid: Grid,
    pub addresses: &'a [u64],
    pub arguments: &'a [u8],
}

pub(super) trait Driver: Send + Sync {
    /// Uninitialised memory, aligned to 256 bytes; nothing if the device has not as much.
    fn allocate(&self, bytes: usize) -> Result<Option<u64>>;

    /// Gives memory back once the stream has passed this point.
    fn free(&self, address: u64);

    fn fill_zero(&self, address: u64, bytes: usize) -> Result<()>;

    /// Returns when `source` may be changed.
    fn upload(&self, source: &[u8], target: u64) -> Result<()>;

    /// Waits for all that was asked before.
    fn download(&self, source: u64, target: &mut [u8]) -> Result<()>;

    fn launch(&self, enqueue: &Enqueue<'_>) -> Result<()>;

    /// Computes it with the device's own library; false if there is none or it declines.
    fn product(&self, product: &Product) -> Result<bool>;

    fn synchronize(&self) -> Result<()>;

    /// From here on launches, fills and products of this thread are noted, and not computed.
    fn begin_recording(&self) -> Result<()>;

    /// What was noted, by a number.
    ///
    /// # Errors
    /// It could not all be noted. The recording has ended, and nothing is left of it.
    fn end_recording(&self) -> Result<u64>;

    /// Computes what was noted, behind all that was asked before.
    fn replay(&self, recording: u64) -> Result<()>;

    /// Waits, and drops what was noted.
    fn forget(&self, recording: u64);
}
