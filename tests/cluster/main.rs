//! Suites over real processes: scheduler, agents, runners, real QUIC on loopback, a real store, a small model.

// Helpers of tests, outside of #[test] functions, fail by panicking too.
#![allow(clippy::unwrap_used)]

mod bad_data;
mod bad_input;
mod daemons;
mod embedded;
mod full_disk;
mod jobs;
mod kills;
mod serving;
mod strangers;

/// The program under test.
pub(crate) const CTL: &str = env!("CARGO_BIN_EXE_ctl-under-test");
