//! The backend that computes nothing and counts everything: a model run on it is a memory plan.
//!
//! Calls are checked as on a real device; downloads give zeros.

use std::sync::Arc;

use crate::memory::Ledger;
use crate::{
    Backend, Bound, Buffer, Category, DeviceInfo, DeviceKind, DeviceRequest, Error, Launch, Linear, Matmul,
    MemoryReport, Weight, WeightFormat, WeightSource,
};

/// See the module.
pub struct Null {
    info: DeviceInfo,
    ledger: Arc<Ledger>,
}

/// An allocation that is only a number.
struct Counted {
    bytes: u64,
    category: Category,
    ledger: Arc<Ledger>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.ledger.give(self.bytes, self.category);
    }
}

impl Null {
    pub fn new(request: &DeviceRequest) -> Self {
        let info = DeviceInfo {
            kind: DeviceKind::Null,
            name: "null".into(),
            threads: 0,
            numerics_class: "null".into(),
        };
        Null { info, ledger: Arc::new(Ledger::new(request.memory_bytes_max)) }
    }

    fn count(&self, bytes: usize, category: Category) -> Result<Arc<Counted>, Error> {
        self.ledger.take(bytes as u64, category)?;
        Ok(Arc::new(Counted { bytes: bytes as u64, category, ledger: self.ledger.clone() }))
    }
}

fn check(place: Bound<'_>, bytes: usize, what: &'static str) -> Result<(), Error> {
    let end = place.offset + bytes;
    if end > place.buffer.bytes() {
        return Err(Error::OutOfBounds { what, end, bytes: place.buffer.bytes() });
    }
    Ok(())
}

impl Backend for Null {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn allocate(&self, bytes: usize, category: Category) -> Result<Buffer, Error> {
        Ok(Buffer::new(bytes, self.count(bytes, category)?))
    }

    fn upload(&self, source: &[u8], target: Bound<'_>) -> Result<(), Error> {
        check(target, source.len(), "upload")
    }

    fn download(&self, source: Bound<'_>, target: &mut [u8]) -> Result<(), Error> {
        target.fill(0);
        check(source, target.len(), "download")
    }

    fn prepare_weight(&self, source: &WeightSource<'_>) -> Result<Weight, Error> {
        let shape = source.shape()?;
        let count = shape[0] * shape[1];
        let bytes = match source.format {
            WeightFormat::F32 => count * 4,
            WeightFormat::Nf4 { double_quantization: false } => count / 2 + count / 64 * 4,
            WeightFormat::Nf4 { double_quantization: true } => {
                count / 2 + count / 64 + count / (64 * 256) * 4
            }
        };
        Ok(Weight {
            shape,
            format: source.format,
            inner: self.count(bytes + shape[0] * 4, Category::Weights)?,
        })
    }

    fn read_weight(&self, weight: &Weight) -> Result<Vec<f32>, Error> {
        Ok(vec![0.0; weight.shape[0] * weight.shape[1]])
    }

    fn linear(&self, call: &Linear<'_>) -> Result<(), Error> {
        let [out, input] = call.weight.shape();
        let (from, to) = match call.direction {
            crate::Direction::Forward => (input, out),
            crate::Direction::Backward => (out, input),
        };
        check(call.input, call.rows * from * 4, "linear input")?;
        check(call.output, call.rows * to * 4, "linear output")
    }

    fn matmul(&self, call: &Matmul<'_>) -> Result<(), Error> {
        check(call.a, call.m * call.k * 4, "matmul a")?;
        check(call.b, call.n * call.k * 4, "matmul b")?;
        check(call.c, call.m * call.n * 4, "matmul c")
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<(), Error> {
        crate::cpu::check_launch(launch)
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
        work();
    }
}
