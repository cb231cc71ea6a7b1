//! The end of a training: the adapter folder, the measuring after, the report.

use motley_scheduler_core::document::model::AdapterBase;

use super::session::Trained;
use super::{Before, FULL_PRECISION_AFTER, Work, settings};
use crate::workload::WorkloadError;
use crate::workload::dialect::module_files;
use crate::workload::disk::write_folder;
use crate::workload::identity::{AdapterFiles, AdapterIdentity, CONFIG_FILE, IDENTITY_FILE, WEIGHTS_FILE};
use crate::workload::model::shown_seconds;
use crate::workload::report::{MemoryFacts, OtherBase, Report, Timings, TrainingFacts};
use crate::workload::results::{DataFacts, TaskResult};
use crate::workload::rows::RowFile;

/// Writes what training leaves behind. The results after training are measured with the adapter as it was written.
pub(super) fn finish(work: &Work<'_>, before: Before, trained: Trained) -> Result<(), WorkloadError> {
    let memory = work.job.backend.memory();
    let output = &work.context.folders.output;
    let folder = output.join("adapter");
    let quantization = settings::quantization(&work.train.adapter);
    let base = work.open.base_facts(quantization)?;
    let identity = AdapterIdentity::new(base, &trained.adapter_config, &trained.adapter);
    let identity_text = format!("{:#}\n", serde_json::to_value(&identity).expect("plain data is JSON"));
    let card = card(work, &trained);
    // With these sentence-transformers loads the folder as a model. Beside a QLoRA adapter they would mislead it: it
    // would put the adapter on the full-precision base, whose vectors differ.
    let modules = if quantization.is_none() { module_files(&work.open)? } else { Vec::new() };
    let mut files = vec![
        (CONFIG_FILE, trained.adapter_config.as_bytes()),
        (WEIGHTS_FILE, &trained.adapter),
        (IDENTITY_FILE, identity_text.as_bytes()),
        ("README.md", card.as_bytes()),
    ];
    files.extend(modules.iter().map(|(name, bytes)| (*name, bytes.as_slice())));
    write_folder(&folder, &files)?;
    let files = AdapterFiles::read(&folder)?;
    let (results, full_precision) = measure(work, &files, &before)?;
    let mut report = Report::new(work.context, &work.job, &work.open, quantization)?;
    report.seed = work.train.steps.seed;
    report.adapter = Some(files.facts());
    report.data =
        [Some(&work.data.rows), work.data.validation.as_ref()].into_iter().flatten().map(rows).collect();
    report.data.extend(work.data.tasks.data_facts());
    report.before = before.own;
    report.results = results;
    report.full_precision = full_precision;
    report.memory = Some(MemoryFacts::new(&memory, Some(work.planned.0)));
    report.timings = Timings {
        load_seconds: trained.load_seconds,
        train_seconds: trained.totals.seconds,
        total_seconds: work.began.elapsed().as_secs_f64(),
    };
    report.training = Some(training_facts(trained));
    report.write(output)?;
    tell(work, &report);
    Ok(())
}

fn rows(file: &RowFile) -> DataFacts {
    let (sha256, rows) = (file.sha256().to_string(), u64::from(file.count()));
    DataFacts { path: file.name().to_owned(), sha256, rows }
}

fn measure(
    work: &Work<'_>,
    files: &AdapterFiles,
    before: &Before,
) -> Result<(Vec<TaskResult>, Option<OtherBase>), WorkloadError> {
    let Work { open, job, data, context, .. } = work;
    if data.tasks.is_empty() {
        return Ok((Vec::new(), None));
    }
    let own = open.load_with_adapter(&job.backend, files, AdapterBase::Own)?;
    let results = data.tasks.measure(&own, context, "", " after training")?;
    drop(own);
    if settings::quantization(&work.train.adapter).is_none() {
        return Ok((results, None));
    }
    let other = open.load_with_adapter(&job.backend, files, AdapterBase::FullPrecision)?;
    let stage = " on the full-precision base after training";
    let after = data.tasks.measure(&other, context, FULL_PRECISION_AFTER, stage)?;
    Ok((results, Some(OtherBase { before: before.full_precision.clone(), after })))
}

fn training_facts(trained: Trained) -> TrainingFacts {
    let Trained { parameters, history, totals, epochs, steps, .. } = trained;
    TrainingFacts {
        steps,
        epochs,
        rows: totals.rows_to,
        tokens: totals.tokens_total,
        trained_parameters: parameters,
        truncated_texts: history.truncated_texts,
        first_loss: history.first_loss,
        last_loss: history.last_loss,
        resumed_at: history.resumed_at,
        numerics_classes: history.numerics_classes,
        tokens_per_second: totals.tokens_total as f64 / totals.seconds.max(1e-9),
    }
}

fn tell(work: &Work<'_>, report: &Report) {
    let reporter = &work.context.reporter;
    for (before, after) in report.before.iter().zip(&report.results) {
        let (name, metric) = (&after.task_name, after.metric());
        let before = before.score().map_or_else(|| "no value".to_owned(), |score| format!("{score:.4}"));
        reporter.log(&format!("{name} {metric}: {before} before, {} after", after.summary()));
    }
    let seconds = shown_seconds(report.timings.total_seconds);
    reporter.log(&format!("done in {seconds}; the adapter is in adapter/, figures in report.json"));
}

fn card(work: &Work<'_>, trained: &Trained) -> String {
    let open = &work.open;
    let base = match settings::quantization(&work.train.adapter) {
        Some(_) => {
            "It belongs to the **NF4-quantized** base: on the full-precision weights its vectors differ. That is why \
             sentence-transformers, which would load those, cannot load this folder: `ctl export` merges the adapter \
             into the dequantized weights and writes a folder that it can load."
        }
        None => {
            "It belongs to the full-precision base. The folder loads as it is: \
             `SentenceTransformer(\"path/to/this/folder\")`, where the base's name in `adapter_config.json` can be \
             found."
        }
    };
    let epochs = trained.epochs;
    format!(
        "---\nlibrary_name: peft\nbase_model: {source}\ntags:\n- sentence-similarity\n- lora\n---\n\n# {name}\n\n\
         A low-rank adapter for the text-embedding model `{source}` (weights SHA-256 `{sha256}`), trained by Motley \
         for {epochs:.2} epochs. {base}\n\n`report.json` beside this folder has its figures; `motley.json` says to \
         machines which base it needs.\n",
        source = open.source,
        name = work.context.document.name,
        sha256 = open.folder.weights_sha256,
    )
}
