//! What can go wrong on a device.

use crate::memory::Size;

/// One variant for each thing that a caller could do differently.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "{category} needs {} more on {device}, {} are free\nhint: raise the memory limit, or take smaller batches",
        Size(*requested), Size(*free)
    )]
    OutOfMemory { device: String, category: &'static str, requested: u64, free: u64 },

    #[error(
        "{device} failed at {call}: {reason}\nhint: the driver's log tells more (dmesg); other devices are untouched"
    )]
    DeviceFailed { device: String, call: &'static str, reason: String },

    #[error("backend {backend} cannot be used: {reason}\nhint: {remedy}")]
    Unavailable { backend: &'static str, reason: String, remedy: String },

    #[error("{device} keeps no activations in {precision}\nhint: use precision f32")]
    Precision { device: String, precision: &'static str },

    #[error(
        "{what} binds {bytes} bytes at once, {device} takes {limit}\nhint: take smaller batches, or a device that binds more"
    )]
    BindingTooLarge { device: String, what: &'static str, bytes: u64, limit: u64 },

    #[error(
        "{what} would take {rounds} rounds of loops on {device}, which computes on the processor and ends them at {most}\n\
         hint: take shorter texts or smaller batches, or another device: the cpu is faster than this one"
    )]
    TooManyRounds { device: String, what: &'static str, rounds: u64, most: u64 },

    #[error("unknown backend {name}\nhint: backends are cuda, wgpu, cpu and null")]
    UnknownBackend { name: String },

    #[error("{threads} worker threads could not be started: {source}")]
    Threads { threads: usize, source: Box<dyn std::error::Error + Send + Sync> },

    #[error("{what} needs bytes {start}..{end} of a buffer of {length}")]
    OutOfBounds { what: &'static str, start: usize, end: usize, length: usize },

    #[error("{what} starts at byte {offset}, which is not a multiple of 4")]
    Misaligned { what: &'static str, offset: usize },

    #[error("{entry} takes {wanted} {what}, {given} were given")]
    Launch { entry: &'static str, what: &'static str, wanted: usize, given: usize },

    #[error("{what} writes memory that the same call uses elsewhere")]
    Overlap { what: &'static str },

    #[error("{what} uses a buffer that another thread's call is writing, or writes one that it is using")]
    Busy { what: &'static str },

    #[error("{what} cannot be recorded: it happens once, and not when the recording is run")]
    Recorded { what: &'static str },

    #[error("{what} was made by another backend")]
    Foreign { what: &'static str },

    /// Row-major element of one part of a [`crate::WeightSource`].
    #[error("element {element} of part {part} of a weight is {value}, NF4 has codes for finite values alone")]
    NonFinite { part: usize, element: usize, value: f32 },

    #[error("weight {problem}: {given} where {wanted} is needed")]
    Weight { problem: &'static str, wanted: usize, given: usize },
}
