//! The attempt folder from the agent's side: where it lies, and what the agent has done about it.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use motley_scheduler_core::artifact::ArtifactRef;
use motley_scheduler_core::id::AttemptId;
use motley_scheduler_core::wire::agent::Outcome;
use serde::{Deserialize, Serialize};

use crate::runner::RunnerSpec;
use crate::runner::files::{read_json, write_json};
use crate::runner::process::ProcessIdentity;

/// `<state>/attempts/<job>.<number>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AttemptFolder {
    pub(crate) path: PathBuf,
}

/// `agent.json`: what the agent has done, so that after its restart it goes on from there.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The newest checkpoint that is stored.
    pub(crate) checkpoint: Option<ArtifactRef>,
    /// Everything is stored; only the report remains.
    pub(crate) end: Option<End>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct End {
    pub(crate) outcome: Outcome,
    pub(crate) output: Option<ArtifactRef>,
}

impl AttemptFolder {
    pub(crate) fn new(attempts: &Path, attempt: AttemptId) -> Self {
        AttemptFolder { path: attempts.join(attempt.to_string()) }
    }

    /// Every attempt folder that holds a spec. A folder without one was never begun and is removed.
    pub(crate) fn scan(attempts: &Path) -> io::Result<Vec<(AttemptFolder, RunnerSpec)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(attempts)? {
            let folder = AttemptFolder { path: entry?.path() };
            if !folder.path.is_dir() {
                continue;
            }
            match read_json::<RunnerSpec>(&folder.path.join("spec.json")) {
                Ok(Some(spec)) => found.push((folder, spec)),
                Ok(None) => folder.remove(),
                Err(error) => {
                    // Perhaps of another version: kept for whoever wants to look, never run.
                    tracing::error!(folder = %folder.path.display(), %error, "attempt folder cannot be read");
                }
            }
        }
        found.sort_by_key(|(_, spec)| spec.assignment.attempt);
        Ok(found)
    }

    /// Makes the folder, readable by its owner alone, with its spec.
    pub(crate) fn create(&self, spec: &RunnerSpec) -> io::Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::DirBuilder::new().mode(0o700).recursive(true).create(&self.path)?,
        }
        write_json(&self.path.join("spec.json"), spec)
    }

    pub(crate) fn record(&self) -> Record {
        match read_json(&self.path.join("agent.json")) {
            Ok(record) => record.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(folder = %self.path.display(), %error, "agent.json cannot be read: storing again");
                Record::default()
            }
        }
    }

    pub(crate) fn save(&self, record: &Record) -> io::Result<()> {
        write_json(&self.path.join("agent.json"), record)
    }

    pub(crate) fn process(&self) -> Option<ProcessIdentity> {
        read_json(&self.path.join("pid.json")).ok().flatten()
    }

    /// Whether a runner holds the lock of this folder.
    pub(crate) fn is_locked(&self) -> bool {
        let lock = fs::File::options().write(true).open(self.path.join("runner.lock"));
        lock.is_ok_and(|lock| matches!(lock.try_lock(), Err(fs::TryLockError::WouldBlock)))
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.path.join("output.log")
    }

    pub(crate) fn output(&self) -> PathBuf {
        self.path.join("output")
    }

    pub(crate) fn checkpoint(&self, step: u64) -> PathBuf {
        self.path.join("checkpoints").join(format!("step-{step}"))
    }

    /// The newest complete checkpoint. Unfinished ones have other names.
    pub(crate) fn newest_checkpoint(&self) -> Option<u64> {
        let entries = fs::read_dir(self.path.join("checkpoints")).ok()?;
        let step = |entry: fs::DirEntry| {
            let name = entry.file_name();
            let step = name.to_str()?.strip_prefix("step-")?.parse().ok()?;
            entry.file_type().ok()?.is_dir().then_some(step)
        };
        entries.flatten().filter_map(step).max()
    }

    /// Removes the folder and all that is in it. Under its new name nobody takes a half-removed one for an attempt.
    pub(crate) fn remove(&self) {
        let name = self.path.file_name().and_then(|name| name.to_str()).unwrap_or("attempt");
        let doomed = self.path.with_file_name(format!(".ended-{name}"));
        let _ = fs::remove_dir_all(&doomed);
        let result = fs::rename(&self.path, &doomed).and_then(|()| fs::remove_dir_all(&doomed));
        if let Err(error) = result {
            tracing::warn!(folder = %self.path.display(), %error, "attempt folder not removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_complete_checkpoints_count_and_the_highest_step_is_the_newest() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = AttemptFolder { path: temporary.path().join("3.1") };
        assert_eq!(folder.newest_checkpoint(), None);
        for name in ["step-9", "step-10", ".partial-step-11", ".old-step-12", "step-x"] {
            fs::create_dir_all(folder.path.join("checkpoints").join(name)).unwrap();
        }
        fs::write(folder.path.join("checkpoints/step-13"), "a file").unwrap();
        assert_eq!(folder.newest_checkpoint(), Some(10));
        assert_eq!(AttemptFolder::scan(temporary.path()).unwrap(), [], "a folder without spec is no attempt");
        assert!(!folder.path.exists());
    }
}
