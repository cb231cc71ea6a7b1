//! Which devices this machine has and how fast they are, as found by a process of its own.
//!
//! ```text
//! agent, ctl  ──starts──▶  ctl probe-devices --backend cuda --known FILE     one process a backend, one after another
//!             ◀──JSON────  devices, rates, what is missing
//! ```
//!
//! Drivers are opened in the child alone. One that hangs hangs the child, which is left after a deadline: the backend
//! then counts as not there, and the reason is kept. What was measured is stored by device, driver and program, so that
//! a machine is measured once.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use motley_backends::{DeviceDescription, DeviceRequest, Precision};
use motley_scheduler_core::document::BackendKind;
use serde::{Deserialize, Serialize};

use super::choose::device_kind;
use super::measure::{Rates, measure};
use crate::runner::files::{read_json, write_json};

/// What this machine has.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Inventory {
    /// By backend, then index.
    pub devices: Vec<DeviceRecord>,
    /// What backends lack here, and backends that did not answer.
    pub missing: Vec<MissingRecord>,
}

/// A device as its driver describes it, and as it was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceRecord {
    pub backend: BackendKind,
    /// Among the devices of its backend.
    pub index: u32,
    pub name: String,
    /// Bytes; absent where the driver does not tell.
    pub memory: Option<u64>,
    pub driver: String,
    pub capability: String,
    /// Computes on the processor: never taken unless it is asked for.
    pub is_software: bool,
    /// `f32`, `bf16`; the fastest first.
    pub precisions: Vec<String>,
    /// By precision; empty where nothing was measured.
    pub rates: BTreeMap<String, Rates>,
    /// Why it could not be measured.
    pub failure: Option<String>,
}

/// Something that is not there, and how to get it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingRecord {
    pub backend: BackendKind,
    pub what: String,
    pub remedy: String,
}

/// Which devices are measured, where nothing is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    Nothing,
    /// All but software adapters, which are never chosen for speed.
    Hardware,
    Everything,
}

/// How to look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    pub program: PathBuf,
    pub arguments: Vec<OsString>,
    /// File of what was measured.
    pub store: PathBuf,
}

/// A context on a large card takes seconds, compiling kernels for the first time some more.
const DEADLINE: Duration = Duration::from_secs(60);

/// How often a child is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// More than any list of devices.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

impl Probe {
    /// `<this program> probe-devices`.
    ///
    /// # Errors
    /// The path of this program cannot be found out.
    pub fn of_this_program(store: PathBuf) -> std::io::Result<Self> {
        Ok(Probe { program: std::env::current_exe()?, arguments: vec!["probe-devices".into()], store })
    }

    /// Looks at these backends.
    pub fn inventory(&self, backends: &[BackendKind], measure: Measure) -> Inventory {
        let mut inventory = Inventory::default();
        for backend in backends {
            match self.ask(*backend, measure) {
                Ok(part) => {
                    inventory.devices.extend(part.devices);
                    inventory.missing.extend(part.missing);
                }
                Err(what) => inventory.missing.push(MissingRecord {
                    backend: *backend,
                    what,
                    remedy: format!(
                        "`ctl probe-devices --backend {}` shows what its driver does",
                        backend.name()
                    ),
                }),
            }
        }
        if measure != Measure::Nothing {
            // A folder that cannot be written costs a second at the next start, no more.
            if let Err(error) = self.keep(&inventory) {
                tracing::warn!(store = %self.store.display(), %error, "measured rates cannot be kept");
            }
        }
        inventory
    }

    /// As [`Probe::inventory`], for choosing the fastest: nothing is measured where there is no choice.
    pub fn inventory_to_choose(&self, backends: &[BackendKind]) -> Inventory {
        let inventory = self.inventory(backends, Measure::Nothing);
        match inventory.devices.iter().filter(|device| !device.is_software).count() {
            0 | 1 => inventory,
            _ => self.inventory(backends, Measure::Hardware),
        }
    }

    fn ask(&self, backend: BackendKind, measure: Measure) -> Result<Inventory, String> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).args(["--backend", backend.name(), "--json"]);
        command.arg("--known").arg(&self.store);
        match measure {
            Measure::Nothing => {}
            Measure::Hardware => drop(command.args(["--measure", "hardware"])),
            Measure::Everything => drop(command.args(["--measure", "everything"])),
        }
        // Drivers talk on stderr.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command
            .spawn()
            .map_err(|error| format!("the probe of {} did not start: {error}", backend.name()))?;
        let output = child.stdout.take();
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            let read = output.map(|output| output.take(ANSWER_BYTES_MAX).read_to_string(&mut text));
            read.and_then(Result::ok).map(|_| text)
        });
        wait(&mut child, DEADLINE).map_err(|how| format!("the driver of {} {how}", backend.name()))?;
        let text = reader.join().ok().flatten().unwrap_or_default();
        // A driver may have said something before.
        let answer = text.lines().rev().find_map(|line| serde_json::from_str(line).ok());
        answer.ok_or_else(|| format!("the probe of {} gave no answer", backend.name()))
    }

    fn keep(&self, inventory: &Inventory) -> std::io::Result<()> {
        let mut known = read_known(&self.store);
        let before = known.clone();
        for device in &inventory.devices {
            for (precision, rates) in &device.rates {
                known.rates.insert(key(device, precision), *rates);
            }
        }
        if known == before {
            return Ok(());
        }
        if let Some(folder) = self.store.parent() {
            std::fs::create_dir_all(folder)?;
        }
        write_json(&self.store, &known)
    }
}

/// Waits for a good end; a child that is late is killed, and not waited for: in a wedged driver it cannot end.
fn wait(child: &mut Child, deadline: Duration) -> Result<(), String> {
    let began = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(format!("ended its probe with {status}")),
            Err(error) => return Err(format!("could not be waited for: {error}")),
            Ok(None) if began.elapsed() > deadline => {
                let _ = child.kill();
                return Err(format!("did not answer within {} s", deadline.as_secs()));
            }
            Ok(None) => std::thread::sleep(LOOK),
        }
    }
}

/// The child's work: finds the devices of a backend and measures those that nobody has measured.
pub fn probe(backend: BackendKind, wanted: Measure, store: Option<&Path>) -> Inventory {
    let found = motley_backends::discover_backend(device_kind(backend));
    let known = store.map(read_known).unwrap_or_default();
    let devices = found.devices.iter().map(|device| record(backend, device, wanted, &known)).collect();
    let missing = found.missing.into_iter();
    let missing =
        missing.map(|missing| MissingRecord { backend, what: missing.what, remedy: missing.remedy });
    Inventory { devices, missing: missing.collect() }
}

fn record(backend: BackendKind, device: &DeviceDescription, wanted: Measure, known: &Known) -> DeviceRecord {
    let mut record = DeviceRecord {
        backend,
        index: device.index as u32,
        name: device.name.clone(),
        memory: device.memory,
        driver: device.driver.clone(),
        capability: device.capability.clone(),
        is_software: device.is_software,
        precisions: device.precisions.iter().map(|precision| precision.name().to_owned()).collect(),
        rates: BTreeMap::new(),
        failure: None,
    };
    let measured = match wanted {
        Measure::Nothing => false,
        Measure::Hardware => !device.is_software,
        Measure::Everything => true,
    };
    for precision in &device.precisions {
        let name = precision.name();
        let stored = known.rates.get(&key(&record, name)).copied();
        let rates = match (stored, measured) {
            (Some(rates), _) => Some(rates),
            (None, true) => match measured_rates(&record, *precision) {
                Ok(rates) => Some(rates),
                Err(error) => {
                    record.failure = Some(error.to_string());
                    None
                }
            },
            (None, false) => None,
        };
        record.rates.extend(rates.map(|rates| (name.to_owned(), rates)));
    }
    record
}

fn measured_rates(record: &DeviceRecord, precision: Precision) -> motley_backends::Result<Rates> {
    let backend = motley_backends::open(&DeviceRequest {
        backend: record.backend.name().to_owned(),
        index: record.index as usize,
        precision,
        ..DeviceRequest::default()
    })?;
    measure(&backend)
}

impl Inventory {
    /// The fastest device that is no software adapter; among those not measured the first.
    pub fn fastest(&self) -> Option<&DeviceRecord> {
        let able = self.devices.iter().filter(|device| !device.is_software && device.failure.is_none());
        // `max_by` takes the last of equals.
        able.rev().max_by(|a, b| a.speed().total_cmp(&b.speed()))
    }
}

impl DeviceRecord {
    /// `cuda:0`
    pub fn id(&self) -> String {
        format!("{}:{}", self.backend.name(), self.index)
    }

    /// Operations a second in the precision that `precision = "auto"` takes; 0 where nothing was measured.
    pub fn speed(&self) -> f64 {
        self.fastest_rates().gemm
    }

    /// The rates of that precision; zeros where nothing was measured.
    pub fn fastest_rates(&self) -> Rates {
        let bf16 = self.rates.get("bf16").filter(|_| self.backend == BackendKind::Cuda);
        bf16.or(self.rates.get("f32")).copied().unwrap_or_default()
    }
}

/// What was measured on this machine.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
struct Known {
    rates: BTreeMap<String, Rates>,
}

/// A file that cannot be read is as none: everything is measured again.
fn read_known(path: &Path) -> Known {
    read_json(path).ok().flatten().unwrap_or_default()
}

/// Device, driver and program: whatever changes the rates changes the name.
fn key(device: &DeviceRecord, precision: &str) -> String {
    let threads = match device.backend {
        BackendKind::Cpu => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        BackendKind::Cuda | BackendKind::Wgpu => 0,
    };
    let DeviceRecord { name, driver, capability, .. } = device;
    let (backend, version) = (device.backend.name(), env!("CARGO_PKG_VERSION"));
    format!("{backend} {precision} | {name} | {capability} | {driver} | {threads} threads | motley {version}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(backend: BackendKind, index: u32, gemm: f64, is_software: bool) -> DeviceRecord {
        let rates = Rates { gemm, nf4: gemm, bandwidth: 1e9 };
        DeviceRecord {
            backend,
            index,
            name: "x".into(),
            memory: None,
            driver: String::new(),
            capability: String::new(),
            is_software,
            precisions: vec!["f32".into()],
            rates: if gemm > 0.0 { [("f32".to_owned(), rates)].into() } else { BTreeMap::new() },
            failure: None,
        }
    }

    fn shell(script: &str, store: &Path) -> Probe {
        Probe {
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            store: store.to_path_buf(),
        }
    }

    #[test]
    fn the_fastest_is_no_software_adapter_and_the_first_where_none_is_measured() {
        use BackendKind::{Cpu, Cuda, Wgpu};
        let fastest = |devices: Vec<DeviceRecord>| {
            Inventory { devices, ..Inventory::default() }.fastest().map(DeviceRecord::id)
        };
        let software = device(Wgpu, 0, 9e12, true);
        assert_eq!(
            fastest(vec![device(Cuda, 0, 1e12, false), device(Cpu, 0, 2e12, false)]).unwrap(),
            "cpu:0"
        );
        assert_eq!(fastest(vec![software.clone(), device(Cpu, 0, 1e9, false)]).unwrap(), "cpu:0");
        assert_eq!(
            fastest(vec![device(Cuda, 0, 0.0, false), device(Cuda, 1, 0.0, false)]).unwrap(),
            "cuda:0"
        );
        assert_eq!(fastest(vec![software]), None);
        let mut broken = device(Cuda, 0, 1e12, false);
        broken.failure = Some("the driver is older than the library".into());
        assert_eq!(fastest(vec![broken, device(Cpu, 0, 1e9, false)]).unwrap(), "cpu:0");
    }

    #[test]
    fn what_was_measured_is_kept_and_not_measured_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("state/devices.json");
        let measured = device(BackendKind::Cpu, 0, 123.0, false);
        let answer = serde_json::to_string(&Inventory { devices: vec![measured], missing: vec![] }).unwrap();
        let probe = shell(&format!("echo driver talk; echo '{answer}'"), &store);
        let inventory = probe.inventory(&[BackendKind::Cpu], Measure::Hardware);
        assert_eq!(inventory.devices[0].speed(), 123.0);
        let known = read_known(&store);
        assert_eq!(known.rates.len(), 1);
        // The child takes what is stored for the real processor, without measuring.
        let mut real = super::probe(BackendKind::Cpu, Measure::Nothing, Some(&store)).devices.remove(0);
        assert!(real.rates.is_empty() && real.precisions == ["f32"]);
        let stored = Known { rates: [(key(&real, "f32"), Rates { gemm: 7.0, ..Rates::default() })].into() };
        write_json(&store, &stored).unwrap();
        real = super::probe(BackendKind::Cpu, Measure::Hardware, Some(&store)).devices.remove(0);
        assert_eq!(real.speed(), 7.0);
    }

    #[test]
    fn a_driver_that_ends_the_probe_or_says_nothing_is_missing_with_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let missing = |script: &str| {
            let probe = shell(script, &folder.path().join("devices.json"));
            let mut inventory = probe.inventory(&[BackendKind::Cuda], Measure::Hardware);
            assert!(inventory.devices.is_empty());
            inventory.missing.remove(0).what
        };
        assert!(missing("kill -SEGV $$").starts_with("the driver of cuda ended its probe with signal: 11"));
        assert!(missing("echo nonsense").starts_with("the probe of cuda gave no answer"));
        // A driver that hangs: the deadline is the caller's.
        let mut hanging = Command::new("/bin/sh").args(["-c", "exec sleep 600"]).spawn().unwrap();
        let late = wait(&mut hanging, Duration::ZERO).unwrap_err();
        assert_eq!(late, "did not answer within 0 s");
        hanging.wait().unwrap();
    }
}
