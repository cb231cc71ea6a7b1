//! A device of CUDA that is the processor: kernels that a C++ compiler built into a library run on host memory, thread
//! by thread. For tests; `tests/conformance/emulation` builds the library.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_void};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

use libloading::Library;
use motley_kernels::Grid;

use super::Cuda;
use super::driver::{Driver, Enqueue};
use super::product::Product;
use crate::backend::Backend;
use crate::open::{DeviceRequest, Precision};
use crate::{Error, Result};

/// As the driver aligns memory.
const ALIGNMENT: usize = 256;
/// Behind each allocation, and in memory that nobody has written: NaN in every format of floating point.
const UNWRITTEN: u8 = 0xff;

/// Runs a function: blocks, threads of a block, bytes of shared memory, buffers, arguments. Null, or what went wrong.
type Launch = unsafe extern "C" fn(u32, u32, u32, *const *mut c_void, *const c_void) -> *const c_char;

struct Emulated {
    library: Library,
    /// Bytes by address.
    memory: Mutex<BTreeMap<u64, usize>>,
    recordings: Mutex<Recordings>,
}

#[derive(Default)]
struct Recordings {
    /// Of the thread that records.
    begun: Option<(ThreadId, Vec<Call>)>,
    ended: BTreeMap<u64, Arc<[Call]>>,
    next: u64,
}

/// What a recording notes.
enum Call {
    Fill { address: u64, bytes: usize },
    Launch { name: String, grid: Grid, addresses: Vec<u64>, arguments: Vec<u8> },
}

/// Opens the emulation in `library`, which was built for `precision`.
///
/// # Errors
/// It does not load.
#[doc(hidden)]
pub fn open_emulated(library: &Path, precision: Precision) -> Result<Arc<dyn Backend>> {
    // SAFETY: the library was built by the tests of this crate, and running its initialisers has no other effect.
    let library = unsafe { Library::new(library) }.map_err(|error| failure("dlopen", error.to_string()))?;
    let driver = Emulated { library, memory: Mutex::default(), recordings: Mutex::default() };
    let request = DeviceRequest { backend: "cuda".to_owned(), precision, ..DeviceRequest::default() };
    let class = "cuda emulated on the processor".to_owned();
    Ok(Arc::new(Cuda::new(Box::new(driver), &request, class, None)?))
}

impl Emulated {
    fn memory(&self) -> MutexGuard<'_, BTreeMap<u64, usize>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recordings(&self) -> MutexGuard<'_, Recordings> {
        self.recordings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the call, if this thread records.
    fn is_noted(&self, call: impl FnOnce() -> Call) -> bool {
        match &mut self.recordings().begun {
            Some((thread, calls)) if *thread == std::thread::current().id() => {
                calls.push(call());
                true
            }
            _ => false,
        }
    }

    fn run(&self, name: &str, grid: Grid, addresses: &[u64], arguments: &[u8]) -> Result<()> {
        // SAFETY: the generated functions of this suffix have this type.
        let run = unsafe { self.library.get::<Launch>(format!("{name}__launch").as_bytes()) }
            .map_err(|error| failure("launch", error.to_string()))?;
        let buffers: Vec<*mut c_void> = addresses.iter().map(|address| *address as *mut c_void).collect();
        // SAFETY: buffers and arguments are those of the function (`Launch::check`, and assertions in the generated
        // source against the entry).
        let told = unsafe {
            let arguments = arguments.as_ptr().cast();
            run(grid.blocks, grid.threads, grid.shared_bytes, buffers.as_ptr(), arguments)
        };
        if told.is_null() {
            return Ok(());
        }
        // SAFETY: a text of the library, which stays until the next launch of this thread.
        let problem = unsafe { CStr::from_ptr(told) }.to_string_lossy();
        Err(failure("launch", format!("{name}: {problem}")))
    }

    fn fill(&self, address: u64, bytes: usize) {
        // SAFETY: the caller owns that much memory there.
        unsafe { (address as *mut u8).write_bytes(0, bytes) };
    }

    /// # Errors
    /// Something was written behind an allocation.
    fn check_ends(&self) -> Result<()> {
        for (address, bytes) in self.memory().iter() {
            // SAFETY: `allocate` got so much memory there, and filled it.
            let behind =
                unsafe { std::slice::from_raw_parts((address + *bytes as u64) as *const u8, ALIGNMENT) };
            if behind.iter().any(|byte| *byte != UNWRITTEN) {
                return Err(failure("launch", format!("wrote behind an allocation of {bytes} bytes")));
            }
        }
        Ok(())
    }
}

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes + ALIGNMENT, ALIGNMENT).expect("allocations of tests are small")
}

fn failure(call: &'static str, reason: String) -> Error {
    Error::DeviceFailed { device: "emulated cuda".to_owned(), call, reason }
}

impl Driver for Emulated {
    fn allocate(&self, bytes: usize) -> Result<Option<u64>> {
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc(layout(bytes)) };
        if start.is_null() {
            return Ok(None);
        }
        // SAFETY: so much was just allocated.
        unsafe { start.write_bytes(UNWRITTEN, bytes + ALIGNMENT) };
        self.memory().insert(start as u64, bytes);
        Ok(Some(start as u64))
    }

    fn free(&self, address: u64) {
        if let Some(bytes) = self.memory().remove(&address) {
            // SAFETY: `allocate` got it with this layout, and it is no longer in the list.
            unsafe { dealloc(address as *mut u8, layout(bytes)) };
        }
    }

    fn fill_zero(&self, address: u64, bytes: usize) -> Result<()> {
        if !self.is_noted(|| Call::Fill { address, bytes }) {
            self.fill(address, bytes);
        }
        Ok(())
    }

    fn upload(&self, source: &[u8], target: u64) -> Result<()> {
        // SAFETY: the caller owns that much memory there.
        unsafe { (target as *mut u8).copy_from_nonoverlapping(source.as_ptr(), source.len()) };
        Ok(())
    }

    fn download(&self, source: u64, target: &mut [u8]) -> Result<()> {
        self.check_ends()?;
        // SAFETY: the caller owns that much memory there.
        unsafe { target.as_mut_ptr().copy_from_nonoverlapping(source as *const u8, target.len()) };
        Ok(())
    }

    fn launch(&self, enqueue: &Enqueue<'_>) -> Result<()> {
        let Enqueue { symbol, grid, addresses, arguments } = *enqueue;
        let call = || Call::Launch {
            name: symbol.name.to_owned(),
            grid,
            addresses: addresses.to_vec(),
            arguments: arguments.to_vec(),
        };
        if self.is_noted(call) { Ok(()) } else { self.run(symbol.name, grid, addresses, arguments) }
    }

    fn product(&self, _product: &Product) -> Result<bool> {
        Ok(false)
    }

    fn synchronize(&self) -> Result<()> {
        self.check_ends()
    }

    fn begin_recording(&self) -> Result<()> {
        self.recordings().begun = Some((std::thread::current().id(), Vec::new()));
        Ok(())
    }

    fn end_recording(&self) -> Result<u64> {
        let mut recordings = self.recordings();
        let (_, calls) = recordings
            .begun
            .take()
            .ok_or_else(|| failure("end of recording", "none has begun".to_owned()))?;
        recordings.next += 1;
        let number = recordings.next;
        recordings.ended.insert(number, calls.into());
        Ok(number)
    }

    fn replay(&self, recording: u64) -> Result<()> {
        let calls = self.recordings().ended.get(&recording).cloned();
        for call in calls.iter().flat_map(|calls| calls.iter()) {
            match call {
                Call::Fill { address, bytes } => self.fill(*address, *bytes),
                Call::Launch { name, grid, addresses, arguments } => {
                    self.run(name, *grid, addresses, arguments)?;
                }
            }
        }
        Ok(())
    }

    fn forget(&self, recording: u64) {
        self.recordings().ended.remove(&recording);
    }
}

impl Drop for Emulated {
    fn drop(&mut self) {
        let left: Vec<u64> = self.memory().keys().copied().collect();
        left.into_iter().for_each(|address| self.free(address));
    }
}
