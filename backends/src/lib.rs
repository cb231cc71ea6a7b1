//! Where it is computed: devices behind one trait.
//!
//! `cpu` computes with one pool of threads, `cuda` on NVIDIA cards, `wgpu` on any GPU; `null` computes nothing and counts
//! every byte, which is how memory is planned. A backend knows buffers, weights, products and launches of kernels; it
//! knows no tensor, model or file.

mod backend;
mod buffer;
mod cpu;
mod cuda;
mod discover;
mod error;
#[doc(hidden)]
pub mod faults;
mod memory;
mod null;
mod open;
mod product;
mod recording;
mod weight;
mod wgpu;

pub use backend::{Backend, DeviceInfo, Launch};
pub use buffer::{Buffer, View};
#[doc(hidden)]
pub use cuda::{cuda_sources, open_emulated};
pub use discover::{DeviceDescription, Found, Missing, discover, discover_backend};
pub use error::Error;
pub use memory::{Category, CategoryReport, MemoryReport};
pub use open::{DeviceKind, DeviceRequest, Precision, open};
pub use product::{Direction, Epilogue, Linear, Matmul, Operand};
pub use recording::Recording;
pub use weight::{SourceDtype, Weight, WeightFormat, WeightPart, WeightSource};
#[doc(hidden)]
pub use wgpu::open_plain_wgpu;

/// What a fallible call of this crate gives.
pub type Result<T> = std::result::Result<T, Error>;
