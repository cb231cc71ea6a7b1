//! The device that computes nothing and counts every byte: a model run on it is its memory plan.

use std::any::Any;
use std::sync::Arc;

use crate::Result;
use crate::backend::{Backend, DeviceInfo, Launch};
use crate::buffer::{Buffer, View};
use crate::memory::{Category, Ledger, MemoryReport};
use crate::open::{DeviceKind, DeviceRequest};
use crate::product::{Linear, Matmul};
use crate::recording::{Pool, Recorder, Recording};
use crate::weight::{Weight, WeightFormat, WeightSource};

pub(crate) struct Null {
    info: DeviceInfo,
    ledger: Arc<Ledger>,
    recorder: Recorder<Counted>,
    stands_for: DeviceKind,
    binding_limit: Option<u64>,
}

struct NullWeight {
    _counted: Arc<dyn Any + Send + Sync>,
    /// What a product takes while it runs.
    workspace: u64,
}

/// Bytes counted until they are dropped.
struct Counted {
    bytes: u64,
    category: Category,
    ledger: Arc<Ledger>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.ledger.give_back(self.bytes, self.category);
    }
}

impl Null {
    pub fn new(request: &DeviceRequest) -> Self {
        let name = format!("null:{}", request.index);
        let ledger = Arc::new(Ledger::new(&name, request.memory_limit));
        let info = DeviceInfo {
            kind: DeviceKind::Null,
            name,
            memory: request.memory_limit,
            threads: 0,
            precision: request.precision,
            numerics_class: "none".to_owned(),
        };
        let stands_for = request.stands_for.unwrap_or(DeviceKind::Cpu);
        let binding_limit = request.binding_limit;
        Null { info, ledger, recorder: Recorder::default(), stands_for, binding_limit }
    }

    /// Bytes of a buffer; where a recording is made, of those that recordings share.
    fn count(&self, bytes: u64, category: Category) -> Result<Arc<dyn Any + Send + Sync>> {
        let count = || -> Result<Counted> {
            self.ledger.take(bytes, category)?;
            Ok(Counted { bytes, category, ledger: self.ledger.clone() })
        };
        Ok(match self.recorder.pool() {
            None => Arc::new(count()?),
            Some(pool) => Arc::new(pool.lend(bytes as usize, count)?),
        })
    }
}

impl Backend for Null {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn binding_limit(&self) -> Option<u64> {
        self.binding_limit
    }

    fn allocate(&self, bytes: usize, category: Category) -> Result<Buffer> {
        Ok(Buffer::new(bytes, self.count(bytes as u64, category)?))
    }

    fn allocate_unfilled(&self, bytes: usize, category: Category) -> Result<Buffer> {
        self.allocate(bytes, category)
    }

    fn upload(&self, source: &[u8], target: View<'_>) -> Result<()> {
        target.first(source.len(), "upload").map(|_| ())
    }

    /// Gives zeros.
    fn download(&self, source: View<'_>, target: &mut [u8]) -> Result<()> {
        source.first(target.len(), "download")?;
        target.fill(0);
        Ok(())
    }

    fn prepare_weight(&self, source: &WeightSource<'_>) -> Result<Weight> {
        let [out, width] = source.shape_without_bytes()?;
        let precision = self.info.precision.bytes();
        let (bytes, workspace) = match (self.stands_for, source.format) {
            (DeviceKind::Cuda, WeightFormat::Nf4 { .. }) => {
                (rows_bytes(source, precision), (out * width * precision) as u64)
            }
            (DeviceKind::Wgpu, WeightFormat::Nf4 { .. }) => {
                let workspace = (out * width * precision) as u64;
                (rows_bytes(source, precision), workspace.min(crate::wgpu::WORKSPACE_BYTES_MAX))
            }
            (DeviceKind::Wgpu, WeightFormat::F32) => {
                let biases = source.bias.map_or(0, |bias| bias.len() * precision);
                let values = out * width * crate::wgpu::resident_dtype(source).bytes();
                ((values + biases) as u64, 0)
            }
            (DeviceKind::Cuda, WeightFormat::F32) => (rows_bytes(source, precision), 0),
            (DeviceKind::Cpu | DeviceKind::Null, _) => (weight_bytes([out, width], source), 0),
        };
        let weight = NullWeight { _counted: self.count(bytes, Category::Weights)?, workspace };
        Ok(Weight::new([out, width], source.bias.is_some(), Arc::new(weight)))
    }

    /// Gives zeros.
    fn read_weight(&self, weight: &Weight) -> Result<Vec<f32>> {
        weight.inner::<NullWeight>()?;
        Ok(vec![0.0; weight.shape()[0] * weight.shape()[1]])
    }

    fn linear(&self, call: &Linear<'_>) -> Result<()> {
        call.check(self.info.precision)?;
        let workspace = call.weight.inner::<NullWeight>()?.workspace;
        self.count(workspace, Category::Workspace).map(|_| ())
    }

    fn matmul(&self, call: &Matmul<'_>) -> Result<()> {
        call.check()
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        launch.check()
    }

    fn record(&self, shared: Option<&Recording>, work: &mut dyn FnMut()) -> Result<Option<Recording>> {
        if self.stands_for != DeviceKind::Cuda {
            return Ok(None);
        }
        let shared = shared.map(Recording::inner_shared::<Pool<Counted>>).transpose()?;
        let Some(session) = self.recorder.begin(shared) else { return Ok(None) };
        work();
        Ok(Some(Recording::new(session.pool.clone())))
    }

    fn replay(&self, recording: &Recording) -> Result<()> {
        recording.inner::<Pool<Counted>>().map(|_| ())
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn memory(&self) -> MemoryReport {
        self.ledger.report().clone()
    }

    fn run_in_pool(&self, work: &mut (dyn FnMut() + Send)) {
        work();
    }
}

/// What a prepared weight holds on the CPU: panels of whole registers, scales, bias.
pub(crate) fn weight_bytes([out, width]: [usize; 2], source: &WeightSource<'_>) -> u64 {
    let elements = (out.next_multiple_of(crate::cpu::PANEL) * width) as u64;
    let bias = source.bias.map_or(0, |bias| bias.len() as u64 * 4);
    let values = match source.format {
        WeightFormat::F32 => elements * 4,
        WeightFormat::Nf4 { double_quantization } => elements / 2 + scale_bytes(source, double_quantization),
    };
    values + bias
}

/// What a prepared weight holds where it lies as rows: values or codes, scales, bias.
fn rows_bytes(source: &WeightSource<'_>, precision: usize) -> u64 {
    let counts = || source.parts.iter().map(|part| part.shape[0] * part.shape[1]);
    let bias = source.bias.map_or(0, |bias| bias.len() * precision);
    let values = match source.format {
        WeightFormat::F32 => counts().sum::<usize>() as u64 * precision as u64,
        WeightFormat::Nf4 { double_quantization } => {
            counts().map(|count| count.div_ceil(2)).sum::<usize>() as u64
                + scale_bytes(source, double_quantization)
        }
    };
    values + bias as u64
}

fn scale_bytes(source: &WeightSource<'_>, double_quantization: bool) -> u64 {
    let blocks = source.parts.iter().map(|p| (p.shape[0] * p.shape[1]).div_ceil(64) as u64);
    let scales =
        |count: u64| if double_quantization { count + count.div_ceil(256) * 4 + 4 } else { count * 4 };
    blocks.map(scales).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn everything_is_counted_and_given_back() {
        let null = Null::new(&DeviceRequest { memory_limit: Some(1000), ..Default::default() });
        let buffer = null.allocate(600, Category::Activations).unwrap();
        assert!(matches!(
            null.allocate(500, Category::Activations),
            Err(Error::OutOfMemory { free: 400, .. })
        ));
        let mut bytes = [1; 8];
        null.download(buffer.all(), &mut bytes).unwrap();
        assert_eq!(bytes, [0; 8]);
        drop(buffer);
        assert_eq!((null.memory().live, null.memory().peak), (0, 600));
    }
}
