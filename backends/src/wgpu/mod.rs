//! Any GPU with Vulkan, Metal or DX12, through wgpu: kernels and products in WGSL, weights resident in f32 or NF4.
//!
//! ```text
//! adapter   which there are          gpu       an opened one, and what went wrong on it
//! storage   memory                   recorder  commands, gathered into submissions
//! pipeline  compiled entries         operand   from views to bindings
//! weight    frozen matrices          product   what is multiplied
//! right     how a factor is stored        steps     what software devices would cut short
//! ```

mod adapter;
mod gpu;
mod operand;
mod pipeline;
mod product;
mod recorder;
mod right;
mod steps;
mod storage;
#[cfg(test)]
mod tests;
mod weight;

use std::sync::{Arc, OnceLock};

use motley_kernels::{Access, Workers, nf4};

pub(crate) use self::adapter::discover;
use self::gpu::Gpu;
use self::operand::{Binder, Operand, VECTOR, storage as storage_of};
use self::pipeline::Pipelines;
use self::product::Way;
use self::recorder::Recorder;
use self::storage::Shelf;
use self::weight::DeviceWeight;
pub(crate) use self::weight::{WORKSPACE_BYTES_MAX, resident_dtype};
use crate::backend::{Backend, DeviceInfo, Launch};
use crate::buffer::{Buffer, View};
use crate::memory::{Category, MemoryReport};
use crate::open::{DeviceKind, DeviceRequest, Precision};
use crate::product::{Linear, Matmul};
use crate::weight::{Weight, WeightSource};
use crate::{Error, Result};

pub(crate) struct Wgpu {
    info: DeviceInfo,
    workers: Workers,
    gpu: Arc<Gpu>,
    recorder: Arc<Recorder>,
    shelf: Arc<Shelf>,
    binder: Binder,
    pipelines: Pipelines,
    way: Way,
    /// From their first use on.
    nf4_tables: OnceLock<Buffer>,
    /// Whether the device reads f16 as they are, from the first time that it matters on.
    reads_f16: OnceLock<bool>,
}

pub(crate) fn open(request: &DeviceRequest) -> Result<Arc<dyn Backend>> {
    Ok(Arc::new(Wgpu::new(request)?))
}

/// As [`open`], without what an adapter may or may not offer: shows on one that offers it that all is well without.
///
/// # Errors
/// As [`open`].
pub fn open_plain_wgpu(request: &DeviceRequest) -> Result<Arc<dyn Backend>> {
    let mut gpu = Gpu::open(request.index)?;
    (gpu.has_subgroups, gpu.has_f16) = (false, false);
    Ok(Arc::new(Wgpu::on(gpu, request)?))
}

impl Wgpu {
    fn new(request: &DeviceRequest) -> Result<Self> {
        if request.precision != Precision::F32 {
            let (device, precision) = (format!("wgpu:{}", request.index), request.precision.name());
            return Err(Error::Precision { device, precision });
        }
        Self::on(Gpu::open(request.index)?, request)
    }

    fn on(gpu: Gpu, request: &DeviceRequest) -> Result<Self> {
        let available = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let threads = request.threads.unwrap_or_else(available).max(1);
        let workers =
            Workers::new(threads).map_err(|source| Error::Threads { threads, source: Box::new(source) })?;
        let gpu = Arc::new(gpu);
        let way = if gpu.is_software { Way::Plain } else { Way::Tiled };
        let limit = request.memory_limit.or(gpu.budget);
        let recorder = Arc::new(Recorder::new(gpu.clone())?);
        let shelf = Arc::new(Shelf::new(gpu.clone(), recorder.clone(), limit));
        let binder = Binder::new(gpu.clone(), recorder.clone(), shelf.clone())?;
        let reductions = if gpu.has_subgroups { " subgroups" } else { "" };
        let info = DeviceInfo {
            kind: DeviceKind::Wgpu,
            name: gpu.name.clone(),
            memory: request.memory_limit.or(gpu.memory),
            threads,
            precision: Precision::F32,
            numerics_class: format!("wgpu {} {}{reductions}", gpu.description, way.name()),
        };
        let pipelines = Pipelines::new(gpu.clone());
        let (nf4_tables, reads_f16) = (OnceLock::new(), OnceLock::new());
        Ok(Wgpu { info, workers, gpu, recorder, shelf, binder, pipelines, way, nf4_tables, reads_f16 })
    }

    /// What kernel nf4 calls `map`, and behind it the values of its codes.
    fn nf4_tables(&self) -> Result<&Buffer> {
        if let Some(tables) = self.nf4_tables.get() {
            return Ok(tables);
        }
        let values = [&nf4::dynamic_map()[..], &nf4::CODE].concat();
        let bytes: &[u8] = bytemuck::cast_slice(&values);
        let made = self.shelf.own(bytes.len())?;
        self.upload(bytes, made.all())?;
        Ok(self.nf4_tables.get_or_init(|| made))
    }

    /// # Errors
    /// This device would cut the loops short, and say nothing.
    fn check_rounds(&self, what: &'static str, rounds: u64) -> Result<()> {
        if rounds <= steps::MOST || !self.gpu.is_software {
            return Ok(());
        }
        Err(Error::TooManyRounds { device: self.gpu.name.clone(), what, rounds, most: steps::MOST })
    }

    /// How much of a buffer one binding holds, in whole vectors.
    fn binding_bytes(&self) -> u64 {
        let limits = &self.gpu.limits;
        let most = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
        // Room for what a view begins behind an aligned offset.
        (most - self.binder.alignment()) & !(VECTOR - 1)
    }
}

impl Backend for Wgpu {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn binding_limit(&self) -> Option<u64> {
        Some(self.binding_bytes())
    }

    fn allocate(&self, bytes: usize, category: Category) -> Result<Buffer> {
        self.shelf.buffer(bytes, category, false)
    }

    fn allocate_unfilled(&self, bytes: usize, category: Category) -> Result<Buffer> {
        self.shelf.buffer(bytes, category, true)
    }

    fn upload(&self, source: &[u8], target: View<'_>) -> Result<()> {
        let target = target.first(source.len(), "upload")?;
        let (buffer, offset) = (&storage_of(target.buffer, "upload")?.buffer, target.offset as u64);
        let words = source.len() & !3;
        if words > 0 {
            self.recorder.upload(&source[..words], buffer, offset)?;
        }
        // What follows in the last word stays.
        let rest = &source[words..];
        if !rest.is_empty() {
            let (offset, mut word) = (offset + words as u64, [0; 4]);
            self.recorder.download(buffer, offset, &mut word)?;
            word[..rest.len()].copy_from_slice(rest);
            self.recorder.upload(&word, buffer, offset)?;
        }
        Ok(())
    }

    fn download(&self, source: View<'_>, target: &mut [u8]) -> Result<()> {
        let source = source.first(target.len(), "download")?;
        let buffer = &storage_of(source.buffer, "download")?.buffer;
        self.recorder.download(buffer, source.offset as u64, target)
    }

    fn prepare_weight(&self, source: &WeightSource<'_>) -> Result<Weight> {
        let shape = source.shape()?;
        let weight = DeviceWeight::new(self, source, self.binding_bytes())?;
        Ok(Weight::new(shape, source.bias.is_some(), Arc::new(weight)))
    }

    fn read_weight(&self, weight: &Weight) -> Result<Vec<f32>> {
        weight.inner::<DeviceWeight>()?.read(self)
    }

    fn linear(&self, call: &Linear<'_>) -> Result<()> {
        product::linear(self, call, call.weight.inner()?)
    }

    fn matmul(&self, call: &Matmul<'_>) -> Result<()> {
        product::matmul(self, call)
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        launch.check()?;
        let entry = launch.entry;
        self.check_rounds(entry.name, steps::of_entry(entry, launch.arguments))?;
        let operands: Vec<_> = std::iter::zip(launch.buffers, entry.bindings)
            .map(|(view, binding)| Operand {
                view: *view,
                writes: binding.access != Access::Read,
                shifts: false,
            })
            .collect();
        let bindings = self.binder.bind(entry.name, &operands)?;
        let pipeline = self.pipelines.of_entry(entry, launch.arguments)?;
        let workgroups = (entry.wgsl)(launch.arguments);
        self.recorder.dispatch(&pipeline, &bindings.bound, launch.arguments, workgroups)?;
        self.binder.finish(entry.name, &bindings)
    }

    fn synchronize(&self) -> Result<()> {
        self.recorder.flush()?;
        self.gpu.wait("synchronize")
    }

    fn memory(&self) -> MemoryReport {
        self.shelf.ledger.report().clone()
    }

    fn run_in_pool(&self, work: &mut (dyn FnMut() + Send)) {
        self.workers.enter(work);
    }
}
