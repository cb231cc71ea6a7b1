//! The seam: everything that models ask of a device.

use motley_kernels::{Arguments, Entry, gelu};

use crate::{Buffer, Category, DeviceInfo, Error, MemoryReport, Weight, WeightSource};

/// A device with one in-order queue. All methods may be called from any thread; calls take effect in some order that
/// agrees with each thread's own.
pub trait Backend: Send + Sync {
    fn info(&self) -> &DeviceInfo;

    /// A buffer with unspecified contents.
    ///
    /// # Errors
    /// The budget has no room.
    fn allocate(&self, bytes: usize, category: Category) -> Result<Buffer, Error>;

    /// Copies `source` to the start of the place.
    ///
    /// # Errors
    /// The place is too small.
    fn upload(&self, source: &[u8], target: Bound<'_>) -> Result<(), Error>;

    /// Copies the start of the place to `target`; waits for everything before it.
    ///
    /// # Errors
    /// The place is too small, or an earlier launch failed.
    fn download(&self, source: Bound<'_>, target: &mut [u8]) -> Result<(), Error>;

    /// Brings a linear layer's weight into this device's own layout.
    ///
    /// # Errors
    /// Shapes and bytes that do not fit each other; the budget has no room.
    fn prepare_weight(&self, source: &WeightSource<'_>) -> Result<Weight, Error>;

    /// The weight [out, in] as this device multiplies with it (dequantized), row-major.
    ///
    /// # Errors
    /// The weight belongs to another backend.
    fn read_weight(&self, weight: &Weight) -> Result<Vec<f32>, Error>;

    /// Product of activations with a prepared weight.
    ///
    /// # Errors
    /// Places too small; a foreign weight.
    fn linear(&self, call: &Linear<'_>) -> Result<(), Error>;

    /// Product of two buffers.
    ///
    /// # Errors
    /// Places too small.
    fn matmul(&self, call: &Matmul<'_>) -> Result<(), Error>;

    /// Enqueues one kernel entry. Device faults appear at `download` or `synchronize`.
    ///
    /// # Errors
    /// Arguments or buffers that do not fit the entry; a buffer both read and written.
    fn launch(&self, launch: &Launch<'_>) -> Result<(), Error>;

    /// Waits for the queue.
    ///
    /// # Errors
    /// A launch failed.
    fn synchronize(&self) -> Result<(), Error>;

    fn memory(&self) -> MemoryReport;

    /// Starts the peaks of [`Backend::memory`] anew from what is live.
    fn reset_peak(&self);

    /// Runs host work on the device's own threads where it has some, so that nothing competes with them; launches
    /// from within start without handing over between threads.
    fn run_in_pool(&self, work: &mut (dyn FnMut() + Send));
}

/// A place in a buffer: from `offset` bytes on. What lies behind the part that a call uses is left alone.
#[derive(Debug, Clone, Copy)]
pub struct Bound<'a> {
    pub buffer: &'a Buffer,
    pub offset: usize,
}

impl<'a> From<&'a Buffer> for Bound<'a> {
    fn from(buffer: &'a Buffer) -> Self {
        Bound { buffer, offset: 0 }
    }
}

/// One kernel entry with its scalars and buffers, in the order of the entry's bindings.
pub struct Launch<'a> {
    pub entry: &'static Entry,
    pub arguments: &'a [u8],
    pub bindings: &'a [Bound<'a>],
}

impl<'a> Launch<'a> {
    pub fn new<A: Arguments>(entry: &'static Entry, arguments: &'a A, bindings: &'a [Bound<'a>]) -> Self {
        Launch { entry, arguments: bytemuck::bytes_of(arguments), bindings }
    }
}

/// output [rows, out] = input [rows, in]·Wᵀ (forward), or output [rows, in] = input [rows, out]·W (backward); f32.
///
/// A row's result has the same bits whatever the number of rows.
pub struct Linear<'a> {
    pub weight: &'a Weight,
    pub direction: Direction,
    pub rows: usize,
    pub input: Bound<'a>,
    pub output: Bound<'a>,
    /// Forward only.
    pub epilogue: Epilogue,
    /// Adds to the output instead of overwriting it.
    pub accumulate: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Forward,
    Backward,
}

/// What follows a product before it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Epilogue {
    None,
    /// Adds the weight's bias, if it has one.
    Bias,
    /// Adds the bias, then applies the activation.
    BiasGelu(gelu::Kind),
}

/// c [m, n] = alpha·op(a)·op(b) + beta·c; f32, dense row-major. op transposes where asked: a is [k, m], b is [n, k].
pub struct Matmul<'a> {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: Bound<'a>,
    pub a_transposed: bool,
    pub b: Bound<'a>,
    pub b_transposed: bool,
    pub c: Bound<'a>,
    pub alpha: f32,
    pub beta: f32,
}
