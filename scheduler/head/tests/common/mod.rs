//! A scheduler in a temporary folder, users and a scripted agent.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::path::Path;
use std::time::Duration;

use motley_scheduler_core::authorize::Role;
use motley_scheduler_core::cluster::Clocks;
use motley_scheduler_core::document::BackendKind;
use motley_scheduler_core::id::{AttemptId, Epoch, JobId, NodeId};
use motley_scheduler_core::unit::{Bytes, Span};
use motley_scheduler_core::wire::ALPN_AGENT;
use motley_scheduler_core::wire::agent::{
    Assignment, AttemptPhase, AttemptReport, DeviceFacts, FromAgent, NodeFacts, ToAgent,
};
use motley_scheduler_core::wire::client::{FromClient, JobView, Refusal, ToClient, TokenGrant};
use motley_scheduler_core::wire::join::Principal;
use motley_scheduler_head::{Head, HeadConfig, HeadError, HeadHandle};
use motley_scheduler_link::{Client, Identity, Link, Receiver, Sender, Token, connect, join};

pub const DOCUMENT: &str = r#"version = 1
kind = "serve"
name = "api"
[resources]
memory = "1GiB"
[model]
source = "a/b"
"#;

/// What waiting is for at most: the machine may be busy, and speed is not what is proven here.
pub const PATIENCE: Duration = Duration::from_secs(180);

pub const GIB: Bytes = Bytes(1 << 30);

pub async fn start(state: &Path) -> Result<HeadHandle, HeadError> {
    start_on(state, 0, Clocks::default()).await
}

pub async fn start_on(state: &Path, port: u16, clocks: Clocks) -> Result<HeadHandle, HeadError> {
    let listen = ([127, 0, 0, 1], port).into();
    Head::start(HeadConfig { state: state.into(), listen, advertise: None, clocks, admin_identity: None })
        .await
}

pub async fn admin(head: &HeadHandle) -> Client {
    Client::open(head.admin_identity_folder()).await.unwrap()
}

pub async fn token(client: &Client, grants: TokenGrant, valid: Span) -> Token {
    match client.request(FromClient::CreateToken { grants, valid }).await.unwrap() {
        ToClient::Token { token, .. } => token.parse().unwrap(),
        other => panic!("{other:?}"),
    }
}

pub async fn join_node(head: &HeadHandle, client: &Client) -> Identity {
    let token = token(client, TokenGrant::Node, Span::from_seconds(60)).await;
    join(&head.address().to_string(), &token, "host").await.unwrap()
}

pub async fn join_user(head: &HeadHandle, client: &Client, name: &str, role: Role) -> Identity {
    let grants = TokenGrant::User { name: name.into(), role };
    let token = token(client, grants, Span::from_seconds(60)).await;
    join(&head.address().to_string(), &token, "host").await.unwrap()
}

pub async fn submit(client: &Client) -> JobId {
    let request = FromClient::Submit { document: DOCUMENT.into(), files: vec![], memory: vec![GIB] };
    match client.request(request).await.unwrap() {
        ToClient::Submitted { job } => job,
        other => panic!("{other:?}"),
    }
}

pub async fn job(client: &Client, job: JobId) -> JobView {
    match client.request(FromClient::Job { job }).await.unwrap() {
        ToClient::Job(view) => *view,
        other => panic!("{other:?}"),
    }
}

pub async fn refusal(client: &Client, request: FromClient) -> Refusal {
    match client.request(request).await.unwrap() {
        ToClient::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

/// Says what a test has it say.
pub struct Agent {
    pub node: NodeId,
    pub link: Link,
    pub sender: Sender,
    pub receiver: Receiver,
}

impl Agent {
    /// Connects and reports one CPU of 8 GiB, and these attempts; reads the welcome.
    pub async fn connect(address: &str, identity: &Identity, attempts: Vec<AttemptReport>) -> Agent {
        let facts = NodeFacts {
            name: "host".into(),
            boot: "boot".into(),
            build: "0".into(),
            devices: vec![DeviceFacts {
                index: 0,
                backend: BackendKind::Cpu,
                name: "cpu".into(),
                memory: Bytes(8 << 30),
            }],
            cores: 4,
            memory: Bytes(16 << 30),
        };
        Agent::connect_reporting(address, identity, FromAgent::Report { facts, attempts }).await
    }

    /// As [`Agent::connect`], with a report of the test's own.
    pub async fn connect_reporting(address: &str, identity: &Identity, report: FromAgent) -> Agent {
        let link = connect(address, ALPN_AGENT, identity).await.unwrap();
        let (sender, receiver) = link.open().await.unwrap().split();
        let Principal::Node { node } = *identity.principal() else { panic!("not a node") };
        let mut agent = Agent { node, link, sender, receiver };
        agent.say(report).await;
        agent.hear(|message| matches!(message, ToAgent::Welcome { .. })).await;
        agent
    }

    pub async fn say(&mut self, message: FromAgent) {
        self.sender.send(&message).await.unwrap();
    }

    /// The next message that fits, however long it takes; others are passed over.
    pub async fn hear(&mut self, fits: impl Fn(&ToAgent) -> bool) -> ToAgent {
        let wait = async {
            loop {
                let message: ToAgent = self.receiver.receive().await.unwrap().expect("connection is open");
                if fits(&message) {
                    return message;
                }
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("message in time")
    }

    pub async fn assignment(&mut self) -> Assignment {
        match self.hear(|message| matches!(message, ToAgent::Start(_))).await {
            ToAgent::Start(assignment) => *assignment,
            other => panic!("{other:?}"),
        }
    }

    pub async fn running(&mut self, attempt: AttemptId, epoch: Epoch) {
        self.say(FromAgent::Attempt(report(attempt, epoch))).await;
    }
}

pub fn report(attempt: AttemptId, epoch: Epoch) -> AttemptReport {
    AttemptReport { attempt, epoch, phase: AttemptPhase::Running, endpoint: None }
}
