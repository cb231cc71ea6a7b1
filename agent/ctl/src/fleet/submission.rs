//! From a job document on this disk to a job of the scheduler: overrides, parsing, files by content, memory.
//!
//! Everything that can be wrong is found before anything is sent: the document is parsed by the code that scheduler
//! and node use, and every file that it names must be there.

use std::path::{Path, PathBuf};

use motley_scheduler_core::artifact::FileEntry;
use motley_scheduler_core::document::{Document, FileReference, FileRole, apply_overrides};
use motley_scheduler_core::id::JobId;
use motley_scheduler_core::unit::Bytes;
use motley_scheduler_core::wire::client::{FromClient, ToClient};
use motley_scheduler_link::LocalFile;
use serde_json::json;

use super::{Fleet, follow, jobs, memory, unexpected};
use crate::arguments::{Common, Setting, SubmitArguments};
use crate::failure::Failure;
use crate::output::{Output, view};

/// Files of one job at most: a folder that holds more was named by mistake.
const FILES_MAX: usize = 10_000;

/// A document that can be submitted.
#[derive(Debug)]
pub struct Prepared {
    /// The user's text with the overrides in it.
    pub text: String,
    pub document: Document,
    /// One figure for each alternative of `[resources]`.
    pub memory: Vec<Bytes>,
    files: Vec<(FileEntry, LocalFile)>,
}

pub async fn submit(common: &Common, arguments: SubmitArguments, output: &Output) -> Result<(), Failure> {
    let prepared = prepare(arguments.document, arguments.settings).await?;
    let mut fleet = Fleet::open(common).await?;
    let job = send(&fleet, prepared, output).await?;
    if !arguments.watch {
        output.data(|| job.to_string(), || json!({ "job": job.0 }));
        return Ok(());
    }
    output.talk(&format!("job {job}"));
    follow::to_the_end(&mut fleet, job, output, follow::Shown::ProgressAndLogs).await?;
    let job = jobs::ask_job(&fleet, job).await?;
    output.data(|| format!("job {} {}", job.job, view::state_name(job.state)), || view::job_json(&job));
    follow::judge(&job)
}

/// Reads, overrides, parses, finds and hashes.
///
/// # Errors
/// Usage: the document or a setting cannot be used. Not found: the document or a file that it names is not there.
pub async fn prepare(path: PathBuf, settings: Vec<Setting>) -> Result<Prepared, Failure> {
    let task = tokio::task::spawn_blocking(move || prepare_here(&path, &settings));
    task.await.map_err(|error| Failure::failed(format!("reading the document broke off: {error}")))?
}

fn prepare_here(path: &Path, settings: &[Setting]) -> Result<Prepared, Failure> {
    let text = read_document(path)?;
    let overrides: Vec<(String, String)> =
        settings.iter().map(|setting| (setting.key.clone(), setting.value.clone())).collect();
    let text = apply_overrides(&text, &overrides)
        .map_err(|error| Failure::usage(error).while_doing(path.display()))?;
    let document =
        Document::parse(&text).map_err(|error| Failure::usage(error).while_doing(path.display()))?;
    let folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
    let files = find_files(&document, &folder)?;
    let memory = memory::resolve(&document, &folder)?;
    Ok(Prepared { text, document, memory, files })
}

fn read_document(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).map_err(|error| {
        let failure = match error.kind() {
            std::io::ErrorKind::NotFound => Failure::not_found(format!("no file {}", path.display()))
                .hint("name a job document, such as examples/finance/train.toml"),
            std::io::ErrorKind::InvalidData => {
                Failure::usage(format!("{} is not UTF-8 text", path.display()))
            }
            _ => Failure::failed(format!("cannot read {}: {error}", path.display())),
        };
        failure.hint("a job document is a TOML file; docs/job-documents.md shows one of each kind")
    })
}

fn find_files(document: &Document, folder: &Path) -> Result<Vec<(FileEntry, LocalFile)>, Failure> {
    let mut files = Vec::new();
    for reference in document.files() {
        let path = folder.join(&reference.path);
        match reference.role {
            FileRole::File => files.push(one_file(&reference, &path, reference.input_path())?),
            FileRole::Folder => add_folder(&reference, &path, &mut files)?,
        }
    }
    files.sort_by(|(a, _), (b, _)| a.path.cmp(&b.path));
    files.dedup_by(|(a, _), (b, _)| a.path == b.path);
    Ok(files)
}

fn one_file(
    reference: &FileReference,
    path: &Path,
    input_path: String,
) -> Result<(FileEntry, LocalFile), Failure> {
    if !path.is_file() {
        return Err(missing(reference, path, "file"));
    }
    let file = LocalFile::read(path)?;
    Ok((FileEntry { path: input_path, hash: file.hash, size: file.size }, file))
}

fn missing(reference: &FileReference, path: &Path, what: &str) -> Failure {
    let kind = if path.exists() { format!("is no {what}") } else { "is not there".to_owned() };
    Failure::not_found(format!("`{}` names {}, which {kind}", reference.key, path.display()))
        .hint("paths in a job document are relative to the document")
}

fn add_folder(
    reference: &FileReference,
    root: &Path,
    files: &mut Vec<(FileEntry, LocalFile)>,
) -> Result<(), Failure> {
    if !root.is_dir() {
        return Err(missing(reference, root, "folder"));
    }
    let is_model = root.join("config.json").is_file();
    let mut pending = vec![(root.to_path_buf(), reference.input_path())];
    while let Some((folder, input_path)) = pending.pop() {
        for (name, path) in entries(&folder)? {
            let input_path = format!("{input_path}/{name}");
            if is_model && is_surplus(root, &name) {
                continue;
            }
            match path.is_dir() {
                true => pending.push((path, input_path)),
                false => files.push(one_file(reference, &path, input_path)?),
            }
            if files.len() > FILES_MAX {
                return Err(Failure::usage(format!(
                    "`{}` names {}, which holds more than {FILES_MAX} files",
                    reference.key,
                    root.display()
                ))
                .hint("name the folder that holds the model or the data alone"));
            }
        }
    }
    Ok(())
}

/// Names and paths in a folder, hidden ones left out.
fn entries(folder: &Path) -> Result<Vec<(String, PathBuf)>, Failure> {
    let failed = |error| Failure::failed(format!("cannot read {}: {error}", folder.display()));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().into_string().map_err(|name| {
            Failure::usage(format!("the name of {} is not UTF-8", folder.join(name).display()))
        })?;
        if !name.starts_with('.') {
            found.push((name, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// Copies of the weights in other formats, which no node reads.
fn is_surplus(model: &Path, name: &str) -> bool {
    let other_formats = [".bin", ".onnx", ".h5", ".msgpack", ".ot", ".gguf"];
    matches!(name, "onnx" | "openvino")
        || (model.join("model.safetensors").is_file()
            && other_formats.iter().any(|ending| name.ends_with(ending)))
}

/// Stores what the scheduler does not have yet, then submits.
pub async fn send(fleet: &Fleet, prepared: Prepared, output: &Output) -> Result<JobId, Failure> {
    let (entries, local): (Vec<FileEntry>, Vec<LocalFile>) = prepared.files.into_iter().unzip();
    if !local.is_empty() {
        let bulk = fleet.bulk().await?;
        let sent = bulk.upload_missing(&local).await?;
        bulk.close().await;
        if sent.0 > 0 && !output.json {
            tracing::info!(files = local.len(), %sent, "uploaded");
        }
    }
    let question = FromClient::Submit { document: prepared.text, files: entries, memory: prepared.memory };
    match fleet.ask(question).await? {
        ToClient::Submitted { job } => Ok(job),
        other => Err(unexpected(&other)),
    }
}
