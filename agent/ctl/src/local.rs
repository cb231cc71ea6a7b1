//! Commands that work without any scheduler: embed, export, compare. Each is one call of the node's library.

use std::path::{Path, PathBuf};

use motley_agent_node::NodeSettings;
use motley_agent_node::devices::DeviceChoice;
use motley_agent_node::failure::workload_reason;
use motley_agent_node::models::{Fetched, ModelSettings};
use motley_agent_node::workload::{
    EmbedOptions, EmbedProgress, EmbedSummary, Embedding, ExportOptions, WorkloadError,
    compare as compare_reports, export_merged,
};
use motley_scheduler_core::document::model::AdapterBase;
use motley_scheduler_core::document::{Document, Model, Source};
use motley_scheduler_core::failure::FailureReason;
use motley_scheduler_core::wire::agent::Progress;

use crate::arguments::{CompareArguments, DeviceArguments, EmbedArguments, ExportArguments};
use crate::failure::{Exit, Failure};
use crate::folders;
use crate::output::Output;
use crate::output::progress::ProgressDisplay;
use crate::signals::Watched;

/// Writes the vectors of a file of texts.
pub fn embed(arguments: EmbedArguments, output: &Output) -> Result<(), Failure> {
    must_be_file(&arguments.input, "name a file with a text a line, or a .jsonl file with a field `text`")?;
    let options = EmbedOptions {
        model: model(&arguments.model, arguments.max_length)?,
        settings: settings()?,
        adapter: adapter(arguments.adapter, arguments.full_precision)?,
        quantization: None,
        prompt: arguments.prompt,
        input: arguments.input,
        output: arguments.output.clone(),
        device: device(&arguments.device)?,
    };
    let mut display = ProgressDisplay::new(output);
    let result = embed_until_signal(&options, &mut |progress| display.update(&embed_progress(progress)));
    display.finish();
    let summary = result?;
    let place = arguments.output;
    output.data(
        || format!("{} in {}", summary.describe(), place.display()),
        || {
            let mut value = serde_json::to_value(&summary).unwrap_or_default();
            value["output"] = serde_json::json!(place);
            value
        },
    );
    Ok(())
}

/// Until the output is begun nothing would stay behind: a signal ends the process as ever. From then on it is heard
/// between two windows.
fn embed_until_signal(
    options: &EmbedOptions,
    progress: &mut dyn FnMut(EmbedProgress),
) -> Result<EmbedSummary, Failure> {
    let embedding = Embedding::open(options, progress).map_err(failure)?;
    let signals = Watched::start()?;
    embedding.run(&signals.stop, progress).map_err(|error| match (error, signals.exit()) {
        (WorkloadError::Stopped, Some(exit)) => Failure::new(exit, "interrupted: nothing was written"),
        (error, _) => failure(error),
    })
}

fn embed_progress(progress: EmbedProgress) -> Progress {
    match progress {
        EmbedProgress::Downloading(fetched) => download_progress(fetched),
        EmbedProgress::Embedding { bytes, bytes_total, tokens_per_second, .. } => Progress {
            activity: "embedding".to_owned(),
            done: bytes,
            total: Some(bytes_total),
            unit: "byte".to_owned(),
            loss: None,
            tokens_per_second: Some(tokens_per_second),
            seconds_left: None,
        },
    }
}

fn download_progress(fetched: Fetched) -> Progress {
    Progress {
        activity: format!("fetching {}", fetched.what),
        done: fetched.bytes,
        total: fetched.total,
        unit: "byte".to_owned(),
        ..Progress::default()
    }
}

/// Writes a merged model folder.
pub fn export(arguments: ExportArguments, output: &Output) -> Result<(), Failure> {
    let options = ExportOptions {
        model: model(&arguments.model, None)?,
        settings: settings()?,
        adapter: adapter(Some(arguments.adapter), arguments.full_precision)?,
        output: arguments.output,
        threads: None,
    };
    let summary = with_downloads(output, |progress| export_merged(&options, progress))?;
    output.data(
        || format!("{}\n{}", summary.folder.display(), summary.base),
        || serde_json::to_value(&summary).unwrap_or_default(),
    );
    Ok(())
}

/// Exits with 1 when B is worse, for use in continuous integration.
pub fn compare(arguments: CompareArguments, output: &Output) -> Result<(), Failure> {
    for path in [&arguments.baseline, &arguments.candidate] {
        must_exist(path, "name a report.json, or the folder that holds it")?;
    }
    let comparison = compare_reports(&arguments.baseline, &arguments.candidate, arguments.tolerance)
        .map_err(Failure::usage)?;
    output.data(|| comparison.to_string(), || serde_json::to_value(&comparison).unwrap_or_default());
    match comparison.worse {
        false => Ok(()),
        true => Err(Failure::failed(format!("B is worse than A by more than {}", arguments.tolerance))),
    }
}

/// The model as `[model] source` would have it, read by the same code.
pub(crate) fn model(source: &str, max_length: Option<u32>) -> Result<Model, Failure> {
    // JSON's escapes are TOML's.
    let source = serde_json::Value::from(source);
    let max_length = max_length.map(|tokens| format!("max_length = {tokens}\n")).unwrap_or_default();
    let text =
        format!("version = 1\nkind = \"serve\"\nname = \"local\"\n[model]\nsource = {source}\n{max_length}");
    let document = Document::parse(&text).map_err(|error| {
        let failure = Failure::usage(error);
        // The line is one of the text above, which the user never saw.
        let message = failure.message.split_once(": ").map_or(&*failure.message, |(_, rest)| rest).to_owned();
        Failure { message, ..failure }
    })?;
    let model = document.model().clone();
    match &model.source {
        Source::Job { job } => {
            let message =
                format!("`job:{job}` is a model of another job, whose results are with its scheduler");
            let hint = format!("fetch them with `ctl artifacts pull {job} DIR`, then name file:DIR/model");
            Err(Failure::usage(message).hint(hint))
        }
        _ => Ok(model),
    }
}

/// What is measured for `auto` is kept beside the models.
pub(crate) fn device(arguments: &DeviceArguments) -> Result<DeviceChoice, Failure> {
    Ok(DeviceChoice {
        backend: arguments.backend.kind(),
        index: arguments.device,
        precision: arguments.precision.into(),
        threads: arguments.threads,
        probe: Some(crate::devices::local_probe()?),
    })
}

pub(crate) fn settings() -> Result<ModelSettings, Failure> {
    Ok(NodeSettings::from_environment(folders::cache()?).models)
}

fn adapter(folder: Option<PathBuf>, full_precision: bool) -> Result<Option<(PathBuf, AdapterBase)>, Failure> {
    let Some(folder) = folder else { return Ok(None) };
    must_exist(&folder, "name a folder with adapter_config.json")?;
    let base = if full_precision { AdapterBase::FullPrecision } else { AdapterBase::Own };
    Ok(Some((folder, base)))
}

fn must_exist(path: &Path, hint: &str) -> Result<(), Failure> {
    match path.exists() {
        true => Ok(()),
        false => Err(Failure::not_found(format!("no file or folder {}", path.display())).hint(hint)),
    }
}

pub(crate) fn must_be_file(path: &Path, hint: &str) -> Result<(), Failure> {
    must_exist(path, hint)?;
    match path.is_dir() {
        false => Ok(()),
        true => Err(Failure::usage(format!("{} is a folder", path.display())).hint(hint)),
    }
}

pub(crate) fn with_downloads<T>(
    output: &Output,
    work: impl FnOnce(&mut dyn FnMut(Fetched)) -> Result<T, WorkloadError>,
) -> Result<T, Failure> {
    let mut display = ProgressDisplay::new(output);
    let result = work(&mut |fetched| display.update(&download_progress(fetched)));
    display.finish();
    result.map_err(failure)
}

pub(crate) fn failure(error: WorkloadError) -> Failure {
    let exit = match workload_reason(&error) {
        FailureReason::UserError => Exit::Usage,
        _ => Exit::Failed,
    };
    Failure::new(exit, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_named_as_in_documents() {
        assert_eq!(model("file:a \"b\"", Some(64)).unwrap().source.to_string(), "file:a \"b\"");
        let failure = model("nonsense of: a kind", None).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(!failure.message.contains("line "), "{failure}");
        let failure = model("job:1", None).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.hint.is_some_and(|hint| hint.contains("ctl artifacts pull 1")));
    }
}
