//! Starts that must not succeed, and what they say.

#![allow(clippy::unwrap_used, reason = "a test's helpers may fail as loudly as the test itself")]

mod common;

use common::{start, start_on, submit};
use motley_scheduler_core::cluster::Clocks;
use motley_scheduler_core::wire::client::{FromClient, ToClient};
use motley_scheduler_head::HeadError;
use motley_scheduler_link::Bulk;

#[tokio::test]
async fn two_schedulers_never_share_a_state_folder() {
    let folder = tempfile::tempdir().unwrap();
    let first = start(folder.path()).await.unwrap();
    let error = start(folder.path()).await.unwrap_err();
    assert!(matches!(error, HeadError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("hint:"), "{error}");
    first.shutdown().await;
    start(folder.path()).await.unwrap().shutdown().await;
}

#[tokio::test]
async fn taken_port_is_named_and_leaves_the_folder_free() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = start(one.path()).await.unwrap();
    let port = first.address().port();
    let error = start_on(two.path(), port, Clocks::default()).await.unwrap_err().to_string();
    assert!(error.contains(&format!("127.0.0.1:{port}")) && error.contains("hint:"), "{error}");
    first.shutdown().await;
    start_on(two.path(), port, Clocks::default()).await.unwrap();
}

#[tokio::test]
async fn state_that_cannot_be_used_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = start(&file.join("state")).await.unwrap_err().to_string();
    assert!(error.contains("file/state") && error.contains("hint:"), "{error}");

    let state = folder.path().join("state");
    start(&state).await.unwrap().shutdown().await;
    std::fs::remove_file(state.join("authority/authority-key.pem")).unwrap();
    let error = start(&state).await.unwrap_err().to_string();
    assert!(error.contains("authority-key.pem"), "{error}");

    let state = folder.path().join("other");
    start(&state).await.unwrap().shutdown().await;
    std::fs::write(state.join("journal.sqlite"), vec![7; 8192]).unwrap();
    let error = start(&state).await.unwrap_err().to_string();
    assert!(error.contains("journal.sqlite"), "{error}");
}

#[tokio::test]
async fn clock_never_goes_back_over_restarts() {
    let folder = tempfile::tempdir().unwrap();
    let mut last = motley_scheduler_core::unit::Moment(0);
    for _ in 0..3 {
        let head = start(folder.path()).await.unwrap();
        let client = common::admin(&head).await;
        submit(&client).await;
        let ToClient::Status(status) = client.request(FromClient::Status).await.unwrap() else { panic!() };
        assert!(status.started > last && status.now >= status.started, "{status:?} after {last:?}");
        last = status.now;
        head.shutdown().await;
    }
}

/// Needs a disk that a test may fill: a small tmpfs, say.
#[tokio::test]
async fn full_disk_is_said_and_survived() {
    let Some(disk) = std::env::var_os("MOTLEY_TEST_SMALL_DISK") else {
        // Past the test runner, which keeps the words of a passing test to itself.
        let skipped = "skipped: MOTLEY_TEST_SMALL_DISK names no folder on a small disk\n";
        let _unsaid = std::io::Write::write_all(&mut std::io::stderr(), skipped.as_bytes());
        return;
    };
    let folder = tempfile::tempdir_in(disk).unwrap();
    let head = start(&folder.path().join("state")).await.unwrap();
    let client = common::admin(&head).await;
    let bulk = Bulk::open(head.admin_identity_folder()).await.unwrap();
    submit(&client).await;
    let filler = folder.path().join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
    let error = bulk.upload_bytes(&vec![7; 3 << 20]).await.unwrap_err().to_string();
    assert!(error.contains("No space") && error.contains("hint:"), "{error}");
    let mut stored = 1;
    let refusal = loop {
        let request = FromClient::Submit {
            document: common::DOCUMENT.into(),
            files: vec![],
            memory: vec![common::GIB],
        };
        match client.request(request).await.unwrap() {
            ToClient::Submitted { .. } => stored += 1,
            ToClient::Refused(refusal) => break refusal,
            other => panic!("{other:?}"),
        }
    };
    assert!(refusal.message.contains("cannot store its decisions") && refusal.hint.is_some(), "{refusal:?}");
    assert!(start(&folder.path().join("second")).await.unwrap_err().to_string().contains("second"));
    drop(file);
    std::fs::remove_file(&filler).unwrap();
    submit(&client).await;
    bulk.upload_bytes(&vec![7; 3 << 20]).await.unwrap();
    head.shutdown().await;
    let head = start(&folder.path().join("state")).await.unwrap();
    let ToClient::Jobs(jobs) = common::admin(&head).await.request(FromClient::Jobs).await.unwrap() else {
        panic!()
    };
    assert_eq!(jobs.len(), stored + 1);
}
