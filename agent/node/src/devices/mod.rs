//! The devices of this machine: which there are, how fast they are, and which one a job or a command computes on.
//!
//! ```text
//! inventory   what there is, found by a process of its own
//! measure     how fast a device is
//! choose      a backend's name, an index and a precision become an open device
//! ```

pub(crate) mod choose;
pub mod inventory;
pub mod measure;

pub use choose::{DeviceChoice, DeviceError};
pub use inventory::{DeviceRecord, Inventory, Measure, Probe};
