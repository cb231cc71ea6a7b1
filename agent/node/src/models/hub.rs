//! Model hubs: list the files of a revision, fetch those that an encoder needs, rename the whole into place.
//!
//! ```text
//! <cache>/models/<host>/<owner>--<name>/
//!   refs/<revision>          the folder that the revision named when last asked
//!   <commit>.partial/        files arriving; *.incomplete continue where they stopped
//!   <commit>/                complete: only ever made by renaming the .partial folder
//! ```
//!
//! ModelScope lists no commit: there the folder has the name of what the listing says (path, size and SHA-256 of every
//! needed file), which another state of the branch does not share. A complete folder never changes.
//!
//! When the hub cannot be asked, a complete folder of the asked revision is used as it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use motley_scheduler_core::id::ContentHash;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::download::{Client, RemoteFile, RemoteText};
use super::{ModelError, Progress, component, io, lock};

/// Which hub's API is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Api {
    HuggingFace,
    ModelScope,
}

/// One hub with its access token.
pub(super) struct Hub {
    api: Api,
    endpoint: String,
    client: Client,
}

struct Listing {
    /// Names these very files: their folder in the cache.
    content: String,
    /// What the hub is asked for them.
    revision: String,
    /// Needed ones only.
    files: Vec<Listed>,
}

struct Listed {
    path: String,
    size: Option<u64>,
    sha256: Option<ContentHash>,
}

#[derive(Deserialize)]
struct HuggingFaceModel {
    sha: String,
    siblings: Vec<HuggingFaceFile>,
}

#[derive(Deserialize)]
struct HuggingFaceFile {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<HuggingFaceLfs>,
}

#[derive(Deserialize)]
struct HuggingFaceLfs {
    sha256: Option<String>,
}

#[derive(Deserialize)]
struct ModelScopeAnswer {
    #[serde(rename = "Data")]
    data: ModelScopeData,
}

#[derive(Deserialize)]
struct ModelScopeData {
    #[serde(rename = "Files")]
    files: Vec<ModelScopeFile>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ModelScopeFile {
    path: String,
    size: Option<u64>,
    sha256: Option<String>,
    #[serde(rename = "Type")]
    kind: Option<String>,
}

impl Hub {
    pub(super) fn new(api: Api, endpoint: &str, token: Option<String>, idle_timeout: Duration) -> Self {
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        Hub { api, endpoint, client: Client::new(token, idle_timeout) }
    }

    fn host(&self) -> String {
        let rest = self.endpoint.split_once("://").map_or(self.endpoint.as_str(), |(_, rest)| rest);
        rest.split('/').next().unwrap_or(rest).to_owned()
    }

    fn default_revision(&self) -> &'static str {
        match self.api {
            Api::HuggingFace => "main",
            Api::ModelScope => "master",
        }
    }

    fn listing(&self, id: &str, revision: &str, progress: Progress<'_>) -> Result<Listing, ModelError> {
        let host = self.host();
        let url = match self.api {
            Api::HuggingFace => format!("{}/api/models/{id}/revision/{revision}?blobs=true", self.endpoint),
            Api::ModelScope => {
                format!("{}/api/v1/models/{id}/repo/files?Revision={revision}&Recursive=true", self.endpoint)
            }
        };
        let asked = RemoteText { url: &url, host: &host, id, revision };
        let text = self.client.text(&asked, progress)?;
        let unreadable = |error: serde_json::Error| ModelError::Listing {
            host: host.clone(),
            id: id.to_owned(),
            message: error.to_string(),
        };
        match self.api {
            Api::HuggingFace => serde_json::from_str(&text).map(from_hugging_face).map_err(unreadable),
            Api::ModelScope => serde_json::from_str(&text)
                .map(|answer| from_modelscope(answer, revision))
                .map_err(unreadable),
        }
    }

    fn file_url(&self, id: &str, revision: &str, path: &str) -> String {
        match self.api {
            Api::HuggingFace => format!("{}/{id}/resolve/{revision}/{path}", self.endpoint),
            Api::ModelScope => {
                format!("{}/api/v1/models/{id}/repo?Revision={revision}&FilePath={path}", self.endpoint)
            }
        }
    }
}

fn from_hugging_face(model: HuggingFaceModel) -> Listing {
    let file = |file: HuggingFaceFile| Listed {
        sha256: file.lfs.and_then(|lfs| lfs.sha256).and_then(|text| text.parse().ok()),
        path: file.rfilename,
        size: file.size,
    };
    let files = model.siblings.into_iter().filter(|file| is_needed(&file.rfilename)).map(file).collect();
    Listing { content: model.sha.clone(), revision: model.sha, files }
}

fn from_modelscope(answer: ModelScopeAnswer, revision: &str) -> Listing {
    let is_file = |file: &ModelScopeFile| file.kind.as_deref() != Some("tree") && is_needed(&file.path);
    let file = |file: ModelScopeFile| Listed {
        sha256: file.sha256.and_then(|text| text.parse().ok()),
        path: file.path,
        size: file.size,
    };
    let mut files: Vec<Listed> = answer.data.files.into_iter().filter(is_file).map(file).collect();
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let mut hasher = Sha256::new();
    for file in &files {
        hasher.update(format!("{}\0{:?}\0{:?}\n", file.path, file.size, file.sha256));
    }
    let content = ContentHash(hasher.finalize().into()).to_string();
    Listing { content, revision: revision.to_owned(), files }
}

/// Whether an encoder needs the file; everything else (other frameworks' weights, pictures) stays where it is.
fn is_needed(path: &str) -> bool {
    let is_config =
        !path.contains('/') && (path.ends_with(".json") || path == "vocab.txt" || path == "README.md");
    // modules.json may name any folder: their settings are small, their weights only come where they are numbered.
    let is_module = path.split_once('/').is_some_and(|(folder, file)| {
        let numbered = folder.starts_with(|c: char| c.is_ascii_digit());
        file == "config.json" || (numbered && file == "model.safetensors")
    });
    let is_weights =
        !path.contains('/') && (path.ends_with(".safetensors") || path.ends_with(".safetensors.index.json"));
    let is_safe = !path.split('/').any(|part| part.is_empty() || part == "." || part == "..");
    is_safe && (is_config || is_module || is_weights)
}

/// Fetches the files of `id` at `revision` and returns their folder.
///
/// # Errors
/// The hub cannot be reached (and nothing complete is cached), refuses, or sends something else than it listed.
pub(super) fn fetch(
    hub: &Hub,
    id: &str,
    revision: Option<&str>,
    cache: &Path,
    progress: Progress<'_>,
) -> Result<PathBuf, ModelError> {
    let revision = revision.unwrap_or(hub.default_revision());
    let base = folder(hub, id, cache);
    let is_commit = revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit());
    let of_commit = base.join(revision);
    if hub.api == Api::HuggingFace && is_commit && of_commit.is_dir() {
        return Ok(of_commit);
    }
    let reference = base.join("refs").join(component(revision));
    let listing = match hub.listing(id, revision, progress) {
        Ok(listing) => listing,
        Err(error) if error.leaves_the_cache_valid() => {
            let Some(folder) = cached(&base, &reference) else { return Err(error) };
            tracing::warn!(%error, folder = %folder.display(), "the hub cannot be asked: an earlier copy is used");
            return Ok(folder);
        }
        Err(error) => return Err(error),
    };
    let complete = base.join(component(&listing.content));
    if !complete.is_dir() {
        fs::create_dir_all(&base).map_err(io(&base))?;
        let _lock = lock(&base.join("lock"), id, progress)?;
        if !complete.is_dir() {
            fetch_files(hub, id, &listing, &complete, progress)?;
        }
    }
    write_reference(&reference, &listing.content)?;
    Ok(complete)
}

/// The folder of `id` that an earlier fetch left, whatever the hub has by now.
pub(super) fn at_hand(hub: &Hub, id: &str, revision: Option<&str>, cache: &Path) -> Option<PathBuf> {
    let base = folder(hub, id, cache);
    cached(&base, &base.join("refs").join(component(revision.unwrap_or(hub.default_revision()))))
}

fn folder(hub: &Hub, id: &str, cache: &Path) -> PathBuf {
    cache.join("models").join(component(&hub.host())).join(component(id))
}

fn cached(base: &Path, reference: &Path) -> Option<PathBuf> {
    let content = fs::read_to_string(reference).ok()?;
    let folder = base.join(component(content.trim()));
    folder.is_dir().then_some(folder)
}

fn write_reference(reference: &Path, content: &str) -> Result<(), ModelError> {
    let folder = reference.parent().unwrap_or(reference);
    fs::create_dir_all(folder).map_err(io(folder))?;
    let temporary = beside(reference, &format!("{}.tmp", std::process::id()));
    fs::write(&temporary, content).map_err(io(&temporary))?;
    fs::rename(&temporary, reference).map_err(io(reference))
}

fn fetch_files(
    hub: &Hub,
    id: &str,
    listing: &Listing,
    complete: &Path,
    progress: Progress<'_>,
) -> Result<(), ModelError> {
    let partial = beside(complete, "partial");
    for file in &listing.files {
        let remote = RemoteFile {
            url: hub.file_url(id, &listing.revision, &file.path),
            host: hub.host(),
            id,
            name: &file.path,
            size: file.size,
            sha256: file.sha256,
        };
        hub.client.fetch(&remote, &partial.join(&file.path), progress)?;
    }
    if !partial.is_dir() {
        return Err(ModelError::Incomplete {
            folder: PathBuf::from(id),
            missing: "config.json, tokenizer.json and *.safetensors".into(),
            hint: "name a model that is stored as safetensors",
        });
    }
    fs::rename(&partial, complete).map_err(io(complete))
}

/// `v1.0` and `v1.1` are two names, so an ending is appended, never put in place of one.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{ending}"));
    path.with_file_name(name)
}
