//! What jobs read and leave behind: files named by their contents, and manifests that list them.
//!
//! A manifest is itself a blob (its JSON), stored after every file it names: whoever can read a manifest
//! can read all of it. Nothing is overwritten in place.

use serde::{Deserialize, Serialize};

use crate::id::{AttemptId, ContentHash, Epoch};
use crate::unit::Bytes;

/// A file by its place and its contents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Relative, `/`-separated, without `..`: under the job's input or output folder.
    pub path: String,
    pub hash: ContentHash,
    pub size: Bytes,
}

/// What a manifest lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArtifactKind {
    /// Everything that a new attempt needs to continue after `step` optimizer steps.
    Checkpoint { step: u64 },
    /// Everything that the job leaves behind.
    Output,
}

/// A set of files that belong together, and who made them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub kind: ArtifactKind,
    pub attempt: AttemptId,
    pub epoch: Epoch,
    /// Sorted by path.
    pub files: Vec<FileEntry>,
}

/// A stored manifest, by the hash of its JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactRef {
    pub kind: ArtifactKind,
    pub manifest: ContentHash,
}
