//! The model store against a local server that speaks the hub's API: redirects to another host, ranges, a transfer
//! that breaks, a wrong hash, 401 and 404. Real HTTP on loopback; only the hub itself is a stand-in.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use motley_scheduler_core::document::Source;
use motley_scheduler_core::id::ContentHash;
use sha2::{Digest, Sha256};

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// How the stand-in misbehaves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// The first transfer of the weights ends in the middle.
    BreaksOnce,
    /// Every transfer of the weights ends in the middle, at the same byte.
    BreaksAlways,
    WrongHash,
    NeedsToken,
}

struct Seen {
    /// `path range=... authorization=...`, in order.
    requests: Vec<String>,
    broken: u32,
}

struct Stand {
    address: String,
    seen: Arc<Mutex<Seen>>,
}

/// A safetensors file of one tensor with `count` zeros.
fn weights(count: usize) -> Vec<u8> {
    let header = format!(r#"{{"a":{{"dtype":"F32","shape":[{count}],"data_offsets":[0,{}]}}}}"#, count * 4);
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + count * 4, 0);
    bytes
}

fn start(fault: Fault) -> Stand {
    let hub = TcpListener::bind("127.0.0.1:0").unwrap();
    let storage = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", hub.local_addr().unwrap());
    let storage_address = format!("http://{}", storage.local_addr().unwrap());
    let seen = Arc::new(Mutex::new(Seen { requests: Vec::new(), broken: 0 }));
    for (listener, is_hub) in [(hub, true), (storage, false)] {
        let (seen, storage_address) = (seen.clone(), storage_address.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                answer(stream, is_hub, fault, (&storage_address, &seen));
            }
        });
    }
    Stand { address, seen }
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
    let file = path.split('?').next().unwrap_or("").rsplit('/').next().unwrap_or("").to_owned();
    let at = range.trim_start_matches("bytes=").trim_end_matches('-').parse::<usize>().unwrap_or(0);
    match (is_hub, path.as_str()) {
        (true, p) if p.starts_with("/api/models/owner/tiny/revision/main") => {
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
        Fault::BreaksAlways => true,
        Fault::BreaksOnce => seen.lock().unwrap().broken == 0,
        _ => false,
    };
    let end = if breaks { body.len().min(8000.max(at)) } else { body.len() };
    seen.lock().unwrap().broken += u32::from(breaks);
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body[at..end]));
}

fn settings(stand: &Stand, cache: &Path, token: Option<&str>) -> ModelSettings {
    ModelSettings {
        hub_endpoint: stand.address.clone(),
        hub_token: token.map(str::to_owned),
        modelscope_endpoint: stand.address.clone(),
        modelscope_token: None,
        cache: cache.to_owned(),
        pip: None,
    }
}

fn request(id: &str) -> ModelRequest {
    ModelRequest { source: Source::Hub { id: id.into() }, fallbacks: vec![], revision: None, sha256: None }
}

fn get(stand: &Stand, cache: &Path, token: Option<&str>, id: &str) -> Result<ModelFolder, ModelError> {
    resolve(&request(id), &settings(stand, cache, token), &Places::default(), &mut |_| ())
}

#[test]
fn files_are_fetched_through_redirects_without_leaking_the_token() {
    let cache = tempfile::tempdir().unwrap();
    let stand = start(Fault::NeedsToken);
    let folder = get(&stand, cache.path(), Some("secret"), "owner/tiny").unwrap();
    assert_eq!(folder.weights_sha256, ContentHash(Sha256::digest(weights(5000)).into()));
    assert!(folder.open().unwrap().config.starts_with('{'));
    assert!(!folder.path.join("pytorch_model.bin").exists());
    let seen = stand.seen.lock().unwrap();
    let storage = seen.requests.iter().find(|line| line.starts_with("/model.safetensors")).unwrap();
    assert!(storage.ends_with("authorization="), "{storage}");
    assert!(!seen.requests.iter().any(|line| line.contains("escape")));
}

#[test]
fn a_broken_transfer_continues_where_it_stopped() {
    let cache = tempfile::tempdir().unwrap();
    let stand = start(Fault::BreaksOnce);
    get(&stand, cache.path(), None, "owner/tiny").unwrap();
    let seen = stand.seen.lock().unwrap();
    assert!(seen.requests.iter().any(|line| line.contains("range=bytes=8000-")), "{:?}", seen.requests);
}

#[test]
fn what_arrived_stays_for_the_next_run_when_the_transfer_breaks_for_good() {
    let cache = tempfile::tempdir().unwrap();
    let stand = start(Fault::BreaksAlways);
    let error = get(&stand, cache.path(), None, "owner/tiny").unwrap_err();
    assert!(error.to_string().contains("broke off after 8000 bytes"), "{error}");
    let left = find(cache.path(), "model.safetensors.incomplete").unwrap();
    assert_eq!(std::fs::metadata(left).unwrap().len(), 8000);
    assert!(find(cache.path(), "model.safetensors").is_none());
}

#[test]
fn a_wrong_hash_is_refused_and_leaves_nothing() {
    let cache = tempfile::tempdir().unwrap();
    let error = get(&start(Fault::WrongHash), cache.path(), None, "owner/tiny").unwrap_err();
    assert!(matches!(error, ModelError::WrongHash { .. }), "{error}");
    assert!(find(cache.path(), "model.safetensors").is_none());
}

#[test]
fn refusals_say_what_to_do() {
    let cache = tempfile::tempdir().unwrap();
    let denied = get(&start(Fault::NeedsToken), cache.path(), None, "owner/tiny").unwrap_err();
    assert!(denied.to_string().contains("HF_TOKEN"), "{denied}");
    let missing = get(&start(Fault::None), cache.path(), None, "owner/absent").unwrap_err();
    assert!(missing.to_string().contains("404"), "{missing}");
}

#[test]
fn a_complete_model_needs_no_hub_any_more() {
    let cache = tempfile::tempdir().unwrap();
    let stand = start(Fault::None);
    let first = get(&stand, cache.path(), None, "owner/tiny").unwrap();
    let mut gone = settings(&stand, cache.path(), None);
    // The cache is kept by host: the same name, where nobody answers.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    gone.hub_endpoint = format!("http://{free}");
    let host = stand.address.trim_start_matches("http://");
    let models = cache.path().join("models");
    std::fs::rename(models.join(component(host)), models.join(component(&free.to_string()))).unwrap();
    let second = resolve(&request("owner/tiny"), &gone, &Places::default(), &mut |_| ()).unwrap();
    assert_eq!(first.weights_sha256, second.weights_sha256);
}

#[test]
fn a_fallback_is_taken_only_when_the_first_source_cannot_be_had() {
    let cache = tempfile::tempdir().unwrap();
    let model = tempfile::tempdir().unwrap();
    write_model(model.path(), &weights(10));
    let mut asked = request("owner/absent");
    asked.fallbacks = vec![Source::File { path: model.path().display().to_string() }];
    let stand = start(Fault::None);
    let settings = settings(&stand, cache.path(), None);
    let folder = resolve(&asked, &settings, &Places::default(), &mut |_| ()).unwrap();
    assert_eq!(folder.path, model.path());
    asked.sha256 = Some(ContentHash([0; 32]));
    let error = resolve(&asked, &settings, &Places::default(), &mut |_| ()).unwrap_err();
    assert!(matches!(error, ModelError::WrongHash { .. }), "{error}");
}

#[test]
fn broken_folders_are_refused_by_name() {
    let model = tempfile::tempdir().unwrap();
    write_model(model.path(), &weights(10));
    let verify = || ModelFolder::verify(model.path().to_owned(), "file:here".into(), None);
    verify().unwrap();
    let whole = weights(10);
    let mut lying = whole.clone();
    lying[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    for bytes in [&whole[..whole.len() - 4], &whole[..5], &lying[..], b""] {
        std::fs::write(model.path().join("model.safetensors"), bytes).unwrap();
        let error = verify().unwrap_err();
        assert!(matches!(error, ModelError::Damaged { .. } | ModelError::Disk { .. }), "{error}");
    }
    std::fs::remove_file(model.path().join("model.safetensors")).unwrap();
    assert!(verify().unwrap_err().to_string().contains("lacks model.safetensors"));
    std::fs::remove_file(model.path().join("tokenizer.json")).unwrap();
    assert!(verify().unwrap_err().to_string().contains("lacks tokenizer.json"));
}

fn write_model(folder: &Path, weights: &[u8]) {
    std::fs::write(folder.join("config.json"), "{}").unwrap();
    std::fs::write(folder.join("tokenizer.json"), "{}").unwrap();
    std::fs::write(folder.join("model.safetensors"), weights).unwrap();
}

fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let entries: Vec<PathBuf> = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).collect();
    let here = entries.iter().find(|path| path.file_name().is_some_and(|file| file == name));
    here.cloned().or_else(|| entries.iter().filter(|path| path.is_dir()).find_map(|path| find(path, name)))
}
