//! One device of the NVIDIA driver: a stream, its memory pool, compiled functions.

use std::collections::BTreeMap;
use std::ffi::{CString, c_void};
use std::sync::{Mutex, PoisonError};
use std::thread::ThreadId;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use super::compile::Compiler;
use super::driver::{Driver, Enqueue};
use super::library::Library;
use super::product::Product;
use crate::open::{DeviceRequest, Precision};
use crate::{Error, Result};

/// Memory of a device that is left to the driver, its libraries and other programs' displays.
const RESERVED_BYTES: u64 = 512 << 20;
/// Of the memory for small uploads: some passes' worth of token ids.
const STAGING_BYTES: usize = 8 << 20;
/// Shared memory that a function may have without being asked for.
const SHARED_BYTES_FREE: u32 = 48 << 10;

pub(super) struct Device {
    name: String,
    capability: (i32, i32),
    description: String,
    context: sys::CUcontext,
    device: sys::CUdevice,
    stream: sys::CUstream,
    /// The stream that this thread's work is noted from.
    capture: Mutex<Option<(ThreadId, sys::CUstream)>>,
    pool: sys::CUmemoryPool,
    compiler: Compiler,
    library: Option<Library>,
    staging: Mutex<Option<Staging>>,
    /// By source and name.
    functions: Mutex<BTreeMap<(&'static str, String), Function>>,
    modules: Mutex<BTreeMap<&'static str, sys::CUmodule>>,
}

/// Pinned host memory that small uploads pass through, so that the stream need not be waited for.
struct Staging {
    start: *mut u8,
    used: usize,
}

#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    shared_bytes: u32,
}

// SAFETY: handles of the driver may be used from any thread in which the context is current, which every method sees
// to; the two maps are behind locks.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}
// SAFETY: a function's handle is a pointer of the driver that any thread may use.
unsafe impl Send for Function {}

impl Device {
    pub fn open(request: &DeviceRequest) -> Result<Self> {
        super::discover::driver_is_there()?;
        let name = format!("cuda:{}", request.index);
        let failed = |call| {
            let device = name.clone();
            move |error: DriverError| failure(&device, call, error)
        };
        result::init().map_err(failed("cuInit"))?;
        let count = result::device::get_count().map_err(failed("cuDeviceGetCount"))? as usize;
        if request.index >= count {
            let reason = format!("device {} was asked for, the driver has {count}", request.index);
            return Err(Error::Unavailable {
                backend: "cuda",
                reason,
                remedy: "`ctl devices` lists what is there".to_owned(),
            });
        }
        let device = result::device::get(request.index as i32).map_err(failed("cuDeviceGet"))?;
        let capability = super::discover::capability(device).map_err(failed("cuDeviceGetAttribute"))?;
        if request.precision == Precision::Bf16 && capability.0 < 8 {
            return Err(Error::Precision { device: name, precision: request.precision.name() });
        }
        let description = result::device::get_name(device).map_err(failed("cuDeviceGetName"))?;
        // SAFETY: `device` came from the driver; the primary context is released when this is dropped.
        let context =
            unsafe { result::primary_ctx::retain(device) }.map_err(failed("cuDevicePrimaryCtxRetain"))?;
        // SAFETY: the context was just retained.
        unsafe { result::ctx::set_current(context) }.map_err(failed("cuCtxSetCurrent"))?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking)
            .map_err(failed("cuStreamCreate"))?;
        // SAFETY: `device` is one of the driver's.
        let pool = unsafe { result::device::get_default_mem_pool(device) }
            .map_err(failed("cuDeviceGetDefaultMemPool"))?;
        keep_freed_memory(pool).map_err(failed("cuMemPoolSetAttribute"))?;
        let compiler = Compiler::new(capability, request.precision);
        let library = Library::open();
        Ok(Device {
            name,
            capability,
            description,
            context,
            device,
            stream,
            capture: Mutex::default(),
            pool,
            compiler,
            library,
            staging: Mutex::default(),
            functions: Mutex::default(),
            modules: Mutex::default(),
        })
    }

    /// Same class, same bits.
    pub fn class(&self) -> String {
        let products = if self.library.is_some() { "cublasLt" } else { "own products" };
        format!("cuda {} sm_{}{} {products}", self.description, self.capability.0, self.capability.1)
    }

    /// What the request allows, at most what is free now less a reserve.
    pub fn memory_limit(&self, request: &DeviceRequest) -> Option<u64> {
        let free = result::mem_get_info().ok().map(|(free, _)| (free as u64).saturating_sub(RESERVED_BYTES));
        match (request.memory_limit, free) {
            (Some(limit), Some(free)) => Some(limit.min(free)),
            (limit, free) => limit.or(free),
        }
    }

    fn current(&self) -> Result<()> {
        // SAFETY: the context lives until this is dropped.
        unsafe { result::ctx::set_current(self.context) }
            .map_err(|error| failure(&self.name, "cuCtxSetCurrent", error))
    }

    /// Where work goes: on a thread that records, to where it is noted. Memory and copies stay in the device's own
    /// stream, behind which all replays run.
    fn work_stream(&self) -> sys::CUstream {
        match *self.capture.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((thread, stream)) if thread == std::thread::current().id() => stream,
            _ => self.stream,
        }
    }

    /// What was noted from `stream`, ready to run.
    fn executable(&self, stream: sys::CUstream) -> std::result::Result<sys::CUgraphExec, DriverError> {
        // SAFETY: `stream` is being captured, by this thread; the graph is destroyed once, when its executable copy has
        // been made or refused.
        unsafe {
            let graph = result::stream::end_capture(stream)?;
            let executable = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags_enum(0));
            let destroyed = result::graph::destroy(graph);
            let executable = executable?;
            // Without it the first run does the same.
            let _later = result::graph::upload(executable, self.stream);
            if let Err(error) = destroyed {
                let _lost = result::graph::exec_destroy(executable);
                return Err(error);
            }
            Ok(executable)
        }
    }

    fn function(&self, enqueue: &Enqueue<'_>) -> Result<Function> {
        let (symbol, shared_bytes) = (enqueue.symbol, enqueue.grid.shared_bytes);
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (symbol.source, symbol.name.to_owned());
        let known = functions.get(&key).copied();
        if let Some(function) = known.filter(|function| function.shared_bytes >= shared_bytes) {
            return Ok(function);
        }
        let handle = match known {
            Some(function) => function.handle,
            None => {
                let module = self.module(symbol.source)?;
                let name = CString::new(symbol.name).unwrap_or_default();
                // SAFETY: the module is loaded and stays so until this is dropped.
                unsafe { result::module::get_function(module, name) }
                    .map_err(|error| failure(&self.name, "cuModuleGetFunction", error))?
            }
        };
        if shared_bytes > SHARED_BYTES_FREE {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the handle is the driver's.
            unsafe { result::function::set_function_attribute(handle, attribute, shared_bytes as i32) }
                .map_err(|error| failure(&self.name, "cuFuncSetAttribute", error))?;
        }
        let function = Function { handle, shared_bytes };
        functions.insert(key, function);
        Ok(function)
    }

    fn upload_staged(&self, source: &[u8], target: u64) -> Result<()> {
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        let staging = match &mut *staging {
            Some(staging) => staging,
            none => {
                // SAFETY: without flags it is plain pinned memory, freed when this is dropped.
                let start = unsafe { result::malloc_host(STAGING_BYTES, 0) }
                    .map_err(|error| failure(&self.name, "cuMemHostAlloc", error))?;
                none.insert(Staging { start: start.cast::<u8>(), used: 0 })
            }
        };
        if staging.used + source.len() > STAGING_BYTES {
            // What was copied from the start on has arrived.
            self.synchronize()?;
            staging.used = 0;
        }
        // SAFETY: the part from `used` on is free until the stream is waited for, and large enough.
        let copy = unsafe {
            let place = staging.start.add(staging.used);
            std::ptr::copy_nonoverlapping(source.as_ptr(), place, source.len());
            std::slice::from_raw_parts(place, source.len())
        };
        staging.used += source.len().next_multiple_of(64);
        // SAFETY: the caller owns that much memory there.
        unsafe { result::memcpy_htod_async(target, copy, self.stream) }
            .map_err(|error| failure(&self.name, "cuMemcpyHtoDAsync", error))
    }

    fn module(&self, source: &'static str) -> Result<sys::CUmodule> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules.get(source) {
            return Ok(*module);
        }
        let mut last = None;
        for image in self.compiler.images(source)? {
            // SAFETY: an image is a cubin, or PTX that ends with a zero byte.
            match unsafe { result::module::load_data(image.as_ptr().cast::<c_void>()) } {
                Ok(module) => {
                    modules.insert(source, module);
                    return Ok(module);
                }
                Err(error) => last = Some(error),
            }
        }
        let reason = last.map_or_else(|| "no image".to_owned(), |error| described(&error));
        Err(Error::DeviceFailed { device: self.name.clone(), call: "cuModuleLoadData", reason })
    }
}

impl Driver for Device {
    fn allocate(&self, bytes: usize) -> Result<Option<u64>> {
        self.current()?;
        // SAFETY: the stream is this device's.
        let allocate = || unsafe { result::malloc_async(self.stream, bytes) };
        let out_of_memory = |error: &DriverError| error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY;
        match allocate() {
            Ok(address) => Ok(Some(address)),
            Err(error) if out_of_memory(&error) => {
                // What is freed but kept in pieces may be what is missing.
                self.synchronize()?;
                // SAFETY: the pool is this device's default.
                let _still_kept = unsafe { result::mem_pool::trim_to(self.pool, 0) };
                match allocate() {
                    Ok(address) => Ok(Some(address)),
                    Err(error) if out_of_memory(&error) => Ok(None),
                    Err(error) => Err(failure(&self.name, "cuMemAllocAsync", error)),
                }
            }
            Err(error) => Err(failure(&self.name, "cuMemAllocAsync", error)),
        }
    }

    fn free(&self, address: u64) {
        if self.current().is_ok() {
            // SAFETY: the address came from `allocate` and is given back once. A failure means that the device is
            // lost, and its memory with it; the next call says so.
            let _lost = unsafe { result::free_async(address, self.stream) };
        }
    }

    fn fill_zero(&self, address: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.current()?;
        // SAFETY: the caller owns that much memory there.
        unsafe { result::memset_d8_async(address, 0, bytes, self.work_stream()) }
            .map_err(|error| failure(&self.name, "cuMemsetD8Async", error))
    }

    fn upload(&self, source: &[u8], target: u64) -> Result<()> {
        self.current()?;
        if source.len() <= STAGING_BYTES / 4 {
            return self.upload_staged(source, target);
        }
        // SAFETY: the caller owns that much memory there. From pageable memory the driver copies to its own before it
        // returns.
        unsafe { result::memcpy_htod_async(target, source, self.stream) }
            .map_err(|error| failure(&self.name, "cuMemcpyHtoDAsync", error))
    }

    fn download(&self, source: u64, target: &mut [u8]) -> Result<()> {
        self.current()?;
        // SAFETY: the caller owns that much memory there; the copy is awaited before `target` is used.
        unsafe { result::memcpy_dtoh_async(target, source, self.stream) }
            .map_err(|error| failure(&self.name, "cuMemcpyDtoHAsync", error))?;
        self.synchronize()
    }

    fn launch(&self, enqueue: &Enqueue<'_>) -> Result<()> {
        self.current()?;
        let function = self.function(enqueue)?;
        // The driver copies addresses and arguments while it takes the launch.
        let mut parameters: Vec<*mut c_void> = enqueue
            .addresses
            .iter()
            .map(|address| std::ptr::from_ref(address).cast_mut().cast::<c_void>())
            .collect();
        parameters.push(enqueue.arguments.as_ptr().cast_mut().cast::<c_void>());
        let grid = enqueue.grid;
        // SAFETY: the function takes these parameters (checked in `Launch::check` against the entry, whose bindings the
        // sources follow); blocks and threads are those the source expects.
        unsafe {
            result::launch_kernel(
                function.handle,
                (grid.blocks, 1, 1),
                (grid.threads, 1, 1),
                grid.shared_bytes,
                self.work_stream(),
                &mut parameters,
            )
        }
        .map_err(|error| failure(&self.name, "cuLaunchKernel", error))
    }

    fn product(&self, product: &Product) -> Result<bool> {
        let Some(library) = &self.library else { return Ok(false) };
        self.current()?;
        let failed =
            |reason| Error::DeviceFailed { device: self.name.clone(), call: "cublasLtMatmul", reason };
        library.product(product, self.work_stream(), self).map_err(failed)
    }

    fn synchronize(&self) -> Result<()> {
        self.current()?;
        // SAFETY: the stream lives until this is dropped.
        unsafe { result::stream::synchronize(self.stream) }
            .map_err(|error| failure(&self.name, "cuStreamSynchronize", error))
    }

    fn begin_recording(&self) -> Result<()> {
        self.current()?;
        let failed = |error| failure(&self.name, "cuStreamBeginCapture", error);
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(failed)?;
        // Other threads' calls are not looked at, nor is this one's memory, which is the own stream's.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream was just made, and is destroyed once: here, or at the end of the recording.
        if let Err(error) = unsafe { result::stream::begin_capture(stream, mode) } {
            // SAFETY: as above.
            let _lost = unsafe { result::stream::destroy(stream) };
            return Err(failed(error));
        }
        let mut capture = self.capture.lock().unwrap_or_else(PoisonError::into_inner);
        *capture = Some((std::thread::current().id(), stream));
        Ok(())
    }

    fn end_recording(&self) -> Result<u64> {
        self.current()?;
        let begun = self.capture.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((_, stream)) = begun else {
            let reason = "no recording has begun".to_owned();
            return Err(Error::DeviceFailed {
                device: self.name.clone(),
                call: "cuStreamEndCapture",
                reason,
            });
        };
        let executable = self.executable(stream);
        // SAFETY: made in `begin_recording`, and no longer captured.
        let _lost = unsafe { result::stream::destroy(stream) };
        let executable = executable.map_err(|error| failure(&self.name, "cuStreamEndCapture", error))?;
        Ok(executable as u64)
    }

    fn replay(&self, recording: u64) -> Result<()> {
        self.current()?;
        // SAFETY: the number is an executable graph that was not forgotten; the stream lives until this is dropped.
        unsafe { result::graph::launch(recording as sys::CUgraphExec, self.stream) }
            .map_err(|error| failure(&self.name, "cuGraphLaunch", error))
    }

    fn forget(&self, recording: u64) {
        if self.current().is_ok() {
            // SAFETY: as above, and it is forgotten once. Failures mean that the device is lost.
            unsafe {
                let _lost = result::stream::synchronize(self.stream);
                let _lost = result::graph::exec_destroy(recording as sys::CUgraphExec);
            }
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if self.current().is_err() {
            return;
        }
        self.library = None;
        let staging = self.staging.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let modules = std::mem::take(self.modules.get_mut().unwrap_or_else(PoisonError::into_inner));
        // SAFETY: nothing uses them after this. Failures mean that the device is lost, and everything on it with it.
        unsafe {
            let _lost = result::stream::synchronize(self.stream);
            if let Some(staging) = staging {
                let _lost = result::free_host(staging.start.cast::<c_void>());
            }
            for module in modules.into_values() {
                let _lost = result::module::unload(module);
            }
            let _lost = result::mem_pool::trim_to(self.pool, 0);
            let _lost = result::stream::destroy(self.stream);
            let _lost = result::primary_ctx::release(self.device);
        }
    }
}

/// Freed memory stays with this process for its next allocation; the ledger's limit bounds what is live.
fn keep_freed_memory(pool: sys::CUmemoryPool) -> std::result::Result<(), DriverError> {
    let mut threshold = u64::MAX;
    let attribute = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the attribute is a u64, and the pool is the device's default.
    unsafe {
        result::mem_pool::set_attribute(pool, attribute, std::ptr::from_mut(&mut threshold).cast::<c_void>())
    }
}

fn described(error: &DriverError) -> String {
    match error.error_string() {
        Ok(text) => text.to_string_lossy().into_owned(),
        Err(_) => format!("{:?}", error.0),
    }
}

fn failure(device: &str, call: &'static str, error: DriverError) -> Error {
    Error::DeviceFailed { device: device.to_owned(), call, reason: described(&error) }
}
