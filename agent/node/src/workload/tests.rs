//! Jobs on the real model, without agent and scheduler around them.
//!
//! They need `MOTLEY_TEST_MODEL`, a folder with all-MiniLM-L6-v2, and some the data beside the repository; what is
//! absent is said, and the test passes.

use std::path::{Path, PathBuf};

use motley_scheduler_core::document::{BackendKind, Document};
use motley_scheduler_core::id::{AttemptId, Epoch, JobId};
use motley_scheduler_core::unit::{Bytes, Span};
use motley_scheduler_core::wire::agent::Assignment;
use serde_json::Value;

use crate::models::ModelSettings;
use crate::runner::{Context, Folders, Reporter, RunnerSpec, StopFlag};
use crate::settings::NodeSettings;

mod decoder;
mod evaluating;
mod exhausted;
mod exporting;
mod training;

/// The real model's folder.
pub(super) fn model_folder() -> Option<PathBuf> {
    let folder = std::env::var_os("MOTLEY_TEST_MODEL").map(PathBuf::from);
    if folder.is_none() {
        crate::text::say_skipped("MOTLEY_TEST_MODEL names no model folder");
    }
    folder
}

/// A file of the data beside the repository.
pub(super) fn shared(path: &str) -> Option<PathBuf> {
    let root = std::env::var_os("MOTLEY_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"), PathBuf::from);
    let path = root.join(path);
    if path.exists() {
        return Some(path);
    }
    crate::text::say_skipped(&format!("{} is absent", path.display()));
    None
}

/// An attempt's folder, and what runs in it.
pub(super) struct Attempt {
    pub(super) root: tempfile::TempDir,
    pub(super) context: Context,
}

impl Attempt {
    /// Lays out an attempt for a document; `files` are (path below `input/`, file or folder to be found there).
    pub(super) fn new(document: &str, files: &[(&str, &Path)]) -> Attempt {
        let root = tempfile::tempdir().unwrap();
        for (place, source) in files {
            let place = root.path().join("input").join(place);
            std::fs::create_dir_all(place.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(source.canonicalize().unwrap(), place).unwrap();
        }
        for name in ["input", "inputs", "checkpoints", "output"] {
            std::fs::create_dir_all(root.path().join(name)).unwrap();
        }
        let cache = root.path().join("cache");
        let parsed = Document::parse(document).unwrap();
        let assignment = Assignment {
            attempt: AttemptId { job: JobId(1), number: 1 },
            epoch: Epoch(1),
            name: parsed.name.clone(),
            document: document.to_owned(),
            files: Vec::new(),
            device: 0,
            backend: BackendKind::Cpu,
            memory: Bytes(0),
            inputs: Vec::new(),
            resume: None,
            lease: Span::from_seconds(600),
        };
        let spec = RunnerSpec {
            assignment,
            device_index: 0,
            node: "here".into(),
            threads: 2,
            keep_running: Span::from_seconds(600),
            settings: NodeSettings { models: ModelSettings::from_environment(cache.clone()) },
            nonce: "n".into(),
            embedded: None,
        };
        let context = Context {
            spec,
            document: parsed,
            folders: Folders::new(root.path(), &cache),
            reporter: Reporter::open(&root.path().join("events.jsonl")).unwrap(),
            stop: StopFlag::new(),
        };
        Attempt { root, context }
    }

    /// Goes on from a checkpoint of another attempt.
    pub(super) fn resume_from(&mut self, checkpoint: &Path) {
        let place = self.root.path().join("resume");
        std::os::unix::fs::symlink(checkpoint, &place).unwrap();
        self.context.folders.resume = Some(place);
    }

    pub(super) fn run(&self) -> Result<(), super::WorkloadError> {
        super::run(&self.context)
    }

    pub(super) fn output(&self, path: &str) -> PathBuf {
        self.context.folders.output.join(path)
    }

    pub(super) fn read(&self, path: &str) -> Vec<u8> {
        std::fs::read(self.output(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    pub(super) fn report(&self) -> Value {
        serde_json::from_slice(&self.read("report.json")).unwrap()
    }
}

/// A result's figure in a report.
pub(super) fn score(report: &Value, place: &str, name: &str) -> f64 {
    let metrics = report.pointer(place).unwrap_or_else(|| panic!("{place} is not in {report:#}"));
    metrics["scores"]["test"][0][name].as_f64().unwrap_or_else(|| panic!("{name} is not in {metrics:#}"))
}

/// The first `rows` lines of a file, in a file of their own.
pub(super) fn head(path: &Path, rows: usize) -> tempfile::NamedTempFile {
    let text = std::fs::read_to_string(path).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let lines: Vec<&str> = text.lines().take(rows).collect();
    std::fs::write(file.path(), lines.join("\n")).unwrap();
    file
}
