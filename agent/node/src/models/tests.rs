//! The model store against a local server that speaks the hubs' APIs: redirects to another host, ranges, transfers that
//! break or stall, a wrong hash, refusals; and against a pip that is a script. Real HTTP on loopback; only the hub itself
//! is a stand-in.

mod pip;
mod stand;
mod stopping;

use std::path::{Path, PathBuf};

use motley_scheduler_core::document::Source;
use motley_scheduler_core::id::ContentHash;
use sha2::{Digest, Sha256};

use super::*;
use stand::{COMMIT, Fault, get, have, nobody, request, settings, start, weights, write_model};

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
    let nobody = nobody();
    gone.hub_endpoint = format!("http://{nobody}");
    let host = stand.address.trim_start_matches("http://");
    let models = cache.path().join("models");
    std::fs::rename(models.join(component(host)), models.join(component(&nobody))).unwrap();
    let second = have(&request("owner/tiny"), &gone).unwrap();
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
    let folder = have(&asked, &settings).unwrap();
    assert_eq!(folder.path, model.path());
    asked.sha256 = Some(ContentHash([0; 32]));
    let error = have(&asked, &settings).unwrap_err();
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

#[test]
fn a_cached_model_is_used_when_the_hub_refuses_to_talk() {
    let cache = tempfile::tempdir().unwrap();
    let stand = start(Fault::None);
    let first = get(&stand, cache.path(), None, "owner/tiny").unwrap();
    for status in ["401 Unauthorized", "403 Forbidden", "429 Too Many Requests", "503 Service Unavailable"] {
        stand.set(Fault::Status(status));
        let again = get(&stand, cache.path(), None, "owner/tiny");
        assert_eq!(again.unwrap_or_else(|error| panic!("{status}: {error}")), first);
    }
    stand.set(Fault::NoListing);
    assert_eq!(get(&stand, cache.path(), None, "owner/tiny").unwrap(), first);
    // A hub that says that there is no such model is believed.
    stand.set(Fault::Status("404 Not Found"));
    assert!(matches!(get(&stand, cache.path(), None, "owner/tiny"), Err(ModelError::NotFound { .. })));
}

#[test]
fn a_commit_that_is_had_is_not_asked_for() {
    let cache = tempfile::tempdir().unwrap();
    let stand = start(Fault::None);
    let mut asked = request("owner/tiny");
    asked.revision = Some(COMMIT.to_owned());
    let settings = settings(&stand, cache.path(), None);
    let first = have(&asked, &settings).unwrap();
    let requests = stand.requests();
    assert_eq!(have(&asked, &settings).unwrap(), first);
    assert_eq!(stand.requests(), requests);
}

#[test]
fn a_model_of_modelscope_is_kept_by_what_its_listing_says() {
    let cache = tempfile::tempdir().unwrap();
    let stand = start(Fault::BreaksAlways);
    let settings = settings(&stand, cache.path(), None);
    let mut asked = request("owner/tiny");
    asked.source = Source::ModelScope { id: "owner/tiny".into() };
    asked.revision = Some("v1.0".to_owned());
    let error = have(&asked, &settings).unwrap_err();
    assert!(matches!(error, ModelError::Broken { .. }), "{error}");
    // What an interrupted run left of another state of the branch is not taken for this one.
    stand.set(Fault::Changed);
    asked.revision = Some("v1.1".to_owned());
    let changed = have(&asked, &settings).unwrap();
    assert_eq!(changed.open().unwrap().config, "{ }");
    stand.set(Fault::None);
    asked.revision = Some("v1.0".to_owned());
    let first = have(&asked, &settings).unwrap();
    assert_eq!(first.open().unwrap().config, "{}");
    assert_ne!(first.path, changed.path);
    let continued = "range=bytes=8000-";
    assert!(stand.seen.lock().unwrap().requests.iter().any(|line| line.contains(continued)));
    // Nothing but the listing is asked for again, and not even that is needed.
    let requests = stand.requests();
    assert_eq!(have(&asked, &settings).unwrap(), first);
    assert_eq!(stand.requests(), requests + 1);
    stand.set(Fault::Status("503 Service Unavailable"));
    assert_eq!(have(&asked, &settings).unwrap(), first);
}

#[test]
fn every_file_source_of_a_job_has_its_own_folder() {
    let input = tempfile::tempdir().unwrap();
    let folder = input.path().join(fallback_key(1));
    std::fs::create_dir_all(&folder).unwrap();
    write_model(&folder, &weights(10));
    let asked = ModelRequest {
        source: Source::File { path: "first".into() },
        fallbacks: vec![Source::File { path: "second".into() }, Source::File { path: "third".into() }],
        revision: None,
        sha256: None,
    };
    let settings = settings(&start(Fault::None), input.path(), None);
    let places = Places { input: Some(input.path().to_owned()), jobs: None };
    let found = resolve(&asked, &settings, &places, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(found.path, folder);
    assert_eq!(found.origin, "file:third");
}

#[test]
fn the_pooling_that_modules_json_lists_must_be_there() {
    let model = tempfile::tempdir().unwrap();
    write_model(model.path(), &weights(10));
    let write = |name: &str, text: &str| {
        let path = model.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let open = || ModelFolder::verify(model.path().to_owned(), "file:here".into(), None).unwrap().open();
    assert_eq!(open().unwrap().pooling, None);
    write("1_Pooling/config.json", "the first");
    assert_eq!(open().unwrap().pooling.as_deref(), Some("the first"));
    let modules = |path: &str| {
        format!(r#"[{{"path":"","type":"a.Transformer"}},{{"path":"{path}","type":"a.Pooling"}}]"#)
    };
    write("modules.json", &modules("pool"));
    let error = open().err().unwrap();
    assert!(matches!(error, ModelError::Incomplete { .. }), "{error}");
    assert!(error.to_string().contains("pool/config.json"), "{error}");
    write("pool/config.json", "the moved");
    assert_eq!(open().unwrap().pooling.as_deref(), Some("the moved"));
    for outside in ["..", "/etc", ""] {
        write("modules.json", &modules(outside));
        assert!(open().is_err(), "{outside}");
    }
}

fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let entries: Vec<PathBuf> = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).collect();
    let here = entries.iter().find(|path| path.file_name().is_some_and(|file| file == name));
    here.cloned().or_else(|| entries.iter().filter(|path| path.is_dir()).find_map(|path| find(path, name)))
}
