//! An opened adapter. What goes wrong on it is kept here and given to the next caller as an error: wgpu reports
//! failures to handlers, some of its calls panic, and neither reaches a caller of this crate.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use wgpu::{BufferUsages, DeviceType, ErrorFilter, Features, PollType};

use super::adapter;
use crate::{Error, Result};

/// What sources use where an adapter offers it. Subgroups not on DX12: their numbers are made up there, by the
/// unspecified assumption that lanes follow one another as threads do.
fn wanted(backend: wgpu::Backend) -> Features {
    match backend {
        wgpu::Backend::Dx12 => Features::SHADER_F16,
        _ => Features::SUBGROUP.union(Features::SHADER_F16),
    }
}

pub(super) struct Gpu {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub limits: wgpu::Limits,
    /// `wgpu:0`
    pub name: String,
    /// Adapter and driver.
    pub description: String,
    pub memory: Option<u64>,
    /// What may be used where nobody says: nearly all memory of a card of its own. Other adapters share the machine's,
    /// and their drivers alone know how much of it.
    pub budget: Option<u64>,
    /// It computes on the processor.
    pub is_software: bool,
    /// Sources may use subgroups.
    pub has_subgroups: bool,
    /// Sources may use f16.
    pub has_f16: bool,
    failure: Arc<Failure>,
}

/// The first thing that went wrong. It stays: what was computed since is not to be trusted.
#[derive(Default)]
struct Failure(Mutex<Option<String>>);

impl Failure {
    /// In one line: wgpu's texts have many.
    fn record(&self, reason: impl FnOnce() -> String) {
        let one_line = || reason().split_whitespace().collect::<Vec<_>>().join(" ");
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(one_line);
    }
}

impl Gpu {
    pub fn open(index: usize) -> Result<Self> {
        let adapter = adapter::find(index)?;
        let (info, limits) = (adapter.get_info(), adapter.limits());
        let required_features = adapter.features() & wanted(info.backend);
        let descriptor = wgpu::DeviceDescriptor {
            required_features,
            required_limits: limits.clone(),
            ..Default::default()
        };
        let name = format!("wgpu:{index}");
        let opened =
            catch_unwind(AssertUnwindSafe(|| pollster::block_on(adapter.request_device(&descriptor))));
        let reason = match opened {
            Ok(Ok((device, queue))) => {
                let description = format!("{} {}", info.name, adapter::driver(&info));
                let is_software = info.device_type == DeviceType::Cpu;
                let (memory, failure) = (adapter::memory(&adapter), Arc::default());
                let is_discrete = info.device_type == DeviceType::DiscreteGpu;
                let percent = u64::from(adapter::MEMORY_PERCENT_MAX);
                let budget = memory.filter(|_| is_discrete).map(|memory| memory / 100 * percent);
                let has_subgroups = required_features.contains(Features::SUBGROUP);
                let has_f16 = required_features.contains(Features::SHADER_F16);
                let gpu = Gpu {
                    device,
                    queue,
                    limits,
                    name,
                    description,
                    memory,
                    budget,
                    is_software,
                    has_subgroups,
                    has_f16,
                    failure,
                };
                gpu.watch();
                return Ok(gpu);
            }
            Ok(Err(error)) => error.to_string(),
            Err(panic) => panic_text(&*panic),
        };
        Err(Error::DeviceFailed { device: name, call: "open", reason })
    }

    fn watch(&self) {
        let failure = self.failure.clone();
        self.device.on_uncaptured_error(Arc::new(move |error| failure.record(|| error.to_string())));
        let failure = self.failure.clone();
        self.device
            .set_device_lost_callback(move |_, text| failure.record(|| format!("device lost: {text}")));
    }

    /// Runs what may fail in wgpu; fails if it did, or anything before it.
    pub fn attempt<R>(&self, call: &'static str, work: impl FnOnce() -> R) -> Result<R> {
        self.check(call)?;
        let result = catch_unwind(AssertUnwindSafe(work));
        if let Err(panic) = &result {
            self.failure.record(|| panic_text(&**panic));
        }
        self.check(call)?;
        result.map_err(|panic| self.failed(call, panic_text(&*panic)))
    }

    pub fn check(&self, call: &'static str) -> Result<()> {
        match &*self.failure.0.lock().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some(reason) => Err(self.failed(call, reason.clone())),
        }
    }

    pub fn failed(&self, call: &'static str, reason: String) -> Error {
        Error::DeviceFailed { device: self.name.clone(), call, reason }
    }

    /// Waits for all that was submitted.
    pub fn wait(&self, call: &'static str) -> Result<()> {
        let polled = self.attempt(call, || self.device.poll(PollType::wait_indefinitely()))?;
        polled.map(|_| ()).map_err(|error| self.failed(call, error.to_string()))
    }

    /// A buffer, or nothing where memory is short.
    pub fn create_buffer(&self, size: u64, usage: BufferUsages) -> Result<Option<wgpu::Buffer>> {
        let descriptor = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
        self.attempt("allocate", || {
            let scope = self.device.push_error_scope(ErrorFilter::OutOfMemory);
            let buffer = self.device.create_buffer(&descriptor);
            pollster::block_on(scope.pop()).is_none().then_some(buffer)
        })
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("wgpu panicked").to_owned()
}
