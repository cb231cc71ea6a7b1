//! Checkpoints: everything that a new attempt needs to go on as if nothing had happened.
//!
//! ```text
//! checkpoints/step-<n>/
//!   trainer.safetensors   adapter, moments, step
//!   state.json            where data, log and clock stand; of what the training is
//!   log.jsonl             the lines so far
//!   before/scores/...     every example's score before training
//! ```
//!
//! There is no random state: every draw is a function of (seed, step, row). A folder that is named `step-<n>` is
//! complete; it was written under another name, synced and renamed.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::disk::{DiskError, at, write_folder};
use super::log::Interval;

/// `state.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct CheckpointState {
    pub(crate) format: u32,
    /// Optimizer steps done.
    pub(crate) step: u64,
    pub(crate) total_steps: u64,
    /// The begun interval of the log, with the rows and seconds so far.
    pub(crate) interval: Interval,
    /// Instruction set and cache geometry: on another class the same steps give other last bits.
    pub(crate) numerics_class: String,
    pub(crate) origin: Origin,
    pub(crate) history: History,
    /// Results before training, so that they are measured once; their files are in `before/`.
    pub(crate) before: Value,
}

/// What the end report tells of the whole way, over all attempts.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct History {
    pub(crate) truncated_texts: u64,
    pub(crate) first_loss: f64,
    pub(crate) last_loss: f64,
    /// Steps at which later attempts began.
    pub(crate) resumed_at: Vec<u64>,
    /// Every numerics class that computed a part, in order of appearance.
    pub(crate) numerics_classes: Vec<String>,
}

/// What a checkpoint belongs to: it continues nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Origin {
    pub(crate) document_sha256: String,
    pub(crate) data_sha256: String,
    pub(crate) weights_sha256: String,
}

/// A checkpoint as read.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    pub(crate) state: CheckpointState,
    pub(crate) trainer: Vec<u8>,
    pub(crate) log: String,
    /// Files to be restored below the output folder, by relative path.
    pub(crate) before_files: Vec<(String, Vec<u8>)>,
}

/// What is written beside the state.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parts<'a> {
    pub(crate) trainer: &'a [u8],
    pub(crate) log: &'a [u8],
    pub(crate) before_files: &'a [(String, Vec<u8>)],
}

/// A checkpoint that cannot be continued from.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    #[error("{} is not a usable checkpoint: {message}\nhint: resume from an older one, or start anew", path.display())]
    Unusable { path: PathBuf, message: String },
    #[error(
        "the checkpoint belongs to another training: {what} has the SHA-256 {found}, it was made with {expected}\n\
         hint: continue with the same document, data and model, or start anew"
    )]
    OtherTraining { what: &'static str, expected: String, found: String },
}

pub(crate) const FORMAT: u32 = 1;
const FOLDER_PREFIX: &str = "step-";
const TRAINER: &str = "trainer.safetensors";
const STATE: &str = "state.json";
const LOG: &str = "log.jsonl";
const BEFORE: &str = "before";

/// Writes `checkpoints/step-<n>`; it appears complete, or not at all.
pub(crate) fn write(checkpoints: &Path, state: &CheckpointState, parts: &Parts<'_>) -> Result<(), DiskError> {
    let text = serde_json::to_vec_pretty(state).expect("plain data is JSON");
    let folder = checkpoints.join(format!("{FOLDER_PREFIX}{}", state.step));
    let before: Vec<String> = parts.before_files.iter().map(|(path, _)| format!("{BEFORE}/{path}")).collect();
    let mut files = vec![(TRAINER, parts.trainer), (STATE, text.as_slice()), (LOG, parts.log)];
    files.extend(
        before.iter().map(String::as_str).zip(parts.before_files.iter().map(|(_, bytes)| bytes.as_slice())),
    );
    write_folder(&folder, &files)
}

/// Removes all but the newest `keep`. A folder changes its name before it loses files.
pub(crate) fn prune(checkpoints: &Path, keep: usize) -> Result<(), DiskError> {
    let mut steps = steps(checkpoints);
    steps.sort_unstable();
    let surplus = steps.len().saturating_sub(keep.max(1));
    for step in &steps[..surplus] {
        let folder = checkpoints.join(format!("{FOLDER_PREFIX}{step}"));
        let doomed = checkpoints.join(format!(".old-{FOLDER_PREFIX}{step}"));
        fs::rename(&folder, &doomed).and_then(|()| fs::remove_dir_all(&doomed)).map_err(at(&folder))?;
    }
    Ok(())
}

/// The newest complete checkpoint's step.
pub(crate) fn newest(checkpoints: &Path) -> Option<u64> {
    steps(checkpoints).into_iter().max()
}

fn steps(checkpoints: &Path) -> Vec<u64> {
    let entries = fs::read_dir(checkpoints).into_iter().flatten().flatten();
    let number = |name: std::ffi::OsString| name.to_str()?.strip_prefix(FOLDER_PREFIX)?.parse().ok();
    entries.filter_map(|entry| number(entry.file_name())).collect()
}

/// Reads a checkpoint and checks that it belongs to this training.
///
/// # Errors
/// Missing or damaged files, or another document, data or model.
pub(crate) fn read(folder: &Path, origin: &Origin) -> Result<Checkpoint, ResumeError> {
    let unusable = |message: String| ResumeError::Unusable { path: folder.to_path_buf(), message };
    let file = |name: &str| fs::read(folder.join(name)).map_err(|error| unusable(format!("{name}: {error}")));
    let state: CheckpointState =
        serde_json::from_slice(&file(STATE)?).map_err(|error| unusable(format!("{STATE}: {error}")))?;
    if state.format != FORMAT {
        return Err(unusable(format!("format {}, this program reads format {FORMAT}", state.format)));
    }
    for (what, expected, found) in [
        ("the job document", &state.origin.document_sha256, &origin.document_sha256),
        ("the training data", &state.origin.data_sha256, &origin.data_sha256),
        ("the base model", &state.origin.weights_sha256, &origin.weights_sha256),
    ] {
        if expected != found {
            let (expected, found) = (expected.clone(), found.clone());
            return Err(ResumeError::OtherTraining { what, expected, found });
        }
    }
    let log = String::from_utf8(file(LOG)?).map_err(|error| unusable(format!("{LOG}: {error}")))?;
    let before_files = before_files(folder).map_err(|error| unusable(format!("{BEFORE}: {error}")))?;
    Ok(Checkpoint { state, trainer: file(TRAINER)?, log, before_files })
}

/// `before/scores/x.jsonl` as (`scores/x.jsonl`, content), sorted.
fn before_files(folder: &Path) -> std::io::Result<Vec<(String, Vec<u8>)>> {
    let scores = folder.join(BEFORE).join("scores");
    let mut files = Vec::new();
    if scores.is_dir() {
        for entry in fs::read_dir(scores)? {
            let entry = entry?;
            let name = format!("scores/{}", entry.file_name().to_string_lossy());
            files.push((name, fs::read(entry.path())?));
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: Parts<'_> = Parts { trainer: b"", log: b"", before_files: &[] };

    fn origin(data: &str) -> Origin {
        Origin { document_sha256: "d".into(), data_sha256: data.into(), weights_sha256: "w".into() }
    }

    fn state(step: u64) -> CheckpointState {
        CheckpointState {
            format: FORMAT,
            step,
            total_steps: 100,
            // A value whose shortest digits are long.
            interval: Interval { steps: 3, loss_sum: 0.1 + 0.2, ..Interval::default() },
            numerics_class: "cpu-avx512".into(),
            origin: origin("x"),
            history: History { numerics_classes: vec!["cpu-avx512".into()], ..History::default() },
            before: serde_json::json!([{"main_score": 1.0 / 3.0}]),
        }
    }

    #[test]
    fn a_checkpoint_comes_back_to_the_bit() {
        let root = tempfile::tempdir().unwrap();
        let before_files = [("scores/a.before.jsonl".to_owned(), b"scores".to_vec())];
        let parts = Parts { trainer: b"tensors", log: b"line\n", before_files: &before_files };
        write(root.path(), &state(20), &parts).unwrap();
        let got = read(&root.path().join("step-20"), &origin("x")).unwrap();
        assert_eq!(
            (got.state, got.trainer.as_slice(), got.log.as_str()),
            (state(20), &b"tensors"[..], "line\n")
        );
    }

    #[test]
    fn only_the_newest_are_kept() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(newest(root.path()), None);
        for step in [9, 10, 100, 20] {
            write(root.path(), &state(step), &EMPTY).unwrap();
        }
        fs::create_dir(root.path().join(".partial-step-30")).unwrap();
        prune(root.path(), 2).unwrap();
        let mut left = steps(root.path());
        left.sort_unstable();
        assert_eq!((left, newest(root.path())), (vec![20, 100], Some(100)));
        prune(root.path(), 0).unwrap();
        assert_eq!(steps(root.path()), [100], "the last one always stays");
    }

    #[test]
    fn another_training_and_damaged_folders_are_refused() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), &state(20), &EMPTY).unwrap();
        let folder = root.path().join("step-20");
        let message = read(&folder, &origin("y")).unwrap_err().to_string();
        assert!(message.contains("the training data has the SHA-256 y, it was made with x"), "{message}");
        fs::remove_file(folder.join(TRAINER)).unwrap();
        assert!(read(&folder, &origin("x")).unwrap_err().to_string().contains("trainer.safetensors"));
        fs::write(folder.join(STATE), "{").unwrap();
        assert!(matches!(read(&folder, &origin("x")), Err(ResumeError::Unusable { .. })));
    }
}
