//! The node: the agent, the runner processes it starts, the model store, and what jobs do.
//!
//! ```text
//! agent      joins, connects, reports, obeys; one task for each attempt
//! attempts   an attempt from its assignment to the recorded end, as the agent sees it
//! transfer   blobs and manifests between the scheduler and this disk
//! uplink     the way to the scheduler
//! runner     the process that does one attempt: its shell around a workload
//! workload   train, evaluate, serve
//! serve      the HTTP interface of serving jobs
//! text       from texts to token ids
//! models     the model store
//! devices    which devices there are, how fast they are, and which one is opened
//! failure    every error of a workload, as one of the closed list of reasons
//! ```
//!
//! Agent and runner share an attempt folder and nothing else, so that either survives the other.

pub mod agent;
mod attempts;
pub mod devices;
mod error;
pub mod failure;
pub mod models;
pub mod runner;
pub mod serve;
pub mod settings;
pub mod text;
mod transfer;
mod uplink;
pub mod workload;

pub use agent::{Agent, AgentHandle};
pub use error::NodeError;
pub use runner::runner_main;
pub use settings::{AgentConfig, DeviceSearch, NodeSettings, RunnerCommand};
