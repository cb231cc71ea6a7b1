//! `log.jsonl` and the TensorBoard curves beside it.
//!
//! ```text
//! {"step": 20, "loss": 3.41, "gradient_norm": 0.8, "learning_rate": 4.6e-4, "epoch": 0.11, "rows": [320, 640],
//!  "tokens_per_second": 5120.3, "seconds": 12.9}
//! {"step": 180, "epoch": 1.0, "validation": {"cosine_spearman": 0.871}, "seconds": 98.1}
//! ```
//!
//! A line covers the steps since the line before: `loss` is their mean, `rows` the half-open range of rows taken,
//! counted from the start of training. Read one after another the ranges join without gap or overlap, over
//! interruptions too: a checkpoint carries the lines and the begun interval.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::disk::{DiskError, at};
use super::tensorboard::{EventFile, Scalar};

/// What one optimizer step has to say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct StepFacts {
    /// From 1.
    pub(crate) step: u64,
    pub(crate) loss: f64,
    pub(crate) gradient_norm: f64,
    pub(crate) learning_rate: f64,
    /// Epochs done after this step.
    pub(crate) epoch: f64,
    pub(crate) rows: u64,
    pub(crate) tokens: u64,
    /// Seconds that the step took.
    pub(crate) took: f64,
}

/// The interval since the last line.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Interval {
    pub(crate) steps: u64,
    pub(crate) loss_sum: f64,
    pub(crate) rows_from: u64,
    pub(crate) rows_to: u64,
    pub(crate) tokens: u64,
    pub(crate) took: f64,
    /// Seconds of training before and in this interval, over all attempts.
    pub(crate) seconds: f64,
    /// Tokens likewise.
    pub(crate) tokens_total: u64,
}

/// The open log of a training.
#[derive(Debug)]
pub(crate) struct TrainLog {
    path: PathBuf,
    file: File,
    events: EventFile,
    every: u64,
    total_steps: u64,
    interval: Interval,
}

impl TrainLog {
    /// Begins a log in `output`, or goes on with the lines and the interval of a checkpoint.
    pub(crate) fn begin(
        output: &Path,
        every: u64,
        total_steps: u64,
        before: Option<(&str, Interval)>,
    ) -> Result<TrainLog, DiskError> {
        fs::create_dir_all(output).map_err(at(output))?;
        let path = output.join("log.jsonl");
        let (lines, interval) = before.unwrap_or(("", Interval::default()));
        fs::write(&path, lines).map_err(at(&path))?;
        let file = File::options().append(true).open(&path).map_err(at(&path))?;
        let folder = output.join("tensorboard");
        let events = EventFile::create(&folder, wall_time()).map_err(at(&folder))?;
        let mut log = TrainLog { path, file, events, every: every.max(1), total_steps, interval };
        for line in lines.lines().filter_map(|line| serde_json::from_str(line).ok()) {
            log.draw(&line)?;
        }
        Ok(log)
    }

    /// Takes a step in; gives the line when one is due: at the first, every `every`-th and the last step.
    pub(crate) fn step(&mut self, facts: &StepFacts) -> Result<Option<Value>, DiskError> {
        let interval = &mut self.interval;
        interval.steps += 1;
        interval.loss_sum += facts.loss;
        interval.rows_to += facts.rows;
        interval.tokens += facts.tokens;
        interval.tokens_total += facts.tokens;
        interval.took += facts.took;
        interval.seconds += facts.took;
        let due = facts.step == 1 || facts.step.is_multiple_of(self.every) || facts.step == self.total_steps;
        if !due {
            return Ok(None);
        }
        let line = json!({
            "step": facts.step,
            "loss": interval.loss_sum / interval.steps as f64,
            "gradient_norm": facts.gradient_norm,
            "learning_rate": facts.learning_rate,
            "epoch": facts.epoch,
            "rows": [interval.rows_from, interval.rows_to],
            "tokens_per_second": interval.tokens as f64 / interval.took.max(1e-9),
            "seconds": interval.seconds,
        });
        let Interval { rows_to, seconds, tokens_total, .. } = *interval;
        self.interval =
            Interval { rows_from: rows_to, rows_to, seconds, tokens_total, ..Interval::default() };
        self.append(&line)?;
        Ok(Some(line))
    }

    /// A line about the validation data after step `step`.
    pub(crate) fn validation(&mut self, step: u64, epoch: f64, metrics: Value) -> Result<(), DiskError> {
        let seconds = self.interval.seconds;
        self.append(&json!({"step": step, "epoch": epoch, "validation": metrics, "seconds": seconds}))
    }

    pub(crate) fn interval(&self) -> Interval {
        self.interval
    }

    /// All lines so far, for a checkpoint.
    pub(crate) fn lines(&self) -> Result<Vec<u8>, DiskError> {
        fs::read(&self.path).map_err(at(&self.path))
    }

    fn append(&mut self, line: &Value) -> Result<(), DiskError> {
        self.file.write_all(format!("{line}\n").as_bytes()).map_err(at(&self.path))?;
        self.draw(line)
    }

    fn draw(&mut self, line: &Value) -> Result<(), DiskError> {
        let step = line["step"].as_u64().unwrap_or(0);
        let wall_time = wall_time();
        let names = ["loss", "gradient_norm", "learning_rate", "tokens_per_second"];
        let train = names.into_iter().map(|name| (format!("train/{name}"), line[name].as_f64()));
        let validation = line["validation"].as_object().into_iter().flatten();
        let validation = validation.map(|(name, value)| (format!("validation/{name}"), value.as_f64()));
        for (tag, value) in train.chain(validation) {
            let Some(value) = value else { continue };
            let scalar = Scalar { tag: &tag, step, wall_time, value };
            self.events.scalar(scalar).map_err(at(&self.path.with_file_name("tensorboard")))?;
        }
        Ok(())
    }
}

fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(step: u64) -> StepFacts {
        StepFacts {
            step,
            loss: 1.0 / step as f64,
            gradient_norm: 0.1 * step as f64,
            learning_rate: 1e-3,
            epoch: step as f64 / 10.0,
            rows: 7,
            tokens: 100,
            took: 0.5,
        }
    }

    fn log(folder: &Path, before: Option<(&str, Interval)>) -> TrainLog {
        TrainLog::begin(folder, 4, 10, before).unwrap()
    }

    #[test]
    fn lines_cover_all_rows_without_gap_or_overlap() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = log(folder.path(), None);
        let due: Vec<u64> = (1..=10).filter(|&step| log.step(&facts(step)).unwrap().is_some()).collect();
        assert_eq!(due, [1, 4, 8, 10]);
        let text = fs::read_to_string(folder.path().join("log.jsonl")).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let rows: Vec<&Value> = lines.iter().map(|line| &line["rows"]).collect();
        assert_eq!(rows, [&json!([0, 7]), &json!([7, 28]), &json!([28, 56]), &json!([56, 70])]);
        let mean = (1.0 / 2.0 + 1.0 / 3.0 + 1.0 / 4.0) / 3.0;
        assert!((lines[1]["loss"].as_f64().unwrap() - mean).abs() < 1e-15);
        assert_eq!((&lines[1]["tokens_per_second"], &lines[3]["seconds"]), (&json!(200.0), &json!(5.0)));
    }

    #[test]
    fn a_log_goes_on_where_a_checkpoint_left_it() {
        let (whole, broken, resumed) =
            (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut straight = log(whole.path(), None);
        (1..=10).for_each(|step| drop(straight.step(&facts(step)).unwrap()));
        let mut first = log(broken.path(), None);
        (1..=6).for_each(|step| drop(first.step(&facts(step)).unwrap()));
        let (lines, interval) = (first.lines().unwrap(), first.interval());
        let interval: Interval = serde_json::from_str(&serde_json::to_string(&interval).unwrap()).unwrap();
        (7..=9).for_each(|step| drop(first.step(&facts(step)).unwrap()));
        let mut second = log(resumed.path(), Some((std::str::from_utf8(&lines).unwrap(), interval)));
        (7..=10).for_each(|step| drop(second.step(&facts(step)).unwrap()));
        assert_eq!(straight.lines().unwrap(), second.lines().unwrap());
        let size = |folder: &Path| {
            let file = fs::read_dir(folder.join("tensorboard")).unwrap().next().unwrap().unwrap();
            file.metadata().unwrap().len()
        };
        assert_eq!(size(whole.path()), size(resumed.path()), "the curves are whole again");
    }

    #[test]
    fn validation_has_lines_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = log(folder.path(), None);
        log.step(&facts(1)).unwrap();
        log.validation(1, 0.1, json!({"cosine_spearman": 0.5})).unwrap();
        let text = String::from_utf8(log.lines().unwrap()).unwrap();
        let line: Value = serde_json::from_str(text.lines().nth(1).unwrap()).unwrap();
        assert_eq!(
            line,
            json!({"step": 1, "epoch": 0.1, "validation": {"cosine_spearman": 0.5}, "seconds": 0.5})
        );
    }
}
