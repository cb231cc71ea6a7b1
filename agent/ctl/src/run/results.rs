//! Where the results of `ctl run` go.

use std::path::{Path, PathBuf};

use motley_agent_node::serve::DrainReport;
use motley_scheduler_core::artifact::{ArtifactKind, ArtifactRef};

use crate::failure::Failure;
use crate::fleet::pull;

/// Numbers tried behind the default name before the user is asked to choose.
const NUMBERS_MAX: u32 = 1000;

/// The folder that the user named, or the first free one of `./<job>-output`, `./<job>-output-2`, ...
pub(super) fn folder(named: Option<PathBuf>, job_name: &str) -> Result<PathBuf, Failure> {
    if let Some(folder) = named {
        pull::check_free(&folder)?;
        return Ok(folder);
    }
    let candidate = |number: u32| match number {
        1 => PathBuf::from(format!("{job_name}-output")),
        _ => PathBuf::from(format!("{job_name}-output-{number}")),
    };
    let is_free = |folder: &PathBuf| pull::check_free(folder).is_ok();
    (1..=NUMBERS_MAX).map(candidate).find(is_free).ok_or_else(|| {
        Failure::usage(format!("{NUMBERS_MAX} folders {job_name}-output-N are in use"))
            .hint("name a folder with --output")
    })
}

/// How a server ended; nothing when it was killed.
pub(super) fn drained(folder: &Path) -> Option<DrainReport> {
    serde_json::from_slice(&std::fs::read(folder.join(DrainReport::FILE)).ok()?).ok()
}

/// Results at the top, checkpoints below `checkpoints/step-<n>`.
pub(super) fn places(artifacts: &[ArtifactRef]) -> Vec<(ArtifactRef, PathBuf)> {
    let place = |artifact: &ArtifactRef| match artifact.kind {
        ArtifactKind::Output => PathBuf::new(),
        ArtifactKind::Checkpoint { step } => Path::new("checkpoints").join(format!("step-{step}")),
    };
    artifacts.iter().map(|artifact| (*artifact, place(artifact))).collect()
}
