//! Blobs over real sockets into a real store.

#![allow(clippy::unwrap_used, reason = "a test's helpers may fail as loudly as the test itself")]

mod common;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{PATIENCE, admin, join_node, join_user, start};
use motley_scheduler_core::authorize::Role;
use motley_scheduler_core::id::ContentHash;
use motley_scheduler_core::unit::Bytes;
use motley_scheduler_core::wire::ALPN_BULK;
use motley_scheduler_core::wire::bulk::{BulkReply, BulkRequest};
use motley_scheduler_link::{Bulk, Identity, LinkError, LocalFile, connect};

/// Reproducible bytes that do not repeat.
fn noise(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33).to_le_bytes()
    };
    let mut bytes: Vec<u8> =
        std::iter::repeat_with(|| next()[..4].to_vec()).take(size.div_ceil(4)).flatten().collect();
    bytes.truncate(size);
    bytes
}

fn file(folder: &Path, name: &str, bytes: &[u8]) -> LocalFile {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    LocalFile::read(&path).unwrap()
}

/// Every file of the store.
fn stored(state: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for sub in std::fs::read_dir(state.join("blobs")).unwrap() {
        files.extend(std::fs::read_dir(sub.unwrap().path()).unwrap().map(|file| file.unwrap().path()));
    }
    files
}

#[tokio::test]
async fn files_of_every_size_come_back_as_they_went() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let head = start(&state).await.unwrap();
    let identity = join_node(&head, &admin(&head).await).await;
    let bulk = Bulk::connect(&head.address().to_string(), &identity).await.unwrap();
    let sizes = [0, 1, 4095, (1 << 20) - 1, 1 << 20, (4 << 20) + 1, (9 << 20) + 12345];
    let files: Vec<_> = (0_u64..)
        .zip(sizes)
        .map(|(seed, size)| file(folder.path(), &format!("{seed}.bin"), &noise(size, seed)))
        .collect();
    let total = sizes.iter().sum::<usize>() as u64;
    assert_eq!(bulk.upload_missing(&files).await.unwrap(), Bytes(total));
    assert_eq!(
        bulk.upload_missing(&files).await.unwrap(),
        Bytes(0),
        "the second time there is nothing to do"
    );
    for entry in &files {
        let copy = folder.path().join("copy");
        assert_eq!(bulk.download(entry.hash, &copy).await.unwrap(), entry.size);
        assert_eq!(LocalFile::read(&copy).unwrap().hash, entry.hash);
    }
    let hash = bulk.upload_bytes(b"a manifest").await.unwrap();
    assert_eq!(bulk.download_bytes(hash, Bytes(10)).await.unwrap(), b"a manifest");
    let error = bulk.download_bytes(hash, Bytes(9)).await.unwrap_err();
    assert!(matches!(error, LinkError::TooLarge { .. }), "{error}");
    let error = bulk.download(ContentHash([3; 32]), &folder.path().join("none")).await.unwrap_err();
    assert!(matches!(error, LinkError::NotStored { .. }), "{error}");
    assert_eq!(stored(&state).len(), sizes.len() + 1);
}

#[tokio::test]
async fn same_blob_from_many_at_once_is_stored_once() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let head = start(&state).await.unwrap();
    let identity = join_node(&head, &admin(&head).await).await;
    let same = file(folder.path(), "same.bin", &noise(6 << 20, 5));
    let mut uploads = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let bulk = Bulk::connect(&head.address().to_string(), &identity).await.unwrap();
        for _ in 0..3 {
            let (bulk, same) = (bulk.clone(), same.clone());
            uploads.spawn(async move { bulk.upload(&same).await });
        }
    }
    while let Some(result) = uploads.join_next().await {
        result.unwrap().unwrap();
    }
    assert_eq!(stored(&state).len(), 1);
}

#[tokio::test]
async fn what_is_not_what_it_says_is_not_stored() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let head = start(&state).await.unwrap();
    let client = admin(&head).await;
    let identity = join_node(&head, &client).await;
    let address = head.address().to_string();
    let link = connect(&address, ALPN_BULK, &identity).await.unwrap();
    let put = async |hash: [u8; 32], size: u64, bytes: &[u8]| {
        let mut channel = link.open().await.unwrap();
        channel.send(&BulkRequest::Put { hash: ContentHash(hash), size: Bytes(size) }).await.unwrap();
        let _ = channel.sender.send_chunk(bytes.to_vec().into()).await;
        channel.finish();
        channel.receiver.receive_first::<BulkReply>("reply").await
    };
    let reply = put([7; 32], 5, b"other").await.unwrap();
    assert!(matches!(reply, BulkReply::Refused { ref reason } if reason.contains("not 0707")), "{reply:?}");
    let reply = put([7; 32], 50, b"short").await.unwrap();
    assert!(matches!(reply, BulkReply::Refused { ref reason } if reason.contains("5 of 50")), "{reply:?}");
    // A client that breaks off in the middle, and one that goes away.
    let mut channel = link.open().await.unwrap();
    channel.send(&BulkRequest::Put { hash: ContentHash([8; 32]), size: Bytes(1 << 30) }).await.unwrap();
    channel.sender.send_chunk(noise(5 << 20, 1).into()).await.unwrap();
    channel.sender.abort(motley_scheduler_link::CloseCode::Failed);
    let mut channel = link.open().await.unwrap();
    channel.send(&BulkRequest::Put { hash: ContentHash([9; 32]), size: Bytes(1 << 30) }).await.unwrap();
    channel.sender.send_chunk(noise(5 << 20, 1).into()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    link.shut_down("gone").await;
    // A changed file is noticed by its owner.
    let mut changed = file(folder.path(), "changed", b"before");
    std::fs::write(&changed.path, b"after!").unwrap();
    let bulk = Bulk::connect(&address, &identity).await.unwrap();
    assert!(matches!(bulk.upload(&changed).await, Err(LinkError::HashMismatch { .. })));
    changed.size = Bytes(1000);
    let error = bulk.upload(&changed).await.unwrap_err().to_string();
    assert!(error.contains("shorter"), "{error}");
    let begun = Instant::now();
    while !stored(&state).is_empty() {
        assert!(begun.elapsed() < PATIENCE, "left behind: {:?}", stored(&state));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn damage_on_the_disk_is_never_delivered_and_can_be_repaired() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let head = start(&state).await.unwrap();
    let identity = join_node(&head, &admin(&head).await).await;
    let bulk = Bulk::connect(&head.address().to_string(), &identity).await.unwrap();
    let bytes = noise(5 << 20, 2);
    let entry = file(folder.path(), "entry", &bytes);
    bulk.upload(&entry).await.unwrap();
    let mut damaged = bytes.clone();
    damaged[3 << 20] ^= 1;
    std::fs::write(&stored(&state)[0], damaged).unwrap();
    let copy = folder.path().join("copy");
    assert!(bulk.download(entry.hash, &copy).await.is_err());
    assert!(!copy.exists(), "a damaged blob leaves no file");
    // The scheduler takes it out of the store once it has told the asker.
    let begun = Instant::now();
    while bulk.missing(&[entry.hash]).await.unwrap() != [entry.hash] {
        assert!(begun.elapsed() < PATIENCE, "the damaged blob stays");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bulk.upload(&entry).await.unwrap();
    bulk.download(entry.hash, &copy).await.unwrap();
}

#[tokio::test]
async fn leftovers_of_a_killed_scheduler_are_removed_and_blobs_stay() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let head = start(&state).await.unwrap();
    let bulk = Bulk::open(head.admin_identity_folder()).await.unwrap();
    let hash = bulk.upload_bytes(b"kept").await.unwrap();
    drop(head);
    let kept = stored(&state);
    std::fs::write(kept[0].with_extension("x#1"), "half").unwrap();
    let head = start(&state).await.unwrap();
    assert_eq!(stored(&state), kept);
    let bulk = Bulk::open(head.admin_identity_folder()).await.unwrap();
    assert_eq!(bulk.download_bytes(hash, Bytes(100)).await.unwrap(), b"kept");
}

#[tokio::test]
async fn viewers_neither_read_nor_write_blobs_and_long_questions_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let head = start(folder.path()).await.unwrap();
    let client = admin(&head).await;
    let viewer: Identity = join_user(&head, &client, "vic", Role::Viewer).await;
    let address = head.address().to_string();
    let bulk = Bulk::connect(&address, &viewer).await.unwrap();
    let error = bulk.upload_bytes(b"x").await.unwrap_err().to_string();
    assert!(error.contains("may not store files"), "{error}");
    assert!(matches!(
        bulk.download_bytes(ContentHash([0; 32]), Bytes(1)).await,
        Err(LinkError::Refused { .. })
    ));
    let link = connect(&address, ALPN_BULK, &join_node(&head, &client).await).await.unwrap();
    let mut channel = link.open().await.unwrap();
    channel.send(&BulkRequest::Missing { hashes: vec![ContentHash([1; 32]); 5000] }).await.unwrap();
    channel.finish();
    let reply: BulkReply = channel.receiver.receive_first("reply").await.unwrap();
    assert!(matches!(reply, BulkReply::Refused { .. }), "{reply:?}");
    let mut channel = link.open().await.unwrap();
    let sent = channel.send(&BulkRequest::Missing { hashes: vec![ContentHash([1; 32]); 9000] }).await;
    assert!(matches!(sent, Err(LinkError::Malformed { .. })), "{sent:?}");
}

/// Says how fast a gigabyte goes in and out; slow machines are no failure. Run with `--ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement: takes seconds and a gigabyte of disk"]
async fn measure_a_gigabyte_in_and_out() {
    let folder = tempfile::tempdir().unwrap();
    let head = start(&folder.path().join("state")).await.unwrap();
    let bulk = Bulk::open(head.admin_identity_folder()).await.unwrap();
    let entry = file(folder.path(), "gigabyte", &noise(1 << 30, 3));
    let begun = Instant::now();
    bulk.upload(&entry).await.unwrap();
    let up = begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    bulk.download(entry.hash, &folder.path().join("copy")).await.unwrap();
    let down = begun.elapsed().as_secs_f64();
    eprintln!("1 GiB: in {:.0} MB/s, out {:.0} MB/s", 1073.7 / up, 1073.7 / down);
}
