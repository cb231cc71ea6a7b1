//! Harness of the suites: the program under test as real processes, state folders that vanish, models and data that
//! need nothing from outside.

pub mod data;
pub mod fleet;
pub mod model;
pub mod process;
pub mod serving;

use std::io::Write;
use std::path::PathBuf;

/// The root of the checkout.
pub fn repository() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Says on stderr that a check does nothing, and why. Written past the test runner, which keeps the words of a passing
/// test to itself.
pub fn say_skipped(what: &str) {
    let _unsaid = writeln!(std::io::stderr(), "skipped: {what}");
}
