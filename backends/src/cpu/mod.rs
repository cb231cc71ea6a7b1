//! The CPU as a device: kernels' fast paths on one pool of threads, products of its own.
//!
//! Calls run at once, one after the other: a lock stands for the queue. `run_in_pool` holds it for the whole of its
//! work, and calls from within skip it.

mod product;
mod storage;

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use motley_kernels::{Access, Call, Slice, Workers, simd};

use crate::memory::Ledger;
use crate::{
    Backend, Bound, Buffer, Category, DeviceInfo, DeviceKind, DeviceRequest, Direction, Error, Launch,
    Linear, Matmul, MemoryReport, Weight, WeightSource,
};
use product::Packed;
use storage::{Storage, Store};

/// The CPU of this machine.
pub struct Cpu {
    info: DeviceInfo,
    number: u64,
    workers: Workers,
    store: Arc<Store>,
    ledger: Arc<Ledger>,
    queue: Mutex<()>,
}

thread_local! {
    /// Number of the backend whose queue this thread holds; 0: none.
    static HELD: Cell<u64> = const { Cell::new(0) };
}

impl Cpu {
    /// # Errors
    /// The threads cannot be started.
    pub fn new(request: &DeviceRequest) -> Result<Self, Error> {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let threads = request.threads.unwrap_or(cores).max(1);
        let workers =
            Workers::new(threads).map_err(|error| Error::Threads { threads, message: error.to_string() })?;
        let level = simd::level().name();
        let info = DeviceInfo {
            kind: DeviceKind::Cpu,
            name: format!("cpu, {threads} threads, {level}"),
            threads,
            numerics_class: format!("cpu-{level}"),
        };
        let ledger = Arc::new(Ledger::new(request.memory_bytes_max));
        Ok(Cpu {
            info,
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            workers,
            store: Arc::new(Store::new(ledger.clone())),
            ledger,
            queue: Mutex::new(()),
        })
    }

    /// Runs `work` in the queue's order.
    fn in_order<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        if HELD.get() == self.number {
            return work();
        }
        // A panicking kernel leaves buffers with unspecified contents, nothing worse.
        let _queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        self.workers.enter(work)
    }

    fn storage<'a>(&self, buffer: &'a Buffer) -> Result<&'a Storage, Error> {
        buffer.inner::<Storage>().ok_or(Error::Foreign { backend: "cpu" })
    }

    fn packed<'a>(&self, weight: &'a Weight) -> Result<&'a Packed, Error> {
        weight.inner.downcast_ref().ok_or(Error::Foreign { backend: "cpu" })
    }

    /// Bytes of a place.
    ///
    /// # Safety
    /// The queue is held, and no other slice of these bytes is written while this one lives.
    unsafe fn read<'a>(&self, place: Bound<'a>, bytes: usize, what: &'static str) -> Result<&'a [u8], Error> {
        let storage = self.storage(place.buffer)?;
        check(place, bytes, what)?;
        // SAFETY: in bounds by the check; exclusive by the caller's promise.
        Ok(unsafe { storage.slice(place.offset, bytes) })
    }

    /// As `read`, to be written.
    ///
    /// # Safety
    /// The queue is held, and no other slice of these bytes lives.
    #[allow(clippy::mut_from_ref)]
    unsafe fn write<'a>(
        &self,
        place: Bound<'a>,
        bytes: usize,
        what: &'static str,
    ) -> Result<&'a mut [u8], Error> {
        let storage = self.storage(place.buffer)?;
        check(place, bytes, what)?;
        // SAFETY: in bounds by the check; exclusive by the caller's promise.
        Ok(unsafe { storage.slice_mut(place.offset, bytes) })
    }

    fn slices<'a>(&self, launch: &Launch<'a>) -> Result<Vec<Slice<'a>>, Error> {
        let pairs = launch.bindings.iter().zip(launch.entry.bindings);
        pairs
            .map(|(place, binding)| {
                let bytes = place.buffer.bytes() - place.offset;
                // SAFETY: the queue is held, and `check_launch` refused overlapping written places.
                unsafe {
                    match binding.access {
                        Access::Read => self.read(*place, bytes, binding.name).map(Slice::Read),
                        Access::Write | Access::ReadWrite => {
                            self.write(*place, bytes, binding.name).map(Slice::Write)
                        }
                    }
                }
            })
            .collect()
    }
}

fn check(place: Bound<'_>, bytes: usize, what: &'static str) -> Result<(), Error> {
    match place.offset.checked_add(bytes) {
        Some(end) if end <= place.buffer.bytes() => Ok(()),
        end => Err(Error::OutOfBounds { what, end: end.unwrap_or(usize::MAX), bytes: place.buffer.bytes() }),
    }
}

/// Checks a launch against its entry: sizes, alignment, and that nothing is both read and written.
pub(crate) fn check_launch(launch: &Launch<'_>) -> Result<(), Error> {
    let fail = |message: String| Err(Error::Launch { entry: launch.entry.name, message });
    let entry = launch.entry;
    if launch.arguments.len() != entry.argument_bytes {
        return fail(format!(
            "{} bytes of arguments, expected {}",
            launch.arguments.len(),
            entry.argument_bytes
        ));
    }
    if launch.bindings.len() != entry.bindings.len() {
        return fail(format!("{} buffers, expected {}", launch.bindings.len(), entry.bindings.len()));
    }
    for (place, binding) in launch.bindings.iter().zip(entry.bindings) {
        let has_whole_elements = binding.dtype == motley_kernels::Dtype::U8
            || (place.offset % 4 == 0 && place.buffer.bytes() % 4 == 0);
        if place.offset > place.buffer.bytes() || !has_whole_elements {
            return fail(format!(
                "`{}` begins at byte {} of {}",
                binding.name,
                place.offset,
                place.buffer.bytes()
            ));
        }
    }
    for (i, written) in launch.bindings.iter().enumerate() {
        let is_written = entry.bindings[i].access != Access::Read;
        let shares = |(j, other): (usize, &Bound<'_>)| i != j && same_memory(written, other);
        if is_written && launch.bindings.iter().enumerate().any(shares) {
            return fail(format!("`{}` is written and bound a second time", entry.bindings[i].name));
        }
    }
    Ok(())
}

/// Bound places reach to the end of their buffer, so two places of one buffer always share its end.
fn same_memory(a: &Bound<'_>, b: &Bound<'_>) -> bool {
    let address =
        |place: &Bound<'_>| place.buffer.inner::<Storage>().map(|storage| storage as *const Storage);
    match (address(a), address(b)) {
        (Some(a), Some(b)) => a == b,
        _ => false,
    }
}

impl Backend for Cpu {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn allocate(&self, bytes: usize, category: Category) -> Result<Buffer, Error> {
        Ok(Buffer::new(bytes, Arc::new(self.store.take(bytes, category)?)))
    }

    fn upload(&self, source: &[u8], target: Bound<'_>) -> Result<(), Error> {
        self.in_order(|| {
            // SAFETY: the queue is held and this is the only slice.
            unsafe { self.write(target, source.len(), "upload") }.map(|place| place.copy_from_slice(source))
        })
    }

    fn download(&self, source: Bound<'_>, target: &mut [u8]) -> Result<(), Error> {
        self.in_order(|| {
            // SAFETY: the queue is held, so nothing writes meanwhile.
            let place = unsafe { self.read(source, target.len(), "download") }?;
            target.copy_from_slice(place);
            Ok(())
        })
    }

    fn prepare_weight(&self, source: &WeightSource<'_>) -> Result<Weight, Error> {
        let shape = source.shape()?;
        let packed = self.workers.enter(|| Packed::prepare(source, shape, &self.ledger, &self.workers))?;
        Ok(Weight { shape, format: source.format, inner: Arc::new(packed) })
    }

    fn read_weight(&self, weight: &Weight) -> Result<Vec<f32>, Error> {
        Ok(self.packed(weight)?.values())
    }

    fn linear(&self, call: &Linear<'_>) -> Result<(), Error> {
        let [out, input] = call.weight.shape();
        let packed = self.packed(call.weight)?;
        let (from, to) = match call.direction {
            Direction::Forward => (input, out),
            Direction::Backward => (out, input),
        };
        if same_memory(&call.input, &call.output) {
            return Err(Error::Launch { entry: "linear", message: "input and output share a buffer".into() });
        }
        self.in_order(|| {
            // SAFETY: the queue is held; input and output are different buffers.
            let (x, y) = unsafe {
                (
                    self.read(call.input, call.rows * from * 4, "linear input")?,
                    self.write(call.output, call.rows * to * 4, "linear output")?,
                )
            };
            packed.multiply(call, (bytemuck::cast_slice(x), bytemuck::cast_slice_mut(y)), &self.workers)
        })
    }

    fn matmul(&self, call: &Matmul<'_>) -> Result<(), Error> {
        if same_memory(&call.a, &call.c) || same_memory(&call.b, &call.c) {
            return Err(Error::Launch { entry: "matmul", message: "c shares a buffer with a or b".into() });
        }
        self.in_order(|| {
            // SAFETY: the queue is held; c is another buffer than a and b.
            let (a, b, c) = unsafe {
                (
                    self.read(call.a, call.m * call.k * 4, "matmul a")?,
                    self.read(call.b, call.n * call.k * 4, "matmul b")?,
                    self.write(call.c, call.m * call.n * 4, "matmul c")?,
                )
            };
            let (a, b, c) = (bytemuck::cast_slice(a), bytemuck::cast_slice(b), bytemuck::cast_slice_mut(c));
            product::multiply_buffers(call, a, b, c, &self.workers);
            Ok(())
        })
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<(), Error> {
        check_launch(launch)?;
        self.in_order(|| {
            let slices = self.slices(launch)?;
            (launch.entry.cpu)(&mut Call::new(launch.arguments, slices, &self.workers));
            Ok(())
        })
    }

    fn synchronize(&self) -> Result<(), Error> {
        Ok(())
    }

    fn memory(&self) -> MemoryReport {
        self.ledger.report()
    }

    fn reset_peak(&self) {
        self.ledger.reset_peak();
    }

    fn run_in_pool(&self, work: &mut (dyn FnMut() + Send)) {
        self.in_order(|| {
            let before = HELD.replace(self.number);
            work();
            HELD.set(before);
        });
    }
}
