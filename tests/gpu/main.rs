//! Suites that need an accelerator. Backends for accelerators are not part of this version, so that what would be
//! tested is named and skipped aloud.

// Helpers of tests, outside of #[test] functions, fail by panicking too.
#![allow(clippy::unwrap_used)]

/// What awaits an accelerator backend.
const WAITING: [&str; 3] = [
    "parity of every kernel with its reference on cuda and wgpu",
    "training of the reference runs on cuda and wgpu",
    "embedding throughput against the peer's published share of the matrix rate",
];

#[test]
fn what_needs_an_accelerator_is_said_to_be_skipped() {
    let driver = std::path::Path::new("/proc/driver/nvidia/version").exists();
    let why =
        if driver { "a driver is there, this version has no backend for it" } else { "no accelerator here" };
    for what in WAITING {
        motley_tests::say_skipped(&format!("{what} ({why})"));
    }
}
