//! What NVIDIA devices and libraries this machine has.

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use crate::discover::{DeviceDescription, Found, Missing};
use crate::open::{DeviceKind, Precision};
use crate::{Error, Result};

const DRIVER_REMEDY: &str =
    "install the NVIDIA driver, 525 or newer (in a container: run it with the NVIDIA runtime)";

/// # Errors
/// There is no driver.
pub(super) fn driver_is_there() -> Result<()> {
    // SAFETY: opens the library by name and closes it again; it has no other effect.
    if unsafe { sys::is_culib_present() } {
        return Ok(());
    }
    Err(Error::Unavailable {
        backend: "cuda",
        reason: "libcuda is not on this machine".to_owned(),
        remedy: DRIVER_REMEDY.to_owned(),
    })
}

/// (9, 0) of sm_90.
pub(super) fn capability(device: sys::CUdevice) -> std::result::Result<(i32, i32), DriverError> {
    use sys::CUdevice_attribute_enum as Attribute;
    let ask = |attribute| {
        // SAFETY: the device came from the driver.
        unsafe { result::device::get_attribute(device, attribute) }
    };
    Ok((
        ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    ))
}

pub(crate) fn discover() -> Found {
    let mut found = Found { kind: DeviceKind::Cuda, devices: Vec::new(), missing: Vec::new() };
    if driver_is_there().is_err() {
        found.missing.push(missing("the NVIDIA driver (libcuda)", DRIVER_REMEDY));
        return found;
    }
    match devices() {
        Ok(devices) => found.devices = devices,
        Err(error) => {
            let what = format!("a device that the NVIDIA driver can use ({:?})", error.0);
            found.missing.push(missing(&what, "see whether nvidia-smi lists a device"));
        }
    }
    if !super::compile::nvrtc_is_there() {
        let what = "NVRTC (libnvrtc): the shipped PTX serves instead, compiled by the driver at first use";
        found.missing.push(missing_library(what, "NVRTC", "libnvrtc", is_loadable));
    }
    if !super::library::is_there() {
        let what = "cuBLASLt (libcublasLt): own products serve instead, slower";
        found.missing.push(missing_library(what, "cuBLAS", "libcublasLt", is_loadable));
    }
    found
}

/// Of a library that was not found: under the name of CUDA 13 it may be there all the same, where the link that
/// development packages bring is not.
fn missing_library(what: &str, product: &str, library: &str, is_there: impl Fn(&str) -> bool) -> Missing {
    let newer = format!("{library}.so.13");
    if !is_there(&newer) {
        let remedy = format!("install CUDA 12's {product}, or put its folder into LD_LIBRARY_PATH");
        return missing(what, &remedy);
    }
    missing(
        &format!("{what} ({newer} is here, and is not looked for by that name)"),
        &format!(
            "install CUDA 12's {product} beside it, or put a folder with a link {library}.so to it into \
             LD_LIBRARY_PATH"
        ),
    )
}

fn is_loadable(name: &str) -> bool {
    // SAFETY: NVIDIA's libraries do nothing when they are opened, and nothing of this one is called.
    unsafe { libloading::Library::new(name) }.is_ok()
}

fn devices() -> std::result::Result<Vec<DeviceDescription>, DriverError> {
    result::init()?;
    let mut driver = 0;
    // SAFETY: writes one integer.
    unsafe { sys::cuDriverGetVersion(&mut driver) }.result()?;
    let mut devices = Vec::new();
    for index in 0..result::device::get_count()? {
        let device = result::device::get(index)?;
        let (major, minor) = capability(device)?;
        // SAFETY: the device came from the driver.
        let memory = unsafe { result::device::total_mem(device) }?;
        devices.push(DeviceDescription {
            kind: DeviceKind::Cuda,
            index: index as usize,
            name: result::device::get_name(device)?,
            memory: Some(memory as u64),
            driver: driver_version(driver),
            capability: format!("sm_{major}{minor}"),
            is_software: false,
            precisions: if major >= 8 { vec![Precision::Bf16, Precision::F32] } else { vec![Precision::F32] },
        });
    }
    Ok(devices)
}

/// The kernel module's version where the system tells, else the CUDA version that the driver supports.
fn driver_version(cuda: i32) -> String {
    let cuda = format!("CUDA {}.{}", cuda / 1000, cuda % 1000 / 10);
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    let version = text
        .split_whitespace()
        .find(|word| word.matches('.').count() >= 1 && word.starts_with(|c: char| c.is_ascii_digit()));
    version.map_or(cuda.clone(), |version| format!("{version} ({cuda})"))
}

fn missing(what: &str, remedy: &str) -> Missing {
    Missing { what: what.to_owned(), remedy: remedy.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_here_under_a_newer_name_is_named() {
        let absent = missing_library("NVRTC: slower", "NVRTC", "libnvrtc", |_| false);
        assert_eq!(absent.what, "NVRTC: slower");
        assert!(absent.remedy.starts_with("install CUDA 12's NVRTC, or put its folder"), "{absent:?}");
        let newer = missing_library("NVRTC: slower", "NVRTC", "libnvrtc", |name| name == "libnvrtc.so.13");
        assert!(newer.what.contains("(libnvrtc.so.13 is here"), "{newer:?}");
        assert!(newer.remedy.contains("a link libnvrtc.so to it"), "{newer:?}");
        assert!(!is_loadable("libnvrtc.so.99"));
    }
}
