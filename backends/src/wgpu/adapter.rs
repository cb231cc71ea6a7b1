//! Which adapters there are, and what each can do. Nothing is opened for work.

use std::panic::{AssertUnwindSafe, catch_unwind};

use wgpu::{Adapter, AdapterInfo, Backends, DeviceType, Features, Instance, InstanceDescriptor};

use crate::discover::{DeviceDescription, Found, Missing};
use crate::open::{DeviceKind, Precision};
use crate::{Error, Result};

/// Percent of a device's memory at which wgpu refuses allocations, where the driver tells how much there is.
pub(super) const MEMORY_PERCENT_MAX: u8 = 95;

const REMEDY: &str = "install the Vulkan driver of the GPU's vendor and the loader (Debian: libvulkan1); \
    mesa-vulkan-drivers brings those of AMD and Intel, and one that computes on the processor";

/// Every adapter, the likely fastest kinds first. Its place is the index that opens it.
fn adapters() -> Vec<Adapter> {
    let mut descriptor = InstanceDescriptor::new_without_display_handle();
    descriptor.backends = Backends::PRIMARY;
    descriptor.memory_budget_thresholds.for_resource_creation = Some(MEMORY_PERCENT_MAX);
    let mut adapters = pollster::block_on(Instance::new(descriptor).enumerate_adapters(Backends::PRIMARY));
    // Stable: within a kind, adapters stay in the driver's order.
    adapters.sort_by_key(|adapter| match adapter.get_info().device_type {
        DeviceType::DiscreteGpu => 0,
        DeviceType::IntegratedGpu => 1,
        DeviceType::VirtualGpu => 2,
        DeviceType::Other => 3,
        DeviceType::Cpu => 4,
    });
    adapters
}

/// As [`adapters`]; where a driver makes wgpu panic, there are none.
fn adapters_or_none() -> Vec<Adapter> {
    catch_unwind(AssertUnwindSafe(adapters)).unwrap_or_default()
}

/// The adapter of that index.
///
/// # Errors
/// There is none.
pub(super) fn find(index: usize) -> Result<Adapter> {
    let mut adapters = adapters_or_none();
    let reason = match adapters.len() {
        0 => "there is no Vulkan, Metal or DX12 device".to_owned(),
        count if index >= count => format!("there is no device {index}, only {count}"),
        _ => return Ok(adapters.swap_remove(index)),
    };
    let remedy = if adapters.is_empty() { REMEDY.to_owned() } else { "`ctl devices` lists them".to_owned() };
    Err(Error::Unavailable { backend: "wgpu", reason, remedy })
}

pub(crate) fn discover() -> Found {
    let adapters = adapters_or_none();
    let devices: Vec<_> = adapters.iter().enumerate().map(|(i, adapter)| describe(i, adapter)).collect();
    let what = match devices.first() {
        None => Some("a Vulkan, Metal or DX12 device"),
        Some(first) if first.is_software => {
            Some("a Vulkan driver of a GPU: there is one of the processor only")
        }
        Some(_) => None,
    };
    let missing = what.map(|what| Missing { what: what.to_owned(), remedy: REMEDY.to_owned() });
    Found { kind: DeviceKind::Wgpu, devices, missing: missing.into_iter().collect() }
}

fn describe(index: usize, adapter: &Adapter) -> DeviceDescription {
    let info = adapter.get_info();
    DeviceDescription {
        kind: DeviceKind::Wgpu,
        index,
        name: info.name.clone(),
        memory: memory(adapter),
        driver: driver(&info),
        capability: capability(&info, adapter.features()),
        is_software: info.device_type == DeviceType::Cpu,
        precisions: vec![Precision::F32],
    }
}

/// `llvmpipe Mesa 22.3.6 (LLVM 15.0.6)`
pub(super) fn driver(info: &AdapterInfo) -> String {
    format!("{} {}", info.driver, info.driver_info).trim().to_owned()
}

fn capability(info: &AdapterInfo, features: Features) -> String {
    let mut text = format!("{:?}", info.backend);
    if features.contains(Features::SHADER_F16) {
        text += ", f16";
    }
    if features.contains(Features::SUBGROUP) {
        let (least, most) = (info.subgroup_min_size, info.subgroup_max_size);
        text += &match least == most {
            true => format!(", subgroups of {most}"),
            false => format!(", subgroups of {least} to {most}"),
        };
    }
    text
}

/// Bytes of the largest heap on the device.
#[cfg(not(target_vendor = "apple"))]
pub(super) fn memory(adapter: &Adapter) -> Option<u64> {
    const DEVICE_LOCAL: u32 = 1;
    // SAFETY: the adapter is only asked for properties, which nothing of wgpu's state depends on, and the guard lives
    // until the answer is copied.
    let properties = unsafe {
        let vulkan = adapter.as_hal::<wgpu::hal::api::Vulkan>()?;
        let instance = vulkan.shared_instance().raw_instance();
        instance.get_physical_device_memory_properties(vulkan.raw_physical_device())
    };
    let heaps = &properties.memory_heaps[..properties.memory_heap_count as usize];
    let local = heaps.iter().filter(|heap| heap.flags.as_raw() & DEVICE_LOCAL != 0);
    local.map(|heap| heap.size).max()
}

/// Metal does not tell through wgpu.
#[cfg(target_vendor = "apple")]
pub(super) fn memory(_: &Adapter) -> Option<u64> {
    None
}
