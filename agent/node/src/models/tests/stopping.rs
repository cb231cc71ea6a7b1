//! Transfers that stall, and downloads that somebody stops.

use std::fs;
use std::ops::ControlFlow;

use super::super::*;
use super::stand::{Fault, get, request, settings, start};
use super::{find, pip};

#[test]
fn a_stalled_transfer_is_continued() {
    let cache = tempfile::tempdir().unwrap();
    let stand = start(Fault::StallsOnce);
    get(&stand, cache.path(), None, "owner/tiny").unwrap();
    let seen = stand.seen.lock().unwrap();
    assert!(seen.requests.iter().any(|line| line.contains("range=bytes=8000-")), "{:?}", seen.requests);
}

#[test]
fn a_transfer_that_stalls_for_good_ends_and_keeps_what_came() {
    let cache = tempfile::tempdir().unwrap();
    let error = get(&start(Fault::StallsAlways), cache.path(), None, "owner/tiny").unwrap_err();
    assert!(matches!(error, ModelError::Broken { bytes: 8000, .. }), "{error}");
    assert!(find(cache.path(), "model.safetensors.incomplete").is_some());
}

#[test]
fn a_stalled_transfer_is_stopped_when_asked() {
    let cache = tempfile::tempdir().unwrap();
    let stand = start(Fault::StallsAlways);
    let mut settings = settings(&stand, cache.path(), None);
    // Only the stop can end it.
    settings.idle_timeout = Duration::from_secs(100_000);
    let mut stop = |fetched: Fetched| match fetched.bytes {
        8000 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    };
    let error = resolve(&request("owner/tiny"), &settings, &Places::default(), &mut stop).unwrap_err();
    assert!(matches!(error, ModelError::Stopped), "{error}");
    let left = find(cache.path(), "model.safetensors.incomplete").unwrap();
    assert_eq!(fs::metadata(left).unwrap().len(), 8000);
}

#[test]
fn waiting_for_another_process_is_stopped_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lock");
    let held = fs::File::create(&path).unwrap();
    held.lock().unwrap();
    let error = lock(&path, "owner/tiny", &mut |_| ControlFlow::Break(())).unwrap_err();
    assert!(matches!(error, ModelError::Stopped), "{error}");
}

#[test]
fn pip_is_killed_when_asked_and_leaves_nothing() {
    let cache = tempfile::tempdir().unwrap();
    let pid_file = cache.path().join("pid");
    let script = format!(
        "echo $$ > {0}.part\nmv {0}.part {0}\ntouch \"$TMPDIR/left\"\nexec sleep 100000",
        pid_file.display()
    );
    let settings = pip::settings(cache.path(), &script);
    let mut stop =
        |_: Fetched| if pid_file.exists() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    let error = resolve(&pip::request("some-model"), &settings, &Places::default(), &mut stop).unwrap_err();
    assert!(matches!(error, ModelError::Stopped), "{error}");
    let pid = fs::read_to_string(&pid_file).unwrap();
    assert!(!Path::new("/proc").join(pid.trim()).exists(), "pip {pid} still runs");
    assert_eq!(find(cache.path(), "left"), None);
}
