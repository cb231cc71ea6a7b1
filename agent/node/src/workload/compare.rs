//! `ctl evaluate compare A B`: is B worse than A? Paired over the examples that both were measured on.
//!
//! Every task of A must be in B, of the same kind, data and figure: a check that passes because it compared nothing
//! is worse than none. Tasks that B has beyond those of A are left out.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use motley_ops::metric::{Resampling, bootstrap};
use serde::Serialize;

use super::results::{TaskResult, parse_examples, sha256_text};
use super::score::{ExampleScore, ResampledMetric};

/// Two reports, task by task.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    pub tolerance: f64,
    /// Some task of B is below A by more than the tolerance.
    pub worse: bool,
    pub tasks: Vec<TaskComparison>,
}

/// One task that both reports hold.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskComparison {
    pub task: String,
    pub metric: String,
    pub examples: usize,
    pub a: f64,
    pub b: f64,
    /// b − a.
    pub difference: f64,
    /// 95 % interval of the difference, paired over the examples.
    pub low: f64,
    pub high: f64,
    /// Share of resamples in which B is not better.
    pub not_better: f64,
    pub worse: bool,
}

/// Why two reports cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    #[error("{}: {source}\nhint: name a report.json, or the folder that holds it", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is not a report: {message}", path.display())]
    NotAReport { path: PathBuf, message: String },
    #[error("{} was changed: its SHA-256 is not the one in the report\nhint: evaluate again", path.display())]
    Changed { path: PathBuf },
    #[error(
        "the tolerance is {0}, it has to be a finite number from 0\nhint: --tolerance 0.005 allows half a point"
    )]
    Tolerance(f64),
    #[error(
        "report A holds no results to compare with\n\
         hint: name the report of an evaluate job, or of a train job with `[[evaluate]]` tables"
    )]
    NoResults,
    #[error("report B lacks task `{task}` of A; B has {b}\nhint: evaluate both models on the same tasks")]
    MissingTask { task: String, b: String },
    #[error(
        "task `{task}` is {a} in A and {b} in B\n\
         hint: tasks of one name must measure the same; rename one with `name` in its `[[evaluate]]` table"
    )]
    OtherTask { task: String, a: String, b: String },
    #[error(
        "task `{task}` was measured on different data (SHA-256 {a} and {b})\n\
         hint: evaluate both models on the same file"
    )]
    OtherData { task: String, a: String, b: String },
    #[error("task `{task}` has no value to compare")]
    NoValue { task: String },
}

/// Resamples of a comparison.
const RESAMPLING: Resampling = Resampling { resamples: 2000, seed: 42 };

/// Compares the results of two `report.json` (or of the folders that hold one). Of a train report these are the
/// results after training.
///
/// # Errors
/// A tolerance that is none, a report or scores that cannot be read, or tasks that do not match.
pub fn compare(report_a: &Path, report_b: &Path, tolerance: f64) -> Result<Comparison, CompareError> {
    // Not `< 0.0`: NaN must not pass, with it nothing would be worse.
    if !(tolerance.is_finite() && tolerance >= 0.0) {
        return Err(CompareError::Tolerance(tolerance));
    }
    let (a, b) = (Side::read(report_a)?, Side::read(report_b)?);
    if a.results.is_empty() {
        return Err(CompareError::NoResults);
    }
    let mut tasks = Vec::with_capacity(a.results.len());
    for first in &a.results {
        let task = first.task_name.clone();
        let Some(second) = b.results.iter().find(|second| second.task_name == task) else {
            return Err(CompareError::MissingTask { task, b: b.names() });
        };
        if first.kind != second.kind || first.examples.metric != second.examples.metric {
            return Err(CompareError::OtherTask { task, a: first.measure(), b: second.measure() });
        }
        if first.dataset_revision != second.dataset_revision {
            let (a, b) = (first.dataset_revision.clone(), second.dataset_revision.clone());
            return Err(CompareError::OtherData { task, a, b });
        }
        let examples = (a.examples(first)?, b.examples(second)?);
        tasks.push(compare_task(first, &examples.0, &examples.1, tolerance)?);
    }
    Ok(Comparison { tolerance, worse: tasks.iter().any(|task| task.worse), tasks })
}

fn compare_task(
    task: &TaskResult,
    a: &[ExampleScore],
    b: &[ExampleScore],
    tolerance: f64,
) -> Result<TaskComparison, CompareError> {
    let metric: ResampledMetric = task.examples.metric;
    let no_value = || CompareError::NoValue { task: task.task_name.clone() };
    if a.len() != b.len() {
        return Err(no_value());
    }
    let all: Vec<u32> = (0..a.len() as u32).collect();
    let value = |examples| metric.of(examples, &all).ok_or_else(no_value);
    let (value_a, value_b) = (value(a)?, value(b)?);
    let statistic = |indices: &[u32]| metric.of(a, indices).zip(metric.of(b, indices));
    let paired = bootstrap::paired(a.len(), RESAMPLING, statistic).ok_or_else(no_value)?;
    Ok(TaskComparison {
        task: task.task_name.clone(),
        metric: metric.name().to_owned(),
        examples: a.len(),
        a: value_a,
        b: value_b,
        difference: paired.difference,
        low: paired.interval.low,
        high: paired.interval.high,
        not_better: paired.not_better,
        worse: paired.difference < -tolerance,
    })
}

/// One report with its folder.
struct Side {
    folder: PathBuf,
    results: Vec<TaskResult>,
}

impl Side {
    fn read(path: &Path) -> Result<Side, CompareError> {
        let path = if path.is_dir() { path.join("report.json") } else { path.to_path_buf() };
        let text = read(&path)?;
        let bad = |message: String| CompareError::NotAReport { path: path.clone(), message };
        let mut value: serde_json::Value =
            serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        let results =
            serde_json::from_value(value["results"].take()).map_err(|error| bad(error.to_string()))?;
        Ok(Side { folder: path.parent().unwrap_or(Path::new("")).to_path_buf(), results })
    }

    fn examples(&self, task: &TaskResult) -> Result<Vec<ExampleScore>, CompareError> {
        let path = self.folder.join(&task.examples.file);
        let bytes = read(&path)?;
        if sha256_text(&bytes) != task.examples.sha256 {
            return Err(CompareError::Changed { path });
        }
        parse_examples(&bytes).map_err(|error| CompareError::NotAReport { path, message: error.to_string() })
    }

    fn names(&self) -> String {
        let names: Vec<&str> = self.results.iter().map(|result| result.task_name.as_str()).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CompareError> {
    fs::read(path).map_err(|source| CompareError::Read { path: path.to_path_buf(), source })
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for task in &self.tasks {
            writeln!(
                f,
                "{} {}: A {:.4}, B {:.4}, difference {:+.4} (95 %: {:+.4} to {:+.4}, {} examples){}",
                task.task,
                task.metric,
                task.a,
                task.b,
                task.difference,
                task.low,
                task.high,
                task.examples,
                if task.worse { ": worse" } else { "" }
            )?;
        }
        let verdict = if self.worse { "B is worse than A" } else { "B is not worse than A" };
        write!(f, "{verdict} by more than {}", self.tolerance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::results::{Measured, task_result};
    use crate::workload::score::{Side as TextSide, score_task};
    use crate::workload::tasks::TaskData;
    use motley_scheduler_core::document::{Task, TaskKind};

    /// A report of a model whose cosines follow the gold scores but for `noise` degrees.
    fn report(root: &Path, name: &str, noise: u32, rows: u32) -> PathBuf {
        let folder = root.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let row = |row: u32| {
            let gold = row % 90;
            format!("{{\"sentence1\": \"0\", \"sentence2\": \"{gold} {row}\", \"score\": {}}}\n", 90 - gold)
        };
        let data = folder.join("data.jsonl");
        std::fs::write(&data, (0..rows).map(row).collect::<String>()).unwrap();
        let data = TaskData::read(TaskKind::Sts, &data, "data.jsonl").unwrap();
        let embed = &mut |texts: &[&str], _: TextSide| -> Result<Vec<f32>, std::convert::Infallible> {
            let vector = |text: &&str| {
                let mut words = text.split(' ').map(|word| word.parse::<u32>().unwrap());
                let (angle, row) = (words.next().unwrap(), words.next().unwrap_or(0));
                let (sine, cosine) = (f64::from(angle + row * 7 % 11 * noise)).to_radians().sin_cos();
                [cosine as f32, sine as f32]
            };
            Ok(texts.iter().flat_map(vector).collect())
        };
        let resampling = Resampling { resamples: 100, seed: 1 };
        let scores = score_task(&data.examples, resampling, embed).unwrap();
        let task = Task {
            kind: TaskKind::Sts,
            name: "stsb".into(),
            data: "data.jsonl".into(),
            query_prompt: None,
            document_prompt: None,
        };
        let measured = Measured { task: &task, data: &data, scores: &scores, resampling, seconds: 1.0 };
        let result = task_result(&measured, &folder, "").unwrap();
        let report = serde_json::json!({"kind": "evaluate", "results": [result]});
        std::fs::write(folder.join("report.json"), report.to_string()).unwrap();
        folder
    }

    #[test]
    fn a_worse_model_is_told_from_an_equal_one() {
        let root = tempfile::tempdir().unwrap();
        let good = report(root.path(), "good", 0, 200);
        let bad = report(root.path(), "bad", 3, 200);
        let worse = compare(&good, &bad, 0.01).unwrap();
        assert!(worse.worse && worse.tasks[0].high < 0.0 && worse.tasks[0].not_better == 1.0, "{worse:?}");
        assert!(worse.to_string().contains("B is worse than A by more than 0.01"), "{worse}");
        assert!(!compare(&bad, &good.join("report.json"), 0.0).unwrap().worse);
        assert!(!compare(&good, &bad, 0.5).unwrap().worse, "within the tolerance");
        let same = compare(&good, &good, 0.0).unwrap();
        assert!(!same.worse && same.tasks[0].difference == 0.0);
    }

    /// Changes a report where it lies.
    fn edit(folder: &Path, change: impl FnOnce(&mut serde_json::Value)) {
        let path = folder.join("report.json");
        let mut report = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut report);
        std::fs::write(path, report.to_string()).unwrap();
    }

    #[test]
    fn a_comparison_that_would_compare_nothing_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let (one, other) = (report(root.path(), "one", 0, 50), report(root.path(), "other", 3, 50));
        for tolerance in [f64::NAN, f64::INFINITY, -0.1] {
            let error = compare(&one, &other, tolerance).unwrap_err();
            assert!(matches!(error, CompareError::Tolerance(_)), "{error}");
        }
        edit(&one, |report| {
            let mut second = report["results"][0].clone();
            second["task_name"] = "second".into();
            report["results"].as_array_mut().unwrap().push(second);
        });
        let message = compare(&one, &other, 0.5).unwrap_err().to_string();
        assert!(message.starts_with("report B lacks task `second` of A; B has stsb\nhint:"), "{message}");
        assert!(compare(&other, &one, 0.0).is_ok(), "what B has beyond A is left out");
        edit(&other, |report| report["results"][0]["kind"] = "pair_classification".into());
        let message = compare(&other, &one, 0.5).unwrap_err().to_string();
        let said = "task `stsb` is pair_classification (cosine_spearman) in A and sts (cosine_spearman) in B";
        assert!(message.starts_with(said), "{message}");
        edit(&other, |report| report["results"][0]["kind"] = "sts".into());
        edit(&other, |report| report["results"][0]["examples"]["metric"] = "cosine_ap".into());
        assert!(matches!(compare(&other, &one, 0.5), Err(CompareError::OtherTask { .. })));
    }

    #[test]
    fn what_cannot_be_compared_is_said() {
        let root = tempfile::tempdir().unwrap();
        let (one, other) = (report(root.path(), "one", 0, 100), report(root.path(), "other", 0, 101));
        assert!(matches!(compare(&one, &other, 0.0), Err(CompareError::OtherData { .. })));
        assert!(matches!(compare(&one, Path::new("/nowhere"), 0.0), Err(CompareError::Read { .. })));
        std::fs::write(other.join("report.json"), "{\"results\": []}").unwrap();
        assert!(matches!(compare(&one, &other, 0.0), Err(CompareError::MissingTask { .. })));
        assert!(matches!(compare(&other, &one, 0.0), Err(CompareError::NoResults)));
        std::fs::write(other.join("report.json"), "{}").unwrap();
        assert!(matches!(compare(&one, &other, 0.0), Err(CompareError::NotAReport { .. })));
        std::fs::write(one.join("scores/stsb.jsonl"), "").unwrap();
        assert!(matches!(compare(&one, &one, 0.0), Err(CompareError::Changed { .. })));
    }
}
