//! Where it is computed: devices behind one trait, [`Backend`].
//!
//! `cpu` computes with kernels' fast paths and its own products; `null` computes nothing and counts everything, so
//! that a model run on it is a memory plan. One instance is one device with one in-order queue.

mod backend;
mod buffer;
pub mod cpu;
mod device;
mod error;
mod memory;
pub mod null;
mod weight;

pub use backend::{Backend, Bound, Direction, Epilogue, Launch, Linear, Matmul};
pub use buffer::Buffer;
pub use device::{DeviceInfo, DeviceKind, DeviceRequest, open};
pub use error::Error;
pub use memory::{Category, MemoryReport, Usage};
pub use weight::{Weight, WeightDtype, WeightFormat, WeightPart, WeightSource};
