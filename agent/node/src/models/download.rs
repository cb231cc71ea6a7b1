//! One file of a hub: resumed transfers, checked size and hash.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use motley_scheduler_core::id::ContentHash;
use sha2::{Digest, Sha256};

use super::incoming::{Incoming, Requests, Wanted};
use super::{Fetched, ModelError, Progress, go_on, io};

/// Transfers of one file before giving up; each continues where the last stopped.
const TRANSFERS_MAX: usize = 4;
/// A listing of ten thousand files takes some megabytes; more is no listing.
const TEXT_BYTES_MAX: usize = 64 << 20;
const CHUNK_BYTES: usize = 1 << 20;

/// A file on a hub.
pub(super) struct RemoteFile<'a> {
    pub url: String,
    pub host: String,
    pub id: &'a str,
    pub name: &'a str,
    pub size: Option<u64>,
    pub sha256: Option<ContentHash>,
}

/// A small answer on a hub, such as the list of a model's files.
pub(super) struct RemoteText<'a> {
    pub url: &'a str,
    pub host: &'a str,
    pub id: &'a str,
    pub revision: &'a str,
}

/// Fetches from one hub.
pub(super) struct Client {
    requests: Requests,
}

impl Client {
    pub(super) fn new(token: Option<String>, idle_timeout: Duration) -> Self {
        Client { requests: Requests::new(token, idle_timeout) }
    }

    /// The body of a small answer.
    pub(super) fn text(&self, asked: &RemoteText<'_>, progress: Progress<'_>) -> Result<String, ModelError> {
        let RemoteText { url, host, id, revision } = *asked;
        let unreachable =
            |message: String| ModelError::Unreachable { host: host.to_owned(), id: id.to_owned(), message };
        let what = format!("the list of {id} from {host}");
        let wanted = Wanted { url, offset: 0, what: &what };
        let mut answer = self.requests.open(&wanted, progress).map_err(|end| end.or_broken(unreachable))?;
        match answer.status {
            200 => {}
            404 => {
                return Err(ModelError::NotFound {
                    host: host.to_owned(),
                    id: id.to_owned(),
                    revision: revision.to_owned(),
                });
            }
            status @ (401 | 403) => {
                return Err(ModelError::Denied { host: host.to_owned(), id: id.to_owned(), status });
            }
            status => {
                return Err(ModelError::Answer { host: host.to_owned(), what: format!("`{id}`"), status });
            }
        }
        let mut bytes = Vec::new();
        let mut at = Fetched { what, bytes: 0, total: answer.length };
        while let Some(more) = answer.next(&at, progress).map_err(|end| end.or_broken(unreachable))? {
            bytes.extend(more);
            at.bytes = bytes.len() as u64;
            if bytes.len() > TEXT_BYTES_MAX {
                return Err(unreachable("the answer has no end".into()));
            }
        }
        String::from_utf8(bytes).map_err(|_| unreachable("the answer is not UTF-8".into()))
    }

    /// Fetches `file` to `target`, continuing `target.incomplete` if that is there. The file appears under its name
    /// only when its size and hash are right.
    pub(super) fn fetch(
        &self,
        file: &RemoteFile<'_>,
        target: &Path,
        progress: Progress<'_>,
    ) -> Result<(), ModelError> {
        if target.is_file() {
            return Ok(());
        }
        let folder = target.parent().unwrap_or(target);
        fs::create_dir_all(folder).map_err(io(folder))?;
        let mut name = target.file_name().unwrap_or_default().to_owned();
        name.push(".incomplete");
        let incomplete = target.with_file_name(name);
        let mut expected = file.sha256;
        let mut last = None;
        for _ in 0..TRANSFERS_MAX {
            match self.transfer(file, &incomplete, &mut expected, progress) {
                Ok(()) => return finish(file, expected, &incomplete, target),
                Err(error @ ModelError::Broken { .. }) => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.expect("the loop ran at least once and ended only by a broken transfer"))
    }

    fn transfer(
        &self,
        file: &RemoteFile<'_>,
        incomplete: &Path,
        expected: &mut Option<ContentHash>,
        progress: Progress<'_>,
    ) -> Result<(), ModelError> {
        let offset = fs::metadata(incomplete).map_or(0, |data| data.len());
        if file.size.is_some_and(|size| size == offset && size > 0) {
            return Ok(());
        }
        let wanted = Wanted { url: &file.url, offset, what: &file.shown() };
        let answer = self.requests.open(&wanted, progress);
        let answer = answer.map_err(|end| end.or_broken(|message| file.broken(offset, message)))?;
        *expected = expected.or(answer.linked_hash);
        let append = match answer.status {
            200 => false,
            206 => true,
            // What is there is longer than the file: begin anew.
            416 => {
                fs::remove_file(incomplete).map_err(io(incomplete))?;
                return Err(file.broken(offset, "the server refused to continue there".into()));
            }
            status @ (401 | 403) => {
                return Err(ModelError::Denied { host: file.host.clone(), id: file.id.to_owned(), status });
            }
            status => {
                return Err(ModelError::Answer {
                    host: file.host.clone(),
                    what: file.name.to_owned(),
                    status,
                });
            }
        };
        let mut sink = OpenOptions::new();
        sink.create(true).write(true).append(append).truncate(!append);
        let sink = sink.open(incomplete).map_err(io(incomplete))?;
        let start = if append { offset } else { 0 };
        receive(answer, sink, start, (file, incomplete), progress)
    }
}

impl RemoteFile<'_> {
    fn shown(&self) -> String {
        format!("{} from {}", self.name, self.host)
    }

    fn broken(&self, bytes: u64, message: String) -> ModelError {
        ModelError::Broken { host: self.host.clone(), what: self.name.to_owned(), bytes, message }
    }
}

fn receive(
    mut answer: Incoming,
    mut sink: File,
    start: u64,
    (file, incomplete): (&RemoteFile<'_>, &Path),
    progress: Progress<'_>,
) -> Result<(), ModelError> {
    let total = file.size.or(answer.length.map(|rest| start + rest));
    let mut at = Fetched { what: file.shown(), bytes: start, total };
    loop {
        let piece = answer.next(&at, progress);
        let piece = piece.map_err(|end| end.or_broken(|message| file.broken(at.bytes, message)))?;
        let Some(piece) = piece else { break };
        sink.write_all(&piece).map_err(io(incomplete))?;
        at.bytes += piece.len() as u64;
        go_on(progress, at.clone())?;
    }
    sink.sync_all().map_err(io(incomplete))?;
    match total {
        Some(total) if at.bytes != total => {
            Err(file.broken(at.bytes, format!("{total} bytes were announced")))
        }
        _ => Ok(()),
    }
}

fn finish(
    file: &RemoteFile<'_>,
    expected: Option<ContentHash>,
    incomplete: &Path,
    target: &Path,
) -> Result<(), ModelError> {
    if let Some(expected) = expected {
        let found = hash_file(incomplete).map_err(io(incomplete))?;
        if found != expected {
            fs::remove_file(incomplete).map_err(io(incomplete))?;
            return Err(ModelError::WrongHash {
                what: format!("{} of {}", file.name, file.id),
                expected,
                found,
            });
        }
    }
    fs::rename(incomplete, target).map_err(io(target))
}

/// SHA-256 of a file's content.
///
/// # Errors
/// The file cannot be read.
pub fn hash_file(path: &Path) -> std::io::Result<ContentHash> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(ContentHash(hasher.finalize().into())),
            count => hasher.update(&chunk[..count]),
        }
    }
}
