//! Where the results of `ctl run` go.

use std::fs::{File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use motley_agent_node::serve::DrainReport;
use motley_scheduler_core::artifact::{ArtifactKind, ArtifactRef};

use super::sweeper::remove_empty;
use crate::failure::Failure;
use crate::fleet::pull;
use crate::output::Output;

/// Numbers tried behind the default name before the user is asked to choose.
const NUMBERS_MAX: u32 = 1000;

/// An empty folder that is this run's alone, from before the job starts until its results are in the place.
///
/// What it guards is a lock on the folder itself, so that it ends with the process and leaves no file.
pub(super) struct Reserved {
    folder: PathBuf,
    /// Folders that were made for it, innermost first.
    made: Vec<PathBuf>,
    /// Held, never read.
    _lock: Option<File>,
}

impl Reserved {
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn made(&self) -> &[PathBuf] {
        &self.made
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        remove_empty(&self.made);
    }
}

/// The folder that the user named, or the first free one of `./<job>-output`, `./<job>-output-2`, ...
pub(super) fn reserve(named: Option<PathBuf>, job_name: &str, output: &Output) -> Result<Reserved, Failure> {
    if let Some(folder) = named {
        pull::check_free(&folder)?;
        return take(&folder)?.ok_or_else(|| {
            Failure::usage(format!("{} is being filled by another run", folder.display()))
                .hint("name another folder with --output")
        });
    }
    for number in 1..=NUMBERS_MAX {
        let folder = match number {
            1 => PathBuf::from(format!("{job_name}-output")),
            _ => PathBuf::from(format!("{job_name}-output-{number}")),
        };
        if pull::check_free(&folder).is_err() {
            continue;
        }
        if let Some(reserved) = take(&folder)? {
            if number > 1 {
                let place = folder.display();
                output.talk(&format!("{job_name}-output is in use: the results go to {place}"));
            }
            return Ok(reserved);
        }
    }
    Err(Failure::usage(format!("{NUMBERS_MAX} folders {job_name}-output-N are in use"))
        .hint("name a folder with --output"))
}

/// Makes and locks the folder, and tries whether results can be put there; `None` when another run has it.
fn take(folder: &Path) -> Result<Option<Reserved>, Failure> {
    let failed = |error: std::io::Error| pull::cannot_write(folder, &error);
    let absolute = std::path::absolute(folder).map_err(failed)?;
    let made = absolute.ancestors().take_while(|each| !each.exists()).map(Path::to_path_buf).collect();
    let mut reserved = Reserved { folder: folder.to_path_buf(), made, _lock: None };
    std::fs::create_dir_all(folder).map_err(failed)?;
    let lock = File::open(folder).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            // Made at the same moment by the run that has it.
            reserved.made.clear();
            return Ok(None);
        }
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    // A run that ended a moment ago may have put its results there, or removed what is locked now.
    let locked = lock.metadata().map_err(failed)?;
    let is_this = std::fs::metadata(folder).is_ok_and(|there| there.ino() == locked.ino());
    if !is_this || pull::check_free(folder).is_err() {
        return Ok(None);
    }
    pull::check_sibling(folder)?;
    reserved._lock = Some(lock);
    Ok(Some(reserved))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_belongs_to_one_run_and_vanishes_when_it_stays_empty() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("a/b");
        let output = Output { json: true, terminal: false };
        let reserve = || reserve(Some(folder.clone()), "job", &output);
        let first = reserve().unwrap();
        assert!(folder.is_dir());
        assert_eq!(reserve().err().unwrap().exit.code(), 2);
        drop(first);
        assert!(!home.path().join("a").exists());
        let second = reserve().unwrap();
        std::fs::write(folder.join("report.json"), "{}").unwrap();
        drop(second);
        assert!(folder.join("report.json").is_file());
        assert!(reserve().is_err());
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let output = Output { json: true, terminal: false };
        for folder in [file.join("x"), file.clone()] {
            assert!(reserve(Some(folder), "job", &output).is_err());
        }
    }
}
