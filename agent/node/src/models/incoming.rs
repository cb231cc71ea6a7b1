//! One answer of a hub, read by a thread of its own: a blocking read obeys nobody, so whoever waits for it looks up
//! now and then and can give up, because the user wants to stop or because nothing comes any more.
//!
//! ```text
//! request thread   redirects, head, body ──pieces──▶ Incoming   waits for the next piece, LOOK by LOOK
//! ```
//!
//! A thread that was given up ends with its connection, at the latest with this process.

use std::io::Read;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use motley_scheduler_core::id::ContentHash;
use ureq::http::Response;

use super::{Fetched, LOOK, ModelError, Progress, go_on};

/// A hub that does not answer within this time is taken as unreachable; short, because a fallback may be at hand.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for the headers of an answer.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(30);
/// Hubs use one or two redirects (to their storage); more is a loop.
const REDIRECTS_MAX: usize = 5;
const PIECE_BYTES: usize = 1 << 20;
/// Pieces read ahead of the disk: enough to keep both busy, and some megabytes at most.
const PIECES_WAITING_MAX: usize = 4;

/// Asks one hub, with its access token.
#[derive(Clone)]
pub(super) struct Requests {
    agent: ureq::Agent,
    token: Option<String>,
    idle_timeout: Duration,
}

/// What is asked for.
pub(super) struct Wanted<'a> {
    pub url: &'a str,
    /// First byte of the body.
    pub offset: u64,
    /// For people: `model.safetensors from huggingface.co`.
    pub what: &'a str,
}

/// Why an answer does not come, or does not go on.
pub(super) enum Interruption {
    Stopped,
    Broken(String),
}

/// An answer after redirects, with what the redirecting answers said about the file.
pub(super) struct Incoming {
    pub status: u16,
    pub linked_hash: Option<ContentHash>,
    /// Bytes of this answer's body, as announced.
    pub length: Option<u64>,
    pieces: Receiver<Piece>,
    idle_timeout: Duration,
}

enum Piece {
    Head { status: u16, linked_hash: Option<ContentHash>, length: Option<u64> },
    Bytes(Vec<u8>),
    End,
    Broken(String),
}

impl Interruption {
    pub(super) fn or_broken(self, broken: impl FnOnce(String) -> ModelError) -> ModelError {
        match self {
            Interruption::Stopped => ModelError::Stopped,
            Interruption::Broken(message) => broken(message),
        }
    }
}

impl Requests {
    pub(super) fn new(token: Option<String>, idle_timeout: Duration) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(RESPONSE_TIMEOUT))
            .max_redirects(0)
            .http_status_as_error(false)
            .build();
        Requests { agent: config.into(), token, idle_timeout }
    }

    /// The head of the answer; its body follows by [`Incoming::next`].
    pub(super) fn open(&self, wanted: &Wanted<'_>, progress: Progress<'_>) -> Result<Incoming, Interruption> {
        let (sender, pieces) = sync_channel(PIECES_WAITING_MAX);
        let (requests, url, offset) = (self.clone(), wanted.url.to_owned(), wanted.offset);
        let thread = std::thread::Builder::new().name("hub request".into());
        let started = thread.spawn(move || requests.answer(&url, offset, &sender));
        started.map_err(|error| Interruption::Broken(format!("no thread: {error}")))?;
        let at = Fetched { what: wanted.what.to_owned(), bytes: offset, total: None };
        // Connecting and the head have their own limits, for each of the redirects.
        let head_time = (CONNECT_TIMEOUT + RESPONSE_TIMEOUT) * (REDIRECTS_MAX as u32 + 1);
        match wait(&pieces, head_time, &at, progress)? {
            Piece::Head { status, linked_hash, length } => {
                Ok(Incoming { status, linked_hash, length, pieces, idle_timeout: self.idle_timeout })
            }
            Piece::Broken(message) => Err(Interruption::Broken(message)),
            Piece::Bytes(_) | Piece::End => Err(Interruption::Broken("no head came".into())),
        }
    }

    /// Sends the whole answer; ends early when nobody listens any more.
    fn answer(&self, url: &str, offset: u64, sender: &SyncSender<Piece>) {
        let (response, linked_hash) = match self.follow(url, offset) {
            Ok(answer) => answer,
            Err(error) => return drop(sender.send(Piece::Broken(error.to_string()))),
        };
        let length = response.headers().get("content-length").and_then(|value| value.to_str().ok());
        let length = length.and_then(|text| text.parse().ok());
        let mut sent = sender.send(Piece::Head { status: response.status().as_u16(), linked_hash, length });
        let mut reader = response.into_body().into_reader();
        while sent.is_ok() {
            let mut piece = vec![0; PIECE_BYTES];
            let next = match reader.read(&mut piece) {
                Ok(0) => return drop(sender.send(Piece::End)),
                Ok(count) => {
                    piece.truncate(count);
                    Piece::Bytes(piece)
                }
                Err(error) => return drop(sender.send(Piece::Broken(error.to_string()))),
            };
            sent = sender.send(next);
        }
    }

    /// Follows redirects by hand: the token goes to the hub's own host alone, and the first answer carries the hash.
    fn follow(
        &self,
        url: &str,
        offset: u64,
    ) -> Result<(Response<ureq::Body>, Option<ContentHash>), ureq::Error> {
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
                _ => return Ok((response, linked_hash)),
            }
        }
        Err(ureq::Error::TooManyRedirects)
    }
}

impl Incoming {
    /// The next bytes of the body; `None` at its end. `at` is how far the file is.
    pub(super) fn next(
        &mut self,
        at: &Fetched,
        progress: Progress<'_>,
    ) -> Result<Option<Vec<u8>>, Interruption> {
        match wait(&self.pieces, self.idle_timeout, at, progress)? {
            Piece::Bytes(bytes) => Ok(Some(bytes)),
            Piece::End => Ok(None),
            Piece::Broken(message) => Err(Interruption::Broken(message)),
            Piece::Head { .. } => Err(Interruption::Broken("a second head came".into())),
        }
    }
}

/// Waits for the next piece at most `time_max`, and asks meanwhile whether to go on.
fn wait(
    pieces: &Receiver<Piece>,
    time_max: Duration,
    at: &Fetched,
    progress: Progress<'_>,
) -> Result<Piece, Interruption> {
    let began = Instant::now();
    loop {
        match pieces.recv_timeout(LOOK) {
            Ok(piece) => return Ok(piece),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Interruption::Broken("the request ended without a word".into()));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        go_on(progress, at.clone()).map_err(|_| Interruption::Stopped)?;
        if began.elapsed() >= time_max {
            return Err(Interruption::Broken(format!("no byte came for {:.0?}", time_max)));
        }
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
