//! Members that do not keep to the protocol: nothing crashes, nothing is stored, everybody else is served.

#![allow(clippy::unwrap_used, reason = "a test's helpers may fail as loudly as the test itself")]

mod common;

use common::{Agent, admin, join_node, start, submit};
use motley_scheduler_core::id::{AttemptId, Epoch, JobId};
use motley_scheduler_core::wire::agent::FromAgent;
use motley_scheduler_core::wire::client::{FromClient, ToClient};
use motley_scheduler_core::wire::{ALPN_AGENT, ALPN_BULK, ALPN_CLIENT};
use motley_scheduler_head::HeadHandle;
use motley_scheduler_link::{Client, Identity, connect};

/// Frames that are none: cut off, too long, trailing bytes, unknown variants, lying lengths inside.
fn corpus() -> Vec<Vec<u8>> {
    let frame = |body: &[u8]| [&(body.len() as u32).to_le_bytes(), body].concat();
    let mut corpus = vec![
        vec![],
        vec![1],
        vec![0xff; 4],
        vec![16, 0, 0, 0, 1, 2],
        frame(&[]),
        frame(&[0xff; 9]),
        frame(&[250; 3]),
        frame(&[0, 0xfd, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        frame(&[6, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
    ];
    let mut state = 42_u64;
    for size in 0..64 {
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        let mut body: Vec<u8> = std::iter::repeat_with(&mut next).take(size).collect();
        if let Some(first) = body.first_mut() {
            *first %= 10;
        }
        corpus.push(frame(&body));
    }
    corpus
}

async fn jobs_and_nodes(client: &Client) -> (usize, usize) {
    let (ToClient::Jobs(jobs), ToClient::Nodes(nodes)) =
        (client.request(FromClient::Jobs).await.unwrap(), client.request(FromClient::Nodes).await.unwrap())
    else {
        panic!()
    };
    (jobs.len(), nodes.len())
}

async fn identities(head: &HeadHandle, client: &Client) -> (Identity, Identity) {
    (join_node(head, client).await, Identity::load(head.admin_identity_folder()).unwrap())
}

#[tokio::test]
async fn garbage_of_members_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let head = start(folder.path()).await.unwrap();
    let client = admin(&head).await;
    let (node, user) = identities(&head, &client).await;
    let address = head.address().to_string();
    let before = jobs_and_nodes(&client).await;
    let member = connect(&address, ALPN_CLIENT, &user).await.unwrap();
    let bulk = connect(&address, ALPN_BULK, &user).await.unwrap();
    for bytes in corpus() {
        for link in [&member, &bulk] {
            let mut channel = link.open().await.unwrap();
            channel.sender.send_chunk(bytes.clone().into()).await.unwrap();
            channel.finish();
            // Some noise is a message by chance, and answered; all of it ends.
            while let Ok(Some(_)) = channel.receiver.receive_chunk(1 << 16).await {}
        }
    }
    for bytes in corpus().into_iter().step_by(3) {
        let agent = connect(&address, ALPN_AGENT, &node).await.unwrap();
        let mut channel = agent.open().await.unwrap();
        channel.sender.send_chunk(bytes.into()).await.unwrap();
        channel.finish();
        agent.closed().await;
    }
    // A second report-less agent, and one that talks about jobs which do not exist.
    let silent = connect(&address, ALPN_AGENT, &node).await.unwrap();
    let mut channel = silent.open().await.unwrap();
    channel.send(&FromAgent::Beat { attempts: vec![] }).await.unwrap();
    assert!(silent.closed().await.to_string().contains("report"));
    let mut agent = Agent::connect(&address, &node, vec![]).await;
    let attempt = AttemptId { job: JobId(u64::MAX), number: u32::MAX };
    let log = FromAgent::Log { attempt, epoch: Epoch(9), offset: 0, bytes: vec![1; 1000] };
    agent.say(log).await;
    agent.running(attempt, Epoch(9)).await;
    assert_eq!(jobs_and_nodes(&client).await, before);
    assert_eq!(std::fs::read_dir(folder.path().join("logs")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(folder.path().join("blobs")).unwrap().count(), 0);
    submit(&client).await;
    agent.assignment().await;
}

#[tokio::test]
async fn silence_is_ended_wherever_something_was_due() {
    let folder = tempfile::tempdir().unwrap();
    let head = start(folder.path()).await.unwrap();
    let client = admin(&head).await;
    let (node, user) = identities(&head, &client).await;
    let address = head.address().to_string();
    let agent = connect(&address, ALPN_AGENT, &node).await.unwrap();
    let member = connect(&address, ALPN_CLIENT, &user).await.unwrap();
    let bulk = connect(&address, ALPN_BULK, &user).await.unwrap();
    let mut streams = Vec::new();
    for link in [&member, &bulk] {
        let mut channel = link.open().await.unwrap();
        // One byte of a length makes the stream known to the other side.
        channel.sender.send_chunk(vec![9].into()).await.unwrap();
        streams.push(channel);
    }
    let silent = async {
        assert!(agent.closed().await.to_string().contains("no report within"));
        for channel in &mut streams {
            assert!(!matches!(channel.receiver.receive_chunk(1).await, Ok(Some(_))));
        }
    };
    tokio::time::timeout(common::PATIENCE, silent).await.unwrap();
    assert!(matches!(client.request(FromClient::Jobs).await.unwrap(), ToClient::Jobs(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_submissions_at_once_are_all_stored_in_few_commits() {
    let folder = tempfile::tempdir().unwrap();
    let head = start(folder.path()).await.unwrap();
    let client = admin(&head).await;
    let mut tasks = tokio::task::JoinSet::new();
    let begun = std::time::Instant::now();
    for _ in 0..50 {
        let client = client.clone();
        tasks.spawn(async move {
            for _ in 0..10 {
                submit(&client).await;
            }
        });
    }
    while let Some(result) = tasks.join_next().await {
        result.unwrap();
    }
    eprintln!("500 submissions in {:?}", begun.elapsed());
    assert_eq!(jobs_and_nodes(&client).await.0, 500);
    drop(head);
    let head = start(folder.path()).await.unwrap();
    assert_eq!(jobs_and_nodes(&admin(&head).await).await.0, 500);
}
