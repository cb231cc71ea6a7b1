//! NVIDIA devices: kernels from CUDA C++, products from cuBLASLt where it is there, and from own kernels where not.
//!
//! ```text
//! mod      the backend: what a call means in addresses
//! driver   what it asks of a device            device    the NVIDIA driver    emulated  the processor, for tests
//! storage  counted memory        weight  plain or NF4        product  library or own kernel
//! compile  sources to machine code, shipped  PTX for where that cannot be done
//! library  cuBLASLt              discover  what is on this machine
//! ```

mod compile;
mod device;
mod discover;
mod driver;
mod emulated;
mod library;
mod product;
mod shipped;
mod storage;
mod weight;

use std::sync::{Arc, Mutex, PoisonError};

use motley_kernels::{Access, Dtype, Grid, TensorFunction, Workers};

pub(crate) use self::discover::discover;
use self::driver::{Driver, Enqueue, Symbol};
#[doc(hidden)]
pub use self::emulated::open_emulated;
use self::product::{Factor, Product};
use self::storage::{Block, Memory, Storage, addresses};
use self::weight::{CudaWeight, scale_map};
use crate::backend::{Backend, DeviceInfo, Launch};
use crate::buffer::{Buffer, View};
use crate::memory::{Category, Ledger, MemoryReport};
use crate::open::{DeviceKind, DeviceRequest, Precision};
use crate::product::{Direction, Epilogue, Linear, Matmul, Operand};
use crate::recording::{Pool, Recorder, Recording};
use crate::weight::{Weight, WeightSource};
use crate::{Error, Result};

/// Opens device `request.index` of the driver.
pub(crate) fn open(request: &DeviceRequest) -> Result<Arc<dyn Backend>> {
    let device = device::Device::open(request)?;
    let (class, memory) = (device.class(), device.memory_limit(request));
    Ok(Arc::new(Cuda::new(Box::new(device), request, class, memory)?))
}

pub(crate) struct Cuda {
    info: DeviceInfo,
    memory: Arc<Memory>,
    workers: Workers,
    /// Of the double quantization's scales.
    map: Storage,
}

/// What the driver noted, with the memory that it runs in.
struct Noted {
    /// Run by one thread at a time.
    number: Mutex<u64>,
    memory: Arc<Memory>,
    pool: Arc<Pool<Block>>,
}

impl Drop for Noted {
    fn drop(&mut self) {
        self.memory.driver.forget(*self.number.get_mut().unwrap_or_else(PoisonError::into_inner));
    }
}

/// A recording of the driver that has begun. It ends in any case: what the work asks after a panic is computed.
struct Begun<'a> {
    driver: &'a dyn Driver,
    has_ended: bool,
}

impl Begun<'_> {
    fn end(mut self) -> Result<u64> {
        self.has_ended = true;
        self.driver.end_recording()
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if !self.has_ended
            && let Ok(number) = self.driver.end_recording()
        {
            self.driver.forget(number);
        }
    }
}

impl Cuda {
    fn new(
        driver: Box<dyn Driver>,
        request: &DeviceRequest,
        numerics_class: String,
        limit: Option<u64>,
    ) -> Result<Self> {
        let available = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let threads = request.threads.unwrap_or_else(available).max(1);
        let workers =
            Workers::new(threads).map_err(|source| Error::Threads { threads, source: Box::new(source) })?;
        let name = format!("cuda:{}", request.index);
        let memory = Arc::new(Memory {
            driver,
            ledger: Ledger::new(&name, limit),
            device: name.clone(),
            recorder: Recorder::default(),
        });
        let map = scale_map(&memory)?;
        let info = DeviceInfo {
            kind: DeviceKind::Cuda,
            name,
            memory: limit,
            threads,
            precision: request.precision,
            numerics_class,
        };
        Ok(Cuda { info, memory, workers, map })
    }

    fn noted<'a>(&self, recording: &'a Recording) -> Result<&'a Noted> {
        let noted = recording.inner::<Noted>()?;
        if !Arc::ptr_eq(&noted.memory, &self.memory) {
            return Err(Error::Foreign { what: "recording" });
        }
        Ok(noted)
    }

    /// # Errors
    /// This thread records.
    fn at_once(&self, what: &'static str) -> Result<()> {
        match self.memory.recorder.pool() {
            None => Ok(()),
            Some(_) => Err(Error::Recorded { what }),
        }
    }

    fn driver(&self) -> &dyn Driver {
        &*self.memory.driver
    }

    fn precision(&self) -> Precision {
        self.info.precision
    }
}

impl Backend for Cuda {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn allocate(&self, bytes: usize, category: Category) -> Result<Buffer> {
        let buffer = self.memory.buffer(bytes, category)?;
        let storage = buffer.memory::<Storage>().ok_or(Error::Foreign { what: "allocation" })?;
        self.driver().fill_zero(storage.address, bytes)?;
        Ok(buffer)
    }

    fn allocate_unfilled(&self, bytes: usize, category: Category) -> Result<Buffer> {
        self.memory.buffer(bytes, category)
    }

    fn upload(&self, source: &[u8], target: View<'_>) -> Result<()> {
        self.at_once("upload")?;
        let target = addresses("upload", &[(target.first(source.len(), "upload")?, true)])?;
        if source.is_empty() { Ok(()) } else { self.driver().upload(source, target[0]) }
    }

    fn download(&self, source: View<'_>, target: &mut [u8]) -> Result<()> {
        self.at_once("download")?;
        let source = addresses("download", &[(source.first(target.len(), "download")?, false)])?;
        if target.is_empty() { Ok(()) } else { self.driver().download(source[0], target) }
    }

    fn prepare_weight(&self, source: &WeightSource<'_>) -> Result<Weight> {
        let weight = CudaWeight::new(&self.memory, source, self.precision(), &self.workers)?;
        Ok(Weight::new(source.shape()?, source.bias.is_some(), Arc::new(weight)))
    }

    fn read_weight(&self, weight: &Weight) -> Result<Vec<f32>> {
        weight.inner::<CudaWeight>()?.host_values(&self.memory, self.precision())
    }

    fn linear(&self, call: &Linear<'_>) -> Result<()> {
        let weight = call.weight.inner::<CudaWeight>()?;
        let precision = self.precision();
        let (input, output) = call.check(precision)?;
        let found = addresses("product", &[(input, false), (output, true)])?;
        let [out, width] = call.weight.shape();
        let forward = call.direction == Direction::Forward;
        let bias = weight.bias.as_ref().filter(|_| call.epilogue != Epilogue::None);
        let mut product = Product {
            left: Factor {
                address: found[0],
                stride: if forward { width } else { out },
                batch: 0,
                transposed: false,
            },
            right: Factor { address: 0, stride: width, batch: 0, transposed: forward },
            output: found[1],
            output_stride: if forward { out } else { width },
            output_batch: 0,
            bias: bias.map(|bias| bias.address),
            activation: match call.epilogue {
                Epilogue::BiasActivation(kind) => Some(kind),
                _ => None,
            },
            shape: if forward { [call.rows, out, width] } else { [call.rows, width, out] },
            batch: 1,
            alpha: 1.0,
            beta: if call.accumulate { 1.0 } else { 0.0 },
            precision,
            of_activations: true,
        };
        if weight.multiply_few_rows(&self.memory, &product, &self.map)? {
            return Ok(());
        }
        // Held until the product is in the stream, behind which the memory goes back.
        let (matrix, _workspace) = weight.ready(&self.memory, precision, &self.map)?;
        product.right.address = matrix;
        product.run(self.driver())
    }

    fn matmul(&self, call: &Matmul<'_>) -> Result<()> {
        call.check()?;
        let views = [(call.left.view, false), (call.right.view, false), (call.output.view, true)];
        let found = addresses("product", &views)?;
        let factor = |operand: &Operand<'_>, address| Factor {
            address,
            stride: operand.stride,
            batch: operand.batch_stride,
            transposed: operand.transposed,
        };
        let product = Product {
            left: factor(&call.left, found[0]),
            right: factor(&call.right, found[1]),
            output: found[2],
            output_stride: call.output.stride,
            output_batch: call.output.batch_stride,
            bias: None,
            activation: None,
            shape: call.shape,
            batch: call.batch,
            alpha: call.alpha,
            beta: call.beta,
            precision: Precision::F32,
            of_activations: self.precision() == Precision::F32,
        };
        product.run(self.driver())
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        launch.check()?;
        let entry = launch.entry;
        let writes = entry.bindings.iter().map(|binding| binding.access != Access::Read);
        let views: Vec<(View<'_>, bool)> = launch.buffers.iter().copied().zip(writes).collect();
        let addresses = addresses(entry.name, &views)?;
        let mut grid = (entry.cuda)(launch.arguments);
        if grid.blocks == 0 {
            return Ok(());
        }
        let (source, _) = entry.name.split_once('.').unwrap_or((entry.name, ""));
        let own = entry.name.replace('.', "_");
        // Functions for tensor cores read 16 bytes of activations at a time.
        let activations = entry.bindings.iter().zip(&addresses);
        let activations = activations.filter(|(binding, _)| binding.dtype == Dtype::Activation);
        let fits = self.precision() == Precision::Bf16 && activations.into_iter().all(|(_, a)| a % 16 == 0);
        let name = match grid.tensor.filter(|_| fits) {
            None => &own,
            Some(tensor) => {
                let TensorFunction { name, blocks, threads, shared_bytes } = tensor;
                grid = Grid { blocks, threads, shared_bytes, tensor: None };
                name
            }
        };
        let arguments = launch.arguments;
        self.driver().launch(&Enqueue {
            symbol: Symbol { source, name },
            grid,
            addresses: &addresses,
            arguments,
        })
    }

    fn record(&self, shared: Option<&Recording>, work: &mut dyn FnMut()) -> Result<Option<Recording>> {
        let shared = shared.map(|recording| self.noted(recording)).transpose()?;
        let pool = shared.map(|noted| noted.pool.clone());
        let Some(session) = self.memory.recorder.begin(pool) else { return Ok(None) };
        self.driver().begin_recording()?;
        let begun = Begun { driver: self.driver(), has_ended: false };
        work();
        let number = Mutex::new(begun.end()?);
        let (memory, pool) = (self.memory.clone(), session.pool.clone());
        Ok(Some(Recording::new(Arc::new(Noted { number, memory, pool }))))
    }

    fn replay(&self, recording: &Recording) -> Result<()> {
        let number = self.noted(recording)?.number.lock().unwrap_or_else(PoisonError::into_inner);
        self.driver().replay(*number)
    }

    fn synchronize(&self) -> Result<()> {
        self.at_once("synchronize")?;
        self.driver().synchronize()
    }

    fn memory(&self) -> MemoryReport {
        self.memory.ledger.report().clone()
    }

    fn run_in_pool(&self, work: &mut (dyn FnMut() + Send)) {
        self.workers.enter(work);
    }
}

/// Every CUDA source by name, with the prelude before it.
#[doc(hidden)]
pub fn cuda_sources() -> Vec<(&'static str, String)> {
    let kernels = motley_kernels::ALL.iter().map(|kernel| (kernel.name, kernel.cuda));
    let own = [(product::SOURCE, include_str!("product.cu"))];
    kernels.chain(own).map(|(name, text)| (name, format!("{}{text}", motley_kernels::CUDA_PRELUDE))).collect()
}
