//! The one trait behind which devices stand.

use motley_kernels::{Arguments, Entry};

use crate::buffer::{Buffer, View};
use crate::memory::{Category, MemoryReport};
use crate::open::{DeviceKind, Precision};
use crate::product::{Linear, Matmul};
use crate::recording::Recording;
use crate::weight::{Weight, WeightSource};
use crate::{Error, Result};

/// One device and its one queue. Calls take effect in the order in which one thread makes them; device faults may
/// appear only at `download` or `synchronize`.
pub trait Backend: Send + Sync {
    fn info(&self) -> &DeviceInfo;

    /// How many bytes of a buffer one launch takes; absent: all.
    fn binding_limit(&self) -> Option<u64> {
        None
    }

    /// Memory of `bytes` zeros.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]
    fn allocate(&self, bytes: usize, category: Category) -> Result<Buffer>;

    /// Memory with whatever it held before, for buffers that are written whole before they are read.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]
    fn allocate_unfilled(&self, bytes: usize, category: Category) -> Result<Buffer>;

    /// Copies `source` to the start of `target`.
    ///
    /// # Errors
    /// `target` is shorter.
    fn upload(&self, source: &[u8], target: View<'_>) -> Result<()>;

    /// Copies the start of `source` to `target`, after all that was asked before.
    ///
    /// # Errors
    /// `source` is shorter, or the device failed.
    fn download(&self, source: View<'_>, target: &mut [u8]) -> Result<()>;

    /// Brings a frozen matrix into the device's own layout.
    ///
    /// # Errors
    /// The source contradicts itself, or memory is short.
    fn prepare_weight(&self, source: &WeightSource<'_>) -> Result<Weight>;

    /// The (dequantized) values [out, in], row-major, for merging and export.
    ///
    /// # Errors
    /// The weight is another backend's.
    fn read_weight(&self, weight: &Weight) -> Result<Vec<f32>>;

    /// # Errors
    /// Buffers too short, overlapping or foreign.
    fn linear(&self, call: &Linear<'_>) -> Result<()>;

    /// # Errors
    /// Buffers too short, overlapping or foreign.
    fn matmul(&self, call: &Matmul<'_>) -> Result<()>;

    /// # Errors
    /// Arguments or buffers that do not fit the entry.
    fn launch(&self, launch: &Launch<'_>) -> Result<()>;

    /// Runs `work`, of which the device notes products, launches and zeroed memory and computes none; `None`, and `work`
    /// has not run, where the device gains nothing by it. Work must have been done once before, so that it is compiled,
    /// and must not upload, download or wait. It runs in memory of its own, or in that of `shared`: then the two must run
    /// one after the other, and what one leaves there must be read before the other runs.
    ///
    /// # Errors
    /// The device cannot note it. `work` has run; what it was to compute is not computed.
    fn record(&self, _shared: Option<&Recording>, _work: &mut dyn FnMut()) -> Result<Option<Recording>> {
        Ok(None)
    }

    /// Computes what `recording` noted.
    ///
    /// # Errors
    /// The recording is another device's, or this device failed.
    fn replay(&self, _recording: &Recording) -> Result<()> {
        Err(Error::Foreign { what: "recording" })
    }

    /// Waits until all that was asked is done.
    ///
    /// # Errors
    /// The device failed.
    fn synchronize(&self) -> Result<()>;

    fn memory(&self) -> MemoryReport;

    /// Runs `work` on the backend's own threads, where it may split itself with rayon; launches from within start
    /// without a switch of threads. Only one task of `work` may call the backend at a time.
    fn run_in_pool(&self, work: &mut (dyn FnMut() + Send));
}

/// What a device is.
#[derive(Debug, Clone)]
pub struct DeviceInfo {
    pub kind: DeviceKind,
    /// `cpu:0`
    pub name: String,
    /// Bytes that may be used; unknown where the operating system alone decides.
    pub memory: Option<u64>,
    pub threads: usize,
    /// What activations are kept in.
    pub precision: Precision,
    /// Two devices of the same class and build give the same bits.
    pub numerics_class: String,
}

/// One kernel call.
pub struct Launch<'a> {
    pub entry: &'static Entry,
    /// The entry's argument struct.
    pub arguments: &'a [u8],
    /// In the order of the entry's bindings.
    pub buffers: &'a [View<'a>],
}

impl<'a> Launch<'a> {
    pub fn new<A: Arguments>(entry: &'static Entry, arguments: &'a A, buffers: &'a [View<'a>]) -> Self {
        Launch { entry, arguments: bytemuck::bytes_of(arguments), buffers }
    }

    /// # Errors
    /// Counts or sizes that are not the entry's.
    pub(crate) fn check(&self) -> Result<()> {
        let entry = self.entry.name;
        let counts = [
            ("buffers", self.entry.bindings.len(), self.buffers.len()),
            ("bytes of arguments", self.entry.argument_bytes(), self.arguments.len()),
        ];
        for (what, wanted, given) in counts {
            if wanted != given {
                return Err(Error::Launch { entry, what, wanted, given });
            }
        }
        self.buffers.iter().try_for_each(|view| view.check(entry))
    }
}
