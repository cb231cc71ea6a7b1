//! What `report.json` says about a task, in the shape of MTEB's result files, and the file of its examples' scores.
//!
//! ```text
//! {"task_name": "stsb", "dataset_revision": "<sha256 of the data>", "mteb_version": null,
//!  "scores": {"test": [{"main_score": 0.82, "cosine_spearman": 0.82, ..., "hf_subset": "default", "languages": []}]},
//!  "evaluation_time": 1.9, "kg_co2_emissions": null,
//!  "kind": "sts", "main_metric": "cosine_spearman", "interval": {...},
//!  "baseline": {"method": "word_overlap", ...}, "data": {...}, "examples": {...}}
//! ```
//!
//! `main_score` is what MTEB ranks by. People are shown the figure that interval and comparison belong to,
//! `examples.metric`: the same but for pair classification, where MTEB takes the best of several similarities.
//!
//! The first two lines are MTEB's, the rest is ours; MTEB's readers skip what they do not know. But for
//! `evaluation_time` the same run gives the same bytes.

use std::collections::BTreeMap;
use std::path::Path;

use motley_ops::metric::Resampling;
use motley_scheduler_core::document::Task;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::disk::{DiskError, write_atomically};
use super::overlap;
use super::score::{ExampleScore, ResampledMetric, TaskScores};
use super::tasks::TaskData;

/// One task's result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskResult {
    pub task_name: String,
    /// SHA-256 of the data: two results compare only if it is the same.
    pub dataset_revision: String,
    pub mteb_version: Option<String>,
    /// By split; ours is always `test`.
    pub scores: BTreeMap<String, Vec<SplitScores>>,
    /// Seconds.
    pub evaluation_time: f64,
    pub kg_co2_emissions: Option<f64>,
    /// `sts`, `pair_classification` or `retrieval`.
    pub kind: String,
    /// Which figure `main_score` is.
    pub main_metric: String,
    pub(crate) interval: Option<IntervalFacts>,
    /// Absent for retrieval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) baseline: Option<Baseline>,
    pub(crate) data: DataFacts,
    pub(crate) examples: ExamplesFile,
}

/// The figures of one split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SplitScores {
    pub hf_subset: String,
    pub languages: Vec<String>,
    #[serde(flatten)]
    pub metrics: BTreeMap<String, Option<f64>>,
}

/// A bootstrap 95 % interval, and of what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct IntervalFacts {
    pub(crate) metric: ResampledMetric,
    pub(crate) low: f64,
    pub(crate) high: f64,
    pub(crate) resamples: u32,
    pub(crate) seed: u64,
}

/// What the same figure is without any model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Baseline {
    /// `word_overlap`.
    pub(crate) method: String,
    pub(crate) metric: ResampledMetric,
    pub(crate) score: f64,
}

/// A data file or folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct DataFacts {
    /// As the document calls it.
    pub(crate) path: String,
    pub(crate) sha256: String,
    /// Rows; of retrieval sets, judged queries.
    pub(crate) rows: u64,
}

/// A task that was measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured<'a> {
    pub(crate) task: &'a Task,
    pub(crate) data: &'a TaskData,
    pub(crate) scores: &'a TaskScores,
    pub(crate) resampling: Resampling,
    pub(crate) seconds: f64,
}

/// Where the examples' scores are, for paired comparisons.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ExamplesFile {
    /// Relative to the report.
    pub(crate) file: String,
    pub(crate) sha256: String,
    pub(crate) metric: ResampledMetric,
}

impl DataFacts {
    pub(crate) fn of_task(task: &Task, data: &TaskData) -> DataFacts {
        DataFacts { path: task.data.clone(), sha256: data.sha256.to_string(), rows: data.count() as u64 }
    }
}

impl TaskResult {
    /// The figure that people are shown: the one that `interval` is of.
    pub(crate) fn score(&self) -> Option<f64> {
        let split = self.scores.get("test")?.first()?;
        split.metrics.get(self.metric()).copied().flatten()
    }

    /// Name of [`TaskResult::score`].
    pub(crate) fn metric(&self) -> &'static str {
        self.examples.metric.name()
    }

    /// `sts (cosine_spearman)`.
    pub(crate) fn measure(&self) -> String {
        format!("{} ({})", self.kind, self.metric())
    }

    /// Where the examples' scores are, relative to the report.
    pub(crate) fn examples_file(&self) -> &str {
        &self.examples.file
    }

    /// `0.8203 (95 %: 0.8021 to 0.8361)`.
    pub fn summary(&self) -> String {
        let Some(score) = self.score() else { return "no value".to_owned() };
        match &self.interval {
            Some(interval) => format!("{score:.4} (95 %: {:.4} to {:.4})", interval.low, interval.high),
            None => format!("{score:.4}"),
        }
    }
}

/// Writes the examples' scores below `output` and puts the result together. `label` tells results of the same task
/// apart (`before`, `after`); it becomes part of the file's name.
///
/// # Errors
/// The scores cannot be written.
pub(crate) fn task_result(
    measured: &Measured<'_>,
    output: &Path,
    label: &str,
) -> Result<TaskResult, DiskError> {
    let Measured { task, data, scores, resampling, seconds } = *measured;
    let mut lines = Vec::new();
    for example in &scores.examples {
        serde_json::to_writer(&mut lines, example).expect("texts and numbers are JSON");
        lines.push(b'\n');
    }
    let suffix = if label.is_empty() { String::new() } else { format!(".{label}") };
    let file = format!("scores/{}{suffix}.jsonl", task.name);
    let folder = output.join("scores");
    std::fs::create_dir_all(&folder).map_err(super::disk::at(&folder))?;
    write_atomically(&output.join(&file), &lines)?;
    let split = SplitScores {
        hf_subset: "default".to_owned(),
        languages: Vec::new(),
        metrics: scores.metrics.clone(),
    };
    let metric = scores.resampled_metric;
    Ok(TaskResult {
        task_name: task.name.clone(),
        dataset_revision: data.sha256.to_string(),
        mteb_version: None,
        scores: BTreeMap::from([("test".to_owned(), vec![split])]),
        evaluation_time: seconds,
        kg_co2_emissions: None,
        kind: task.kind.name().to_owned(),
        main_metric: scores.main_metric.to_owned(),
        interval: scores.interval.map(|interval| IntervalFacts {
            metric,
            low: interval.low,
            high: interval.high,
            resamples: resampling.resamples,
            seed: resampling.seed,
        }),
        baseline: scores.word_overlap.map(|score| Baseline {
            method: overlap::METHOD.to_owned(),
            metric,
            score,
        }),
        data: DataFacts::of_task(task, data),
        examples: ExamplesFile { file, sha256: sha256_text(&lines), metric },
    })
}

/// The scores that a report's file holds.
pub(crate) fn parse_examples(bytes: &[u8]) -> Result<Vec<ExampleScore>, serde_json::Error> {
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(serde_json::from_slice).collect()
}

pub(crate) fn sha256_text(bytes: &[u8]) -> String {
    motley_scheduler_core::id::ContentHash(Sha256::digest(bytes).into()).to_string()
}
