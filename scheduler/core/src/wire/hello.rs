//! The first exchange on agent, client and bulk connections: versions before anything else.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub version_min: u16,
    pub version_max: u16,
    /// Program version, for people.
    pub build: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HelloReply {
    /// The version both sides use from here on.
    Agreed { version: u16, build: String },
    /// In words, with the remedy.
    Refused { reason: String },
}
