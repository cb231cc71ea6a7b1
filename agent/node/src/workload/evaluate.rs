//! `kind = "evaluate"`, and the measuring before and after training.

use std::path::Path;
use std::time::Instant;

use motley_backends::DeviceKind;
use motley_ops::PassShape;
use motley_ops::metric::Resampling;
use motley_scheduler_core::document::evaluate::Bootstrap;
use motley_scheduler_core::document::{Evaluate, FileReference, Task};
use motley_scheduler_core::wire::agent::Progress;

use super::WorkloadError;
use super::identity::AdapterFiles;
use super::job::Job;
use super::lengths::{ByteBound, of_examples};
use super::model::TextModel;
use super::report::{self, Report};
use super::results::{DataFacts, Measured, TaskResult, task_result};
use super::score::{Side, score_task};
use super::tasks::TaskData;
use crate::runner::Context;

/// Runs an evaluate job.
///
/// # Errors
/// Data, model or adapter that cannot be used, or the device.
pub(crate) fn run(context: &Context, evaluate: &Evaluate) -> Result<(), WorkloadError> {
    let began = Instant::now();
    run_on(Job::new(context)?, evaluate, began)
}

/// [`run`] on a device of the caller's.
#[cfg(test)]
pub(super) fn run_on_device(
    context: &Context,
    evaluate: &Evaluate,
    backend: std::sync::Arc<dyn motley_backends::Backend>,
) -> Result<(), WorkloadError> {
    run_on(Job::on(context, backend, None), evaluate, Instant::now())
}

fn run_on(job: Job<'_>, evaluate: &Evaluate, began: Instant) -> Result<(), WorkloadError> {
    let context = job.context();
    let tasks = TaskList::read(context, &evaluate.tasks, evaluate.bootstrap)?;
    let reference = evaluate.adapter.as_ref();
    let adapter = reference.map(|reference| job.adapter(reference)).transpose()?;
    let open = job.open_model(&evaluate.model, adapter.as_ref())?;
    let quantization = match (reference, &adapter) {
        (Some(reference), Some(files)) => {
            files.quantization(reference.base, &open.folder.weights_sha256.to_string())?
        }
        _ => evaluate.quantization,
    };
    let pass = tasks.largest_pass(open.tokenizer.settings(), job.planned_on().kind)?;
    let planned = job.check_embedding(&open, adapter.as_ref(), quantization, pass.unwrap_or_default())?;
    let loading = Instant::now();
    let loaded = match (reference, &adapter) {
        (Some(reference), Some(files)) => open.load_with_adapter(&job.backend, files, reference.base),
        _ => open.load(&job.backend, evaluate.quantization, false),
    };
    let load_seconds = loading.elapsed().as_secs_f64();
    let results = loaded.and_then(|model| tasks.measure(&model, context, "", ""));
    let results = results.map_err(|error| planned.explain(error, &*job.backend))?;
    let mut report = Report::new(context, &job, &open, quantization)?;
    report.seed = evaluate.bootstrap.seed;
    report.adapter = adapter.as_ref().map(AdapterFiles::facts);
    report.data = tasks.data_facts();
    report.results = results;
    report.timings =
        report::Timings { load_seconds, total_seconds: began.elapsed().as_secs_f64(), ..Default::default() };
    report.write(&context.folders.output)?;
    for result in &report.results {
        context.reporter.log(&format!("{} {}: {}", result.task_name, result.metric(), result.summary()));
    }
    Ok(())
}

/// Tasks with their data, read and checked before anything is computed.
pub(crate) struct TaskList {
    tasks: Vec<(Task, TaskData)>,
    resampling: Resampling,
}

impl TaskList {
    /// # Errors
    /// The first line of any task's data that cannot be used.
    pub(crate) fn read(
        context: &Context,
        tasks: &[Task],
        bootstrap: Bootstrap,
    ) -> Result<TaskList, WorkloadError> {
        let references = context.document.files();
        let mut list = Vec::with_capacity(tasks.len());
        for (number, task) in tasks.iter().enumerate() {
            let key = format!("evaluate.{number}.data");
            let path = input_path(&references, &key, &context.folders.input);
            let data = TaskData::read(task.kind, &path, &task.data)?;
            context.reporter.log(&format!("{}: {} examples from {}", task.name, data.count(), task.data));
            list.push((task.clone(), data));
        }
        let resampling = Resampling { resamples: bootstrap.resamples, seed: bootstrap.seed };
        Ok(TaskList { tasks: list, resampling })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// What was read, task by task.
    pub(crate) fn data_facts(&self) -> Vec<DataFacts> {
        self.tasks.iter().map(|(task, data)| DataFacts::of_task(task, data)).collect()
    }

    /// Checks that every prompt that a task names is there, before anything is computed.
    ///
    /// # Errors
    /// An unknown prompt.
    pub(crate) fn check_prompts(&self, settings: &crate::text::TextSettings) -> Result<(), WorkloadError> {
        for (task, _) in &self.tasks {
            settings.prompt(task.query_prompt.as_deref())?;
            settings.prompt(task.document_prompt.as_deref())?;
        }
        Ok(())
    }

    /// The largest pass of measuring; none where nothing is measured.
    ///
    /// # Errors
    /// An unknown prompt.
    pub(crate) fn largest_pass(
        &self,
        settings: &crate::text::TextSettings,
        kind: DeviceKind,
    ) -> Result<Option<PassShape>, WorkloadError> {
        let mut largest = None;
        for (task, data) in &self.tasks {
            let prompt = |name: &Option<String>| settings.prompt(name.as_deref()).map(str::len);
            let prompts = [prompt(&task.query_prompt)?, prompt(&task.document_prompt)?];
            let pass = of_examples(&data.examples, ByteBound { longest: settings.max_length, prompts }, kind);
            largest = Some(largest.unwrap_or(pass).max(pass));
        }
        Ok(largest)
    }

    /// Measures a model. `label` tells the files of several measurements apart; `stage` is for people.
    ///
    /// # Errors
    /// Those of the model; stopped.
    pub(crate) fn measure(
        &self,
        model: &TextModel,
        context: &Context,
        label: &str,
        stage: &str,
    ) -> Result<Vec<TaskResult>, WorkloadError> {
        self.check_prompts(model.tokenizer.settings())?;
        let mut results = Vec::with_capacity(self.tasks.len());
        for (task, data) in &self.tasks {
            let began = Instant::now();
            let activity = format!("evaluating {}{stage}", task.name);
            let mut embed = |texts: &[&str], side: Side| -> Result<Vec<f32>, WorkloadError> {
                let name = if side == Side::Query { &task.query_prompt } else { &task.document_prompt };
                let prompt = model.tokenizer.settings().prompt(name.as_deref())?;
                let total = texts.len() as u64;
                let mut observe = |done: usize| observe(context, &activity, done as u64, total);
                Ok(model.embed(texts, prompt, &mut observe)?.vectors)
            };
            let scores = score_task(&data.examples, self.resampling, &mut embed)?;
            let seconds = began.elapsed().as_secs_f64();
            let measured = Measured { task, data, scores: &scores, resampling: self.resampling, seconds };
            results.push(task_result(&measured, &context.folders.output, label)?);
        }
        Ok(results)
    }
}

/// Reports progress, and ends the work when the job is to stop.
pub(crate) fn observe(context: &Context, activity: &str, done: u64, total: u64) -> Result<(), WorkloadError> {
    if context.stop.is_set() {
        return Err(WorkloadError::Stopped);
    }
    let progress = Progress {
        activity: activity.to_owned(),
        done,
        total: Some(total),
        unit: "text".to_owned(),
        ..Progress::default()
    };
    context.reporter.progress(progress);
    Ok(())
}

/// Where an uploaded file lies.
pub(crate) fn input_path(references: &[FileReference], key: &str, input: &Path) -> std::path::PathBuf {
    let reference = references.iter().find(|reference| reference.key == key);
    input.join(reference.map_or_else(|| key.to_owned(), FileReference::input_path))
}
