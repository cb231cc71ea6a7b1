//! Conformance: every entry of every kernel and every product, on every device that is here, against the
//! specifications in f64, with bounds that the specifications derive themselves (`bounded.rs`).
//!
//! `--nocapture` shows a table for each device. Needs no file, so that the test binary alone can be carried to a machine
//! with a card. In the environment:
//!
//! ```text
//! MOTLEY_CONFORMANCE=full    texts of 8192 tokens too; on software devices of wgpu larger shapes alone
//! MOTLEY_CONFORMANCE_ONLY=x  only groups that contain x: rows, elements, attention, adapters, losses, decoders, products,
//!                            recordings
//! MOTLEY_BLESS=1             writes the tables into docs/conformance.md
//! ```
//!
//! A new kernel gets its cases in the file of its group; an entry without a case fails.

mod adapters;
mod attention;
mod bounded;
mod decoders;
mod device;
mod elements;
mod emulation;
#[path = "emulation/tests.rs"]
mod emulation_tests;
mod long_texts;
mod losses;
mod mistakes;
mod products;
mod random;
mod recordings;
mod report;
mod rows;

use std::sync::Arc;

use motley_backends::{Backend, DeviceKind, DeviceRequest, Precision, open, open_emulated, open_plain_wgpu};

use device::Device;

type Group = (&'static str, fn(&mut Device<'_>));

const GROUPS: [Group; 8] = [
    ("rows", rows::cases),
    ("elements", elements::cases),
    ("attention", attention::cases),
    ("adapters", adapters::cases),
    ("losses", losses::cases),
    ("decoders", decoders::cases),
    ("products", products::cases),
    ("recordings", recordings::cases),
];

/// More than one tile or block of everything.
const LARGE: [Group; 3] = [
    ("attention", attention::large_cases),
    ("adapters", adapters::large_cases),
    ("products", products::large_cases),
];

/// With `MOTLEY_CONFORMANCE=full`.
const FULL: [Group; 1] = [("attention", long_texts::cases)];

/// Said past the test runner, which keeps the words of a passing test to itself.
fn say(text: &str) {
    let _unsaid = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
}

/// Whether the environment asks for this group.
fn wanted(group: &str) -> bool {
    std::env::var("MOTLEY_CONFORMANCE_ONLY").map_or(true, |only| group.contains(&only))
}

/// Which groups a device gets beside the usual ones.
struct Effort {
    large: bool,
    full: bool,
}

fn all_is_asked_for() -> bool {
    std::env::var("MOTLEY_CONFORMANCE").is_ok_and(|value| value == "full")
}

fn usual() -> Effort {
    Effort { large: true, full: all_is_asked_for() }
}

/// Runs the groups on a device.
fn check(name: &str, backend: &dyn Backend, effort: Effort) {
    let mut device = Device::new(backend);
    let mut groups = GROUPS.to_vec();
    groups.extend(LARGE.iter().filter(|_| effort.large));
    groups.extend(FULL.iter().filter(|_| effort.full));
    for (_, cases) in groups.into_iter().filter(|(group, _)| wanted(group)) {
        cases(&mut device);
    }
    let table = report::table(name, &device);
    say(&format!("\n{table}\n"));
    device.finish();
    if std::env::var_os("MOTLEY_CONFORMANCE_ONLY").is_none() {
        let entries = motley_kernels::ALL.iter().flat_map(|kernel| kernel.entries.iter());
        let missed: Vec<&str> =
            entries.map(|entry| entry.name).filter(|name| !device.seen.contains_key(name)).collect();
        assert!(missed.is_empty(), "entries without a case: {missed:?}");
        report::bless(name, &table);
    }
}

fn request(backend: &str, precision: Precision) -> DeviceRequest {
    DeviceRequest { backend: backend.to_owned(), precision, ..DeviceRequest::default() }
}

/// A device's way to be opened.
type Open = fn(&DeviceRequest) -> motley_backends::Result<Arc<dyn Backend>>;

/// The device, or its absence said aloud.
fn opened(open: Open, request: &DeviceRequest) -> Option<Arc<dyn Backend>> {
    match open(request) {
        Ok(backend) => Some(backend),
        Err(error) => {
            say(&format!("skipped: {} {}: {error}\n", request.backend, request.precision.name()));
            None
        }
    }
}

#[test]
fn the_processor_conforms() {
    check("cpu", &*open(&request("cpu", Precision::F32)).unwrap(), usual());
}

fn check_wgpu(name: &str, open: Open) {
    if let Some(backend) = opened(open, &request("wgpu", Precision::F32)) {
        let found = motley_backends::discover();
        let devices = found.iter().filter(|found| found.kind == DeviceKind::Wgpu).flat_map(|f| &f.devices);
        let is_software = devices.take(1).any(|device| device.is_software);
        let large = !is_software || all_is_asked_for();
        // Its loops end before such texts do, which it refuses.
        let full = !is_software && all_is_asked_for();
        check(name, &*backend, Effort { large, full });
    }
}

#[test]
fn wgpu_conforms() {
    check_wgpu("wgpu", open);
}

#[test]
fn wgpu_conforms_without_what_some_adapters_lack() {
    check_wgpu("wgpu plain", open_plain_wgpu);
}

#[test]
fn cuda_conforms() {
    for precision in [Precision::F32, Precision::Bf16] {
        if let Some(backend) = opened(open, &request("cuda", precision)) {
            check(&format!("cuda {}", precision.name()), &*backend, usual());
        }
    }
}

fn check_emulated(precision: Precision) {
    match emulation::library(precision) {
        Ok(library) => {
            let backend = open_emulated(&library, precision).expect("it was just built");
            // Only over several tiles does a barrier that is missing between them show.
            check(
                &format!("cuda emulated {}", precision.name()),
                &*backend,
                Effort { large: true, full: false },
            );
        }
        Err(emulation::Absence::NoCompiler) => say("skipped: emulated CUDA needs g++ on x86-64\n"),
        Err(emulation::Absence::Broken(problem)) => panic!("{problem}"),
    }
}

#[test]
fn emulated_cuda_conforms_in_f32() {
    check_emulated(Precision::F32);
}

#[test]
fn emulated_cuda_conforms_in_bf16() {
    check_emulated(Precision::Bf16);
}
