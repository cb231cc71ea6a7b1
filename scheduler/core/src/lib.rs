//! The deciding half of Motley, pure: no clock, file, socket, thread, environment or randomness, and no hash maps.
//!
//! ```text
//! id, unit      the vocabulary
//! document      job documents: text in, typed out
//! artifact      what jobs read and leave behind: files by content, manifests
//! failure       the one closed list of reasons why an attempt ends badly
//! wire          messages between processes, and their bytes
//! cluster       handle(event, now) -> { changes, actions }
//! place         which job goes where, and why one waits
//! authorize     who may do what
//! ```

#[cfg(fuzzing)]
extern crate self as motley_scheduler_core;

pub mod artifact;
pub mod authorize;
pub mod cluster;
pub mod document;
pub mod failure;
pub mod id;
pub mod place;
pub mod unit;
pub mod wire;
