//! A server on loopback that speaks the hubs' APIs, and misbehaves as asked.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use motley_scheduler_core::document::Source;
use motley_scheduler_core::id::ContentHash;
use sha2::{Digest, Sha256};

use super::super::*;

pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How the stand-in misbehaves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    /// The first transfer of the weights ends in the middle.
    BreaksOnce,
    /// Every transfer of the weights ends in the middle, at the same byte.
    BreaksAlways,
    /// The first transfer of the weights brings some bytes and then nothing, without an end.
    StallsOnce,
    StallsAlways,
    WrongHash,
    NeedsToken,
    /// Every request of the hub has this answer.
    Status(&'static str),
    /// The listing is no JSON: the page of a hotel's network.
    NoListing,
    /// Another config.json than before.
    Changed,
}

pub(super) struct Seen {
    /// `path range=... authorization=...`, in order.
    pub requests: Vec<String>,
    pub broken: u32,
    /// Connections on which nothing more comes.
    stalled: Vec<TcpStream>,
}

pub(super) struct Stand {
    pub address: String,
    pub seen: Arc<Mutex<Seen>>,
    fault: Arc<Mutex<Fault>>,
}

impl Stand {
    pub fn set(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
    }

    pub fn requests(&self) -> usize {
        self.seen.lock().unwrap().requests.len()
    }
}

/// A safetensors file of one tensor with `count` zeros.
pub(super) fn weights(count: usize) -> Vec<u8> {
    let header = format!(r#"{{"a":{{"dtype":"F32","shape":[{count}],"data_offsets":[0,{}]}}}}"#, count * 4);
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + count * 4, 0);
    bytes
}

pub(super) fn start(fault: Fault) -> Stand {
    let hub = TcpListener::bind("127.0.0.1:0").unwrap();
    let storage = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", hub.local_addr().unwrap());
    let storage_address = format!("http://{}", storage.local_addr().unwrap());
    let seen = Arc::new(Mutex::new(Seen { requests: Vec::new(), broken: 0, stalled: Vec::new() }));
    let fault = Arc::new(Mutex::new(fault));
    for (listener, is_hub) in [(hub, true), (storage, false)] {
        let (seen, storage_address, fault) = (seen.clone(), storage_address.clone(), fault.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let fault = *fault.lock().unwrap();
                answer(stream, is_hub, fault, (&storage_address, &seen));
            }
        });
    }
    Stand { address, seen, fault }
}

fn answer(mut stream: TcpStream, is_hub: bool, fault: Fault, (storage, seen): (&str, &Mutex<Seen>)) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let headers: BTreeMap<String, String> = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(k, v)| (k.to_lowercase(), v.to_owned())))
        .collect();
    let path = first.split(' ').nth(1).unwrap_or("/").to_owned();
    let range = headers.get("range").cloned().unwrap_or_default();
    let token = headers.get("authorization").cloned().unwrap_or_default();
    seen.lock().unwrap().requests.push(format!("{path} range={range} authorization={token}"));
    let hash = ContentHash(Sha256::digest(weights(5000)).into());
    let send = |stream: &mut TcpStream, status: &str, headers: &str, body: &[u8]| {
        let head = format!(
            "HTTP/1.1 {status}\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n",
            body.len()
        );
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
    };
    if fault == Fault::NeedsToken && is_hub && token != "Bearer secret" {
        return send(&mut stream, "401 Unauthorized", "", b"");
    }
    if let (Fault::Status(status), true) = (fault, is_hub) {
        return send(&mut stream, status, "", b"");
    }
    let config: &[u8] = if fault == Fault::Changed { b"{ }" } else { b"{}" };
    let file = path.split('?').next().unwrap_or("").rsplit('/').next().unwrap_or("").to_owned();
    let at = range.trim_start_matches("bytes=").trim_end_matches('-').parse::<usize>().unwrap_or(0);
    match (is_hub, path.as_str()) {
        (true, p) if p.contains("/api/") && fault == Fault::NoListing => {
            send(&mut stream, "200 OK", "", b"<html>please sign in</html>");
        }
        (true, p) if p.starts_with("/api/v1/models/owner/tiny/repo/files?") => {
            let (size, config_hash) = (weights(5000).len(), ContentHash(Sha256::digest(config).into()));
            let listing = format!(
                r#"{{"Code":200,"Data":{{"Files":[{{"Path":"1_Pooling","Type":"tree"}},
                {{"Path":"config.json","Size":{},"Sha256":"{config_hash}","Type":"blob"}},{{"Path":"tokenizer.json","Size":2,"Type":"blob"}},
                {{"Path":"model.safetensors","Size":{size},"Sha256":"{hash}","Type":"blob"}}]}}}}"#,
                config.len()
            );
            send(&mut stream, "200 OK", "", listing.as_bytes());
        }
        (true, p) if p.starts_with("/api/v1/models/owner/tiny/repo?") && p.ends_with("model.safetensors") => {
            send_weights(stream, fault, at, seen);
        }
        (true, p) if p.starts_with("/api/v1/models/owner/tiny/repo?") && p.ends_with("config.json") => {
            send(&mut stream, "200 OK", "", config);
        }
        (true, p) if p.starts_with("/api/v1/models/owner/tiny/repo?") => {
            send(&mut stream, "200 OK", "", b"{}")
        }
        (true, p) if p.starts_with("/api/models/owner/tiny/revision/") => {
            let size = weights(5000).len();
            let listing = format!(
                r#"{{"sha":"{COMMIT}","siblings":[{{"rfilename":"config.json","size":2}},{{"rfilename":"tokenizer.json","size":2}},
                {{"rfilename":"model.safetensors","size":{size},"lfs":{{"sha256":"{hash}"}}}},{{"rfilename":"pytorch_model.bin","size":9}},
                {{"rfilename":"../../escape.json","size":2}}]}}"#
            );
            send(&mut stream, "200 OK", "", listing.as_bytes());
        }
        (true, p) if p.starts_with("/owner/tiny/resolve/") && file == "model.safetensors" => {
            let headers = format!("location: {storage}/{file}\r\nx-linked-etag: \"{hash}\"\r\n");
            send(&mut stream, "302 Found", &headers, b"");
        }
        (true, p) if p.starts_with("/owner/tiny/resolve/") => send(&mut stream, "200 OK", "", b"{}"),
        (false, _) => send_weights(stream, fault, at, seen),
        _ => send(&mut stream, "404 Not Found", "", b""),
    }
}

fn send_weights(mut stream: TcpStream, fault: Fault, at: usize, seen: &Mutex<Seen>) {
    let mut body = weights(5000);
    if fault == Fault::WrongHash {
        *body.last_mut().unwrap() = 1;
    }
    let status = if at > 0 { "206 Partial Content" } else { "200 OK" };
    let head =
        format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len() - at);
    let breaks = match fault {
        Fault::BreaksAlways | Fault::StallsAlways => true,
        Fault::BreaksOnce | Fault::StallsOnce => seen.lock().unwrap().broken == 0,
        _ => false,
    };
    let end = if breaks { body.len().min(8000.max(at)) } else { body.len() };
    seen.lock().unwrap().broken += u32::from(breaks);
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body[at..end]));
    if breaks && matches!(fault, Fault::StallsOnce | Fault::StallsAlways) {
        seen.lock().unwrap().stalled.push(stream);
    }
}

pub(super) fn settings(stand: &Stand, cache: &Path, token: Option<&str>) -> ModelSettings {
    ModelSettings {
        hub_endpoint: stand.address.clone(),
        hub_token: token.map(str::to_owned),
        modelscope_endpoint: stand.address.clone(),
        modelscope_token: None,
        cache: cache.to_owned(),
        pip: None,
        idle_timeout: Duration::from_millis(500),
    }
}

pub(super) fn request(id: &str) -> ModelRequest {
    ModelRequest { source: Source::Hub { id: id.into() }, fallbacks: vec![], revision: None, sha256: None }
}

pub(super) fn get(
    stand: &Stand,
    cache: &Path,
    token: Option<&str>,
    id: &str,
) -> Result<ModelFolder, ModelError> {
    have(&request(id), &settings(stand, cache, token))
}

/// To the end, without anybody who stops it.
pub(super) fn have(request: &ModelRequest, settings: &ModelSettings) -> Result<ModelFolder, ModelError> {
    resolve(request, settings, &Places::default(), &mut |_| ControlFlow::Continue(()))
}

/// An address where every connection ends at once, for as long as the test's process lives.
pub(super) fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    address
}

pub(super) fn write_model(folder: &Path, weights: &[u8]) {
    std::fs::write(folder.join("config.json"), "{}").unwrap();
    std::fs::write(folder.join("tokenizer.json"), "{}").unwrap();
    std::fs::write(folder.join("model.safetensors"), weights).unwrap();
}
