//! Harness of the suites: the program under test as real processes, state folders that vanish, models and data that
//! need nothing from outside.

pub mod data;
pub mod fleet;
pub mod model;
pub mod process;

use std::path::PathBuf;

/// The root of the checkout.
pub fn repository() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}
