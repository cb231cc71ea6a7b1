//! The CPU: one pool of threads, kernels' fast paths, and products by packed panels.

mod dequantize;
mod gemm;
mod matmul;
mod panels;
mod storage;
#[cfg(test)]
mod tests;
mod tile;

use std::sync::Arc;

use motley_kernels::{Access, Call, Slice, Workers, simd};

use self::gemm::{Finish, Product};
use self::matmul::{floats, floats_mut};
use self::panels::{Backward, Forward, PackedWeight, Panels};
use self::storage::{Claim, Shelf};
pub(crate) use self::tile::PANEL;
use crate::backend::{Backend, DeviceInfo, Launch};
use crate::buffer::{Buffer, View};
use crate::discover::{DeviceDescription, Found};
use crate::memory::{Category, Ledger, MemoryReport};
use crate::null::weight_bytes;
use crate::open::{DeviceKind, DeviceRequest, Precision};
use crate::product::{Direction, Epilogue, Linear, Matmul};
use crate::weight::{Weight, WeightSource};
use crate::{Error, Result};

pub(crate) struct Cpu {
    info: DeviceInfo,
    workers: Workers,
    shelf: Arc<Shelf>,
}

/// A packed weight, counted until it is dropped.
struct CountedWeight {
    packed: PackedWeight,
    /// Holds the bytes in the count; the panels themselves lie in `packed`.
    bytes: u64,
    shelf: Arc<Shelf>,
}

impl Drop for CountedWeight {
    fn drop(&mut self) {
        self.shelf.ledger.give_back(self.bytes, Category::Weights);
    }
}

impl Cpu {
    pub fn new(request: &DeviceRequest) -> Result<Self> {
        let available = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let threads = request.threads.unwrap_or_else(available).max(1);
        let workers =
            Workers::new(threads).map_err(|source| Error::Threads { threads, source: Box::new(source) })?;
        let name = format!("cpu:{}", request.index);
        let shelf = Arc::new(Shelf::new(Ledger::new(&name, request.memory_limit)));
        let info = DeviceInfo {
            kind: DeviceKind::Cpu,
            name,
            memory: request.memory_limit,
            threads,
            precision: Precision::F32,
            numerics_class: format!("cpu {} {}", std::env::consts::ARCH, simd::level().name()),
        };
        Ok(Cpu { info, workers, shelf })
    }
}

/// The processor as a device.
pub(crate) fn discover() -> Found {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find(|line| line.starts_with("model name"));
    let name = name.and_then(|line| line.split_once(':')).map(|(_, name)| name.trim().to_owned());
    let device = DeviceDescription {
        kind: DeviceKind::Cpu,
        index: 0,
        name: name.unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        memory: None,
        driver: String::new(),
        capability: format!("{} {}", std::env::consts::ARCH, simd::level().name()),
        is_software: false,
        precisions: vec![Precision::F32],
    };
    Found { kind: DeviceKind::Cpu, devices: vec![device], missing: Vec::new() }
}

impl Backend for Cpu {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn allocate(&self, bytes: usize, category: Category) -> Result<Buffer> {
        self.shelf.buffer(bytes, category, false)
    }

    fn allocate_unfilled(&self, bytes: usize, category: Category) -> Result<Buffer> {
        self.shelf.buffer(bytes, category, true)
    }

    fn upload(&self, source: &[u8], target: View<'_>) -> Result<()> {
        let mut claim = Claim::new("upload", vec![(target.first(source.len(), "upload")?, true)])?;
        if let Some(Slice::Write(bytes)) = claim.slices().pop() {
            bytes.copy_from_slice(source);
        }
        Ok(())
    }

    fn download(&self, source: View<'_>, target: &mut [u8]) -> Result<()> {
        let mut claim = Claim::new("download", vec![(source.first(target.len(), "download")?, false)])?;
        if let Some(Slice::Read(bytes)) = claim.slices().pop() {
            target.copy_from_slice(bytes);
        }
        Ok(())
    }

    fn prepare_weight(&self, source: &WeightSource<'_>) -> Result<Weight> {
        let shape = source.shape()?;
        let bytes = weight_bytes(shape, source);
        self.shelf.take(bytes, Category::Weights)?;
        let packed = PackedWeight::new(source).inspect_err(|_| {
            self.shelf.ledger.give_back(bytes, Category::Weights);
        })?;
        let weight = CountedWeight { packed, bytes, shelf: self.shelf.clone() };
        Ok(Weight::new(shape, source.bias.is_some(), Arc::new(weight)))
    }

    fn read_weight(&self, weight: &Weight) -> Result<Vec<f32>> {
        Ok(weight.inner::<CountedWeight>()?.packed.unpacked())
    }

    fn linear(&self, call: &Linear<'_>) -> Result<()> {
        let weight = &call.weight.inner::<CountedWeight>()?.packed;
        let (input, output) = call.check(Precision::F32)?;
        let [out, width] = weight.shape;
        let bias = weight.bias.as_deref();
        let (bias, activation) = match call.epilogue {
            Epilogue::None => (None, None),
            Epilogue::Bias => (bias, None),
            Epilogue::BiasActivation(kind) => (bias, Some(kind)),
        };
        let (forward, backward) = (Forward(weight), Backward(weight));
        let (right, columns, depth): (&dyn Panels, _, _) = match call.direction {
            Direction::Forward => (&forward, out, width),
            Direction::Backward => (&backward, width, out),
        };
        let mut claim = Claim::new("product", vec![(input, false), (output, true)])?;
        let mut slices = claim.slices().into_iter();
        let mut next = || slices.next().expect("two buffers were claimed");
        let product = Product {
            rows: call.rows,
            columns,
            depth,
            left: floats(next()),
            left_stride: depth,
            right,
            output_stride: columns,
            finish: Finish { alpha: 1.0, beta: if call.accumulate { 1.0 } else { 0.0 }, bias, activation },
        };
        gemm::run(&product, floats_mut(next()), &self.workers);
        Ok(())
    }

    fn matmul(&self, call: &Matmul<'_>) -> Result<()> {
        call.check()?;
        let views = vec![(call.left.view, false), (call.right.view, false), (call.output.view, true)];
        let mut claim = Claim::new("product", views)?;
        matmul::run(call, claim.slices(), &self.workers);
        Ok(())
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        launch.check()?;
        let writes = launch.entry.bindings.iter().map(|binding| binding.access != Access::Read);
        let views = launch.buffers.iter().copied().zip(writes).collect();
        let mut claim = Claim::new(launch.entry.name, views)?;
        (launch.entry.cpu)(&mut Call::new(launch.arguments, claim.slices(), &self.workers));
        Ok(())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn memory(&self) -> MemoryReport {
        self.shelf.ledger.report().clone()
    }

    fn run_in_pool(&self, work: &mut (dyn FnMut() + Send)) {
        self.workers.enter(work);
    }
}
