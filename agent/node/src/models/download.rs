//! One file over HTTP: redirects without leaking the token, resumed transfers, checked size and hash.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use motley_scheduler_core::id::ContentHash;
use sha2::{Digest, Sha256};
use ureq::http::Response;

use super::{Fetched, ModelError, Progress, io};

/// A hub that does not answer within this time is taken as unreachable; short, because a fallback may be at hand.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for the headers of an answer.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// Hubs use one or two redirects (to their storage); more is a loop.
const REDIRECTS_MAX: usize = 5;
/// Transfers of one file before giving up; each continues where the last stopped.
const TRANSFERS_MAX: usize = 4;
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

/// An HTTP client with the token of one hub.
pub(super) struct Client {
    agent: ureq::Agent,
    token: Option<String>,
}

/// An answer after redirects, with what the redirecting answers said about the file.
struct Answer {
    response: Response<ureq::Body>,
    linked_hash: Option<ContentHash>,
}

impl Client {
    pub(super) fn new(token: Option<String>) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(RESPONSE_TIMEOUT))
            .max_redirects(0)
            .http_status_as_error(false)
            .build();
        Client { agent: config.into(), token }
    }

    /// The body of a small answer.
    pub(super) fn text(&self, url: &str, host: &str, id: &str, revision: &str) -> Result<String, ModelError> {
        let unreachable =
            |message: String| ModelError::Unreachable { host: host.to_owned(), id: id.to_owned(), message };
        let mut answer = self.get(url, 0).map_err(|error| unreachable(error.to_string()))?;
        match answer.response.status().as_u16() {
            200 => {
                answer.response.body_mut().read_to_string().map_err(|error| unreachable(error.to_string()))
            }
            404 => Err(ModelError::NotFound {
                host: host.to_owned(),
                id: id.to_owned(),
                revision: revision.to_owned(),
            }),
            status @ (401 | 403) => {
                Err(ModelError::Denied { host: host.to_owned(), id: id.to_owned(), status })
            }
            status => Err(ModelError::Answer { host: host.to_owned(), what: format!("`{id}`"), status }),
        }
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
        let broken = |bytes: u64, message: String| ModelError::Broken {
            host: file.host.clone(),
            what: file.name.to_owned(),
            bytes,
            message,
        };
        let answer = self.get(&file.url, offset).map_err(|error| broken(offset, error.to_string()))?;
        *expected = expected.or(answer.linked_hash);
        let append = match answer.response.status().as_u16() {
            200 => false,
            206 => true,
            // What is there is longer than the file: begin anew.
            416 => {
                fs::remove_file(incomplete).map_err(io(incomplete))?;
                return Err(broken(offset, "the server refused to continue there".into()));
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
        receive(answer.response, sink, start, (file, incomplete), progress)
    }

    /// Follows redirects by hand: the token goes to the hub's own host alone, and the first answer carries the hash.
    fn get(&self, url: &str, offset: u64) -> Result<Answer, ureq::Error> {
        let mut url = url.to_owned();
        let origin = origin(&url).to_owned();
        let mut linked_hash = None;
        for _ in 0..=REDIRECTS_MAX {
            let mut request = self.agent.get(&url);
            if offset > 0 {
                request = request.header("range", format!("bytes={offset}-"));
            }
            if let Some(token) = self.token.as_ref().filter(|_| self::origin(&url) == origin) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let response = request.call()?;
            linked_hash = linked_hash.or_else(|| hash_header(&response));
            let location = response.headers().get("location").and_then(|value| value.to_str().ok());
            match location {
                Some(location) if response.status().is_redirection() => url = absolute(&url, location),
                _ => return Ok(Answer { response, linked_hash }),
            }
        }
        Err(ureq::Error::TooManyRedirects)
    }
}

/// Scheme, host and port.
fn origin(url: &str) -> &str {
    let after_scheme = url.find("://").map_or(0, |at| at + 3);
    let end = url[after_scheme..].find('/').map_or(url.len(), |at| after_scheme + at);
    &url[..end]
}

fn absolute(base: &str, location: &str) -> String {
    if location.contains("://") {
        return location.to_owned();
    }
    if location.starts_with('/') {
        return format!("{}{location}", origin(base));
    }
    let folder = base.rfind('/').map_or(base, |at| &base[..at]);
    format!("{folder}/{location}")
}

/// `X-Linked-Etag` or `ETag` when it is a SHA-256 (large files); small files carry a git hash there.
fn hash_header(response: &Response<ureq::Body>) -> Option<ContentHash> {
    let read = |name: &str| {
        let text = response.headers().get(name)?.to_str().ok()?;
        text.trim_start_matches("W/").trim_matches('"').parse().ok()
    };
    read("x-linked-etag").or_else(|| read("etag"))
}

fn receive(
    response: Response<ureq::Body>,
    mut sink: File,
    start: u64,
    (file, incomplete): (&RemoteFile<'_>, &Path),
    progress: Progress<'_>,
) -> Result<(), ModelError> {
    let announced = response.headers().get("content-length");
    let announced = announced.and_then(|value| value.to_str().ok()).and_then(|text| text.parse::<u64>().ok());
    let total = file.size.or(announced.map(|rest| start + rest));
    let mut reader = response.into_body().into_reader();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut bytes = start;
    let broken = |bytes: u64, message: String| ModelError::Broken {
        host: file.host.clone(),
        what: file.name.to_owned(),
        bytes,
        message,
    };
    loop {
        let count = reader.read(&mut chunk).map_err(|error| broken(bytes, error.to_string()))?;
        if count == 0 {
            break;
        }
        sink.write_all(&chunk[..count]).map_err(io(incomplete))?;
        bytes += count as u64;
        progress(Fetched { what: format!("{} from {}", file.name, file.host), bytes, total });
    }
    sink.sync_all().map_err(io(incomplete))?;
    match total {
        Some(total) if bytes != total => Err(broken(bytes, format!("{total} bytes were announced"))),
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
