//! The loop: steps, log, validation, checkpoints; and going on from one.

use std::time::Instant;

use motley_ops::{Trainer, TrainerState};
use motley_scheduler_core::document::train::Every;
use motley_scheduler_core::wire::agent::{AttemptPhase, Progress};
use serde_json::Value;

use super::{Before, Work, settings, validation};
use crate::workload::WorkloadError;
use crate::workload::checkpoint::{self, Checkpoint, CheckpointState, FORMAT, History, Parts};
use crate::workload::log::{Interval, StepFacts, TrainLog};
use crate::workload::order::{Cursor, StepRows};

/// A training under way.
pub(super) struct Session<'a> {
    work: &'a Work<'a>,
    before: &'a Before,
    trainer: Trainer,
    cursor: Cursor,
    log: TrainLog,
    history: History,
    /// Optimizer steps done.
    done: u64,
    /// Seconds of a step, smoothed; absent before the first.
    step_seconds: Option<f64>,
    load_seconds: f64,
}

/// What a finished training leaves.
pub(super) struct Trained {
    pub(super) adapter_config: String,
    pub(super) adapter: Vec<u8>,
    pub(super) parameters: u64,
    pub(super) history: History,
    /// Over all attempts.
    pub(super) totals: Interval,
    pub(super) epochs: f64,
    pub(super) steps: u64,
    /// Of this attempt.
    pub(super) load_seconds: f64,
}

/// Weight of the newest step in the time that is left.
const SMOOTHING: f64 = 0.1;

impl<'a> Session<'a> {
    /// Loads the base, makes the adapter, and takes over a checkpoint where there is one.
    pub(super) fn begin(
        work: &'a Work<'a>,
        before: &'a Before,
        resumed: Option<Checkpoint>,
    ) -> Result<Session<'a>, WorkloadError> {
        let Work { context, train, job, open, data, .. } = work;
        let total = data.order.total_steps();
        let quantization = settings::quantization(&train.adapter);
        let loading = Instant::now();
        let base = open.load(&job.backend, quantization, train.model.dropout_from_config)?;
        let load_seconds = loading.elapsed().as_secs_f64();
        let mut trainer = settings::trainer(base.encoder, train, total)?;
        let mut history = History::default();
        let mut interval = None;
        let mut done = 0;
        if let Some(checkpoint) = &resumed {
            trainer.restore(&TrainerState::from_bytes(&checkpoint.trainer)?)?;
            history.clone_from(&checkpoint.state.history);
            done = checkpoint.state.step;
            history.resumed_at.push(done);
            interval = Some((checkpoint.log.as_str(), checkpoint.state.interval));
        }
        let class = &job.backend.info().numerics_class;
        if let Some(former) = history.numerics_classes.last().filter(|former| *former != class) {
            let text = format!(
                "warning: going on with numerics class {class} what {former} began: last bits will differ"
            );
            context.reporter.log(&text);
        }
        if history.numerics_classes.last() != Some(class) {
            history.numerics_classes.push(class.clone());
        }
        let log = TrainLog::begin(&context.folders.output, train.steps.log_every, total, interval)?;
        let cursor = Cursor::new(data.order);
        Ok(Session { work, before, trainer, cursor, log, history, done, step_seconds: None, load_seconds })
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// The device, the data, the disk, NaN; stopped, after a last checkpoint.
    pub(super) fn run(mut self) -> Result<Trained, WorkloadError> {
        let total = self.work.data.order.total_steps();
        if self.done == 0 {
            self.validate(0.0)?;
        }
        let mut saved = self.done;
        while self.done < total {
            if self.work.context.stop.is_set() {
                if saved < self.done {
                    self.save()?;
                }
                return Err(WorkloadError::Stopped);
            }
            let rows = self.cursor.step(self.done);
            self.step(&rows, total)?;
            if self.done.is_multiple_of(self.work.data.order.steps_per_epoch()) {
                self.validate(self.epochs())?;
            }
            if self.is_checkpoint_due(total) {
                self.save()?;
                saved = self.done;
            }
        }
        let adapter = settings::adapter_files(&self.trainer, self.work)?;
        Ok(Trained {
            adapter_config: adapter.0,
            adapter: adapter.1,
            parameters: self.trainer.adapter().parameter_count() as u64,
            epochs: self.epochs(),
            steps: self.done,
            load_seconds: self.load_seconds,
            history: self.history,
            totals: self.log.interval(),
        })
    }

    fn step(&mut self, rows: &StepRows, total: u64) -> Result<(), WorkloadError> {
        let began = Instant::now();
        let Work { open, job, data, .. } = self.work;
        for batch in &rows.batches {
            let tokenized = data.tokenized(&data.rows, batch, &open.tokenizer, &*job.backend)?;
            self.history.truncated_texts += tokenized.truncated;
            self.trainer.accumulate(&tokenized.rows)?;
        }
        let report = self.trainer.apply()?;
        let took = began.elapsed().as_secs_f64();
        if self.done == 0 {
            self.history.first_loss = report.loss;
        }
        self.history.last_loss = report.loss;
        self.done += 1;
        let facts = StepFacts {
            step: self.done,
            loss: report.loss,
            gradient_norm: report.gradient_norm,
            learning_rate: report.learning_rate,
            epoch: self.epochs(),
            rows: rows.count(),
            tokens: report.tokens,
            took,
        };
        let line = self.log.step(&facts)?;
        let smoothed = self.step_seconds.map_or(took, |former| former + SMOOTHING * (took - former));
        self.step_seconds = Some(smoothed);
        self.tell(&facts, line.as_ref(), smoothed * (total - self.done) as f64);
        Ok(())
    }

    fn tell(&self, facts: &StepFacts, line: Option<&Value>, seconds_left: f64) {
        let total = self.work.data.order.total_steps();
        let reporter = &self.work.context.reporter;
        reporter.progress(Progress {
            activity: "training".to_owned(),
            done: facts.step,
            total: Some(total),
            unit: "step".to_owned(),
            loss: Some(facts.loss),
            tokens_per_second: Some(facts.tokens as f64 / facts.took.max(1e-9)),
            seconds_left: Some(seconds_left),
        });
        if let Some(line) = line {
            let number = |name: &str| line[name].as_f64().unwrap_or(f64::NAN);
            reporter.log(&format!(
                "step {}/{total} epoch {:.2} loss {:.4} gradient norm {:.3} learning rate {:.2e} {:.0} tokens/s, {:.0} s left",
                facts.step, facts.epoch, number("loss"), facts.gradient_norm, facts.learning_rate,
                number("tokens_per_second"), seconds_left
            ));
        }
    }

    fn epochs(&self) -> f64 {
        self.done as f64 / self.work.data.order.steps_per_epoch() as f64
    }

    fn validate(&mut self, epoch: f64) -> Result<(), WorkloadError> {
        let Work { open, job, data, context, .. } = self.work;
        let Some(file) = &data.validation else { return Ok(()) };
        self.work.stop_if_asked()?;
        let encoder = self.trainer.encoder();
        let metrics = validation::validate(data, file, encoder, &open.tokenizer, &*job.backend)?;
        context.reporter.log(&format!("validation after step {}: {metrics}", self.done));
        Ok(self.log.validation(self.done, epoch, metrics)?)
    }

    fn is_checkpoint_due(&self, total: u64) -> bool {
        let every = match self.work.train.checkpoint.every {
            Every::Steps(steps) => steps,
            Every::Epochs(epochs) => epochs * self.work.data.order.steps_per_epoch(),
        };
        self.done == total || self.done.is_multiple_of(every.max(1))
    }

    /// Writes a checkpoint and removes old ones.
    fn save(&mut self) -> Result<(), WorkloadError> {
        let Work { context, data, job, .. } = self.work;
        let checkpoints = &context.folders.checkpoints;
        context.reporter.phase(AttemptPhase::Checkpointing);
        let trainer = self.trainer.state()?.to_bytes();
        let state = CheckpointState {
            format: FORMAT,
            step: self.done,
            total_steps: data.order.total_steps(),
            interval: self.log.interval(),
            numerics_class: job.backend.info().numerics_class.clone(),
            origin: self.work.origin(),
            history: self.history.clone(),
            before: serde_json::to_value(self.before).unwrap_or_default(),
        };
        let log = self.log.lines()?;
        let parts = Parts { trainer: &trainer, log: &log, before_files: &self.before.files };
        checkpoint::write(checkpoints, &state, &parts).map_err(|source| WorkloadError::Checkpoint {
            step: self.done,
            newest: checkpoint::newest(checkpoints),
            source,
        })?;
        context.reporter.checkpoint(self.done);
        checkpoint::prune(checkpoints, self.work.train.checkpoint.keep as usize)?;
        context.reporter.phase(AttemptPhase::Running);
        Ok(())
    }
}
