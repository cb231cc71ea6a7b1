//! Faults on purpose: a device that runs out of memory or is lost at a chosen call, for tests of whoever uses devices.
//!
//! It stands around another backend and hands everything on until then. Nothing in the program makes one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::backend::{Backend, DeviceInfo, Launch};
use crate::buffer::{Buffer, View};
use crate::memory::{Category, MemoryReport};
use crate::product::{Linear, Matmul};
use crate::recording::Recording;
use crate::weight::{Weight, WeightSource};
use crate::{Error, Result};

/// When what fails. Calls are counted from 0, from when the device was made faulty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// This buffer or weight finds no memory; those after it do.
    OutOfMemory { allocation: u64 },
    /// From this product or launch on everything fails that asks the device.
    Lost { launch: u64 },
    /// Launches take no more than so many bytes of a buffer: not a fault, but a limit that few devices have.
    SmallBindings { bytes: u64 },
}

/// `inner` with a fault, under a name of its own.
pub struct Faulty {
    inner: Arc<dyn Backend>,
    info: DeviceInfo,
    fault: Fault,
    allocations: AtomicU64,
    launches: AtomicU64,
}

impl Faulty {
    pub fn new(inner: Arc<dyn Backend>, name: &str, fault: Fault) -> Arc<Faulty> {
        let info = DeviceInfo { name: name.to_owned(), ..inner.info().clone() };
        Arc::new(Faulty { inner, info, fault, allocations: AtomicU64::new(0), launches: AtomicU64::new(0) })
    }

    /// Buffers and weights asked for so far.
    pub fn allocations(&self) -> u64 {
        self.allocations.load(Ordering::SeqCst)
    }

    /// Products and launches asked for so far.
    pub fn launches(&self) -> u64 {
        self.launches.load(Ordering::SeqCst)
    }

    fn allocation(&self, bytes: u64, category: Category) -> Result<()> {
        self.alive("allocate")?;
        let number = self.allocations.fetch_add(1, Ordering::SeqCst);
        match self.fault {
            Fault::OutOfMemory { allocation } if number == allocation => Err(Error::OutOfMemory {
                device: self.info.name.clone(),
                category: category.name(),
                requested: bytes,
                free: 0,
            }),
            _ => Ok(()),
        }
    }

    fn launched(&self, call: &'static str) -> Result<()> {
        self.launches.fetch_add(1, Ordering::SeqCst);
        self.alive(call)
    }

    fn bound(&self, launch: &Launch<'_>) -> Result<()> {
        let largest = launch.buffers.iter().map(|view| view.bytes as u64).max().unwrap_or(0);
        match self.fault {
            Fault::SmallBindings { bytes } if largest > bytes => Err(Error::BindingTooLarge {
                device: self.info.name.clone(),
                what: launch.entry.name,
                bytes: largest,
                limit: bytes,
            }),
            _ => Ok(()),
        }
    }

    fn alive(&self, call: &'static str) -> Result<()> {
        match self.fault {
            Fault::Lost { launch } if self.launches() > launch => Err(Error::DeviceFailed {
                device: self.info.name.clone(),
                call,
                reason: "the device is lost".to_owned(),
            }),
            _ => Ok(()),
        }
    }
}

impl Backend for Faulty {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn binding_limit(&self) -> Option<u64> {
        match self.fault {
            Fault::SmallBindings { bytes } => Some(bytes),
            _ => self.inner.binding_limit(),
        }
    }

    fn allocate(&self, bytes: usize, category: Category) -> Result<Buffer> {
        self.allocation(bytes as u64, category)?;
        self.inner.allocate(bytes, category)
    }

    fn allocate_unfilled(&self, bytes: usize, category: Category) -> Result<Buffer> {
        self.allocation(bytes as u64, category)?;
        self.inner.allocate_unfilled(bytes, category)
    }

    fn upload(&self, source: &[u8], target: View<'_>) -> Result<()> {
        self.alive("upload")?;
        self.inner.upload(source, target)
    }

    fn download(&self, source: View<'_>, target: &mut [u8]) -> Result<()> {
        self.alive("download")?;
        self.inner.download(source, target)
    }

    fn prepare_weight(&self, source: &WeightSource<'_>) -> Result<Weight> {
        self.allocation(0, Category::Weights)?;
        self.inner.prepare_weight(source)
    }

    fn read_weight(&self, weight: &Weight) -> Result<Vec<f32>> {
        self.alive("read_weight")?;
        self.inner.read_weight(weight)
    }

    fn linear(&self, call: &Linear<'_>) -> Result<()> {
        self.launched("product")?;
        self.inner.linear(call)
    }

    fn matmul(&self, call: &Matmul<'_>) -> Result<()> {
        self.launched("product")?;
        self.inner.matmul(call)
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        self.launched(launch.entry.name)?;
        self.bound(launch)?;
        self.inner.launch(launch)
    }

    fn record(&self, shared: Option<&Recording>, work: &mut dyn FnMut()) -> Result<Option<Recording>> {
        self.alive("record")?;
        self.inner.record(shared, work)
    }

    fn replay(&self, recording: &Recording) -> Result<()> {
        self.launched("replay")?;
        self.inner.replay(recording)
    }

    fn synchronize(&self) -> Result<()> {
        self.alive("synchronize")?;
        self.inner.synchronize()
    }

    fn memory(&self) -> MemoryReport {
        self.inner.memory()
    }

    fn run_in_pool(&self, work: &mut (dyn FnMut() + Send)) {
        self.inner.run_in_pool(work);
    }
}
