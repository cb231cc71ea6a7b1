//! `result.json`: how an attempt ended. Its rename into place is the end; without it the runner was lost.

use std::io;
use std::path::Path;

use motley_scheduler_core::wire::agent::Outcome;
use serde::{Deserialize, Serialize};

use super::files::{read_json, write_json};

const NAME: &str = "result.json";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunnerResult {
    pub(crate) outcome: Outcome,
}

impl RunnerResult {
    pub(crate) fn write(&self, folder: &Path) -> io::Result<()> {
        write_json(&folder.join(NAME), self)
    }

    /// `None` when there is none.
    pub(crate) fn read(folder: &Path) -> io::Result<Option<Self>> {
        read_json(&folder.join(NAME))
    }
}
