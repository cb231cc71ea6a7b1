//! Copying what a job left behind into a folder: manifests first, then every file by content, verified.
//!
//! The folder appears complete or not at all: everything goes into a sibling `.partial` folder that is renamed last.

use std::path::{Component, Path, PathBuf};

use motley_scheduler_core::artifact::{ArtifactKind, ArtifactRef, Manifest};
use motley_scheduler_core::id::JobId;
use motley_scheduler_core::unit::Bytes;
use motley_scheduler_core::wire::client::{FromClient, ToClient};
use motley_scheduler_link::Bulk;
use serde_json::json;

use super::{Fleet, unexpected};
use crate::arguments::{Common, PullArguments};
use crate::failure::Failure;
use crate::output::Output;

/// A manifest lists at most some ten thousand files of some hundred bytes each.
const MANIFEST_MAX: Bytes = Bytes::from_mebibytes(16);

pub async fn pull(common: &Common, arguments: PullArguments, output: &Output) -> Result<(), Failure> {
    let fleet = Fleet::open(common).await?;
    check_free(&arguments.folder)?;
    let artifacts = artifacts(&fleet, arguments.job).await?;
    let chosen = choose(&artifacts, arguments.checkpoint).ok_or_else(|| nothing(&arguments))?;
    let pulled = into_folder(&fleet, &[(chosen, PathBuf::new())], &arguments.folder).await?;
    output.data(
        || format!("{} files, {} in {}", pulled.files, pulled.size, arguments.folder.display()),
        || {
            json!({
                "job": arguments.job.0,
                "folder": arguments.folder,
                "files": pulled.files,
                "bytes": pulled.size.0,
                "artifact": crate::output::view::artifact_json(&chosen),
            })
        },
    );
    Ok(())
}

fn nothing(arguments: &PullArguments) -> Failure {
    let what = if arguments.checkpoint { "no checkpoint" } else { "no results" };
    let failure = Failure::not_found(format!("job {} has {what}", arguments.job));
    match arguments.checkpoint {
        true => failure.hint("checkpoints are written as `[checkpoint] every` says"),
        false => {
            failure.hint("results are there once the job has succeeded; --checkpoint takes the newest state")
        }
    }
}

fn choose(artifacts: &[ArtifactRef], checkpoint: bool) -> Option<ArtifactRef> {
    let matches =
        |artifact: &&ArtifactRef| matches!(artifact.kind, ArtifactKind::Checkpoint { .. }) == checkpoint;
    artifacts.iter().rev().find(matches).copied()
}

/// Output and checkpoints of a job, as far as there are any.
pub async fn artifacts(fleet: &Fleet, job: JobId) -> Result<Vec<ArtifactRef>, Failure> {
    match fleet.ask(FromClient::Artifacts { job }).await? {
        ToClient::Artifacts(artifacts) => Ok(artifacts),
        other => Err(unexpected(&other)),
    }
}

/// What was copied.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pulled {
    pub files: usize,
    pub size: Bytes,
}

/// A folder that may be filled: absent or empty.
pub fn check_free(folder: &Path) -> Result<(), Failure> {
    let used = std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
    if used {
        return Err(Failure::usage(format!("{} is not empty", folder.display()))
            .hint("name a new folder, or remove that one first: results are never overwritten"));
    }
    if folder.exists() && !folder.is_dir() {
        return Err(Failure::usage(format!("{} is no folder", folder.display())));
    }
    Ok(())
}

/// Tries whether the folder's sibling, in which results are gathered, can be made.
pub fn check_sibling(folder: &Path) -> Result<(), Failure> {
    let partial = partial_of(folder)?;
    let failed = |error: std::io::Error| cannot_write(&partial, &error);
    std::fs::create_dir(&partial).map_err(failed)?;
    std::fs::remove_dir(&partial).map_err(failed)
}

/// Copies artifacts below `folder`, each into its own place there, and makes them visible all at once.
pub async fn into_folder(
    fleet: &Fleet,
    artifacts: &[(ArtifactRef, PathBuf)],
    folder: &Path,
) -> Result<Pulled, Failure> {
    check_free(folder)?;
    let partial = partial_of(folder)?;
    let result = fill(fleet, artifacts, &partial).await.and_then(|pulled| {
        if folder.exists() {
            std::fs::remove_dir(folder).map_err(|error| cannot_write(folder, &error))?;
        }
        std::fs::rename(&partial, folder).map_err(|error| cannot_write(folder, &error))?;
        Ok(pulled)
    });
    if result.is_err()
        && let Err(error) = std::fs::remove_dir_all(&partial)
    {
        tracing::debug!(folder = %partial.display(), %error, "partial folder stays");
    }
    result
}

fn partial_of(folder: &Path) -> Result<PathBuf, Failure> {
    let name = folder.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = name.ok_or_else(|| Failure::usage(format!("{} names no new folder", folder.display())))?;
    Ok(folder.with_file_name(format!(".{name}.partial-{}", std::process::id())))
}

async fn fill(
    fleet: &Fleet,
    artifacts: &[(ArtifactRef, PathBuf)],
    partial: &Path,
) -> Result<Pulled, Failure> {
    std::fs::create_dir_all(partial).map_err(|error| cannot_write(partial, &error))?;
    let bulk = fleet.bulk().await?;
    let mut pulled = Pulled::default();
    for (artifact, place) in artifacts {
        let manifest = manifest(&bulk, artifact).await?;
        for file in &manifest.files {
            let path = partial.join(place).join(safe_relative(&file.path)?);
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent).map_err(|error| cannot_write(parent, &error))?;
            }
            let size = bulk.download(file.hash, &path).await?;
            pulled.files += 1;
            pulled.size = Bytes(pulled.size.0 + size.0);
        }
    }
    bulk.close().await;
    Ok(pulled)
}

async fn manifest(bulk: &Bulk, artifact: &ArtifactRef) -> Result<Manifest, Failure> {
    let bytes = bulk.download_bytes(artifact.manifest, MANIFEST_MAX).await?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Failure::failed(format!("manifest {} cannot be read: {error}", artifact.manifest)))
}

/// The path as it stands in a manifest, refused if it would leave the folder.
fn safe_relative(path: &str) -> Result<&Path, Failure> {
    let plain = |component| matches!(component, Component::Normal(_));
    let relative = Path::new(path);
    match !path.is_empty() && !path.contains('\\') && relative.components().all(plain) {
        true => Ok(relative),
        false => Err(Failure::failed(format!("a manifest names the path `{path}`, which is refused"))),
    }
}

pub fn cannot_write(path: &Path, error: &std::io::Error) -> Failure {
    Failure::failed(format!("cannot write {}: {error}", path.display()))
        .hint("check the free space and the permissions there")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_manifests_cannot_leave_the_folder() {
        for path in ["adapter/adapter_config.json", "report.json"] {
            assert!(safe_relative(path).is_ok(), "{path}");
        }
        for path in ["", "/etc/passwd", "../x", "a/../../x", "a\\..\\x"] {
            assert!(safe_relative(path).is_err(), "{path}");
        }
    }

    #[test]
    fn a_folder_with_something_in_it_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        assert!(check_free(folder.path()).is_ok());
        assert!(check_free(&folder.path().join("new")).is_ok());
        std::fs::write(folder.path().join("precious"), "x").unwrap();
        assert_eq!(check_free(folder.path()).unwrap_err().exit.code(), 2);
    }
}
