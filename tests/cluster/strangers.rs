//! Who does not belong is refused with a clear line, and leaves no trace.

use std::net::UdpSocket;
use std::time::Duration;

use motley_scheduler_link::{Identity, connect};
use motley_tests::data::{Project, TrainOptions};
use motley_tests::fleet::Fleet;

use crate::CTL;

/// Jobs and nodes that the scheduler knows of.
fn known(fleet: &Fleet) -> (usize, usize) {
    let count = |command: &str, key: &str| {
        fleet.ctl(command).end().expect(0).json()[key].as_array().map_or(0, Vec::len)
    };
    (count("jobs --json", "jobs"), count("nodes --json", "nodes"))
}

#[test]
fn an_agent_needs_a_token_that_is_valid_and_unused() {
    let fleet = Fleet::start(CTL);
    let join = |name: &str, token: Option<&str>| {
        let command = fleet.anybody("agent --scheduler").arg(fleet.address());
        let command = command.arg("--state").arg(fleet.path(name)).arg("--name").arg(name);
        match token {
            Some(token) => command.arg("--token").arg(token),
            None => command,
        }
        .end()
    };
    join("without", None).expect(2).says(&["error:", "token", "hint:"]);
    join("nonsense", Some("motley1.abc")).expect(2).says(&["error:", "not a join token"]);

    let token = fleet.token();
    let mut agent = fleet
        .anybody("agent --scheduler")
        .arg(fleet.address())
        .arg("--token")
        .arg(&token)
        .arg("--state")
        .arg(fleet.path("first"))
        .start(&fleet.path("first.log"));
    fleet.wait_for_nodes(1);
    join("second", Some(&token)).expect(4).says(&["error:", "used"]);

    let short = fleet.ctl("token create --valid 1ms --json").end().expect(0).json();
    std::thread::sleep(Duration::from_millis(50));
    join("late", short["token"].as_str()).expect(4).says(&["error:", "expired"]);

    let (fingerprint, secret) = token.rsplit_once('.').unwrap();
    let forged = format!("{fingerprint}.{}", "0".repeat(secret.len()));
    join("forger", Some(&forged)).expect(4).says(&["error:", "not known here"]);
    let other = Fleet::start(CTL);
    join("astray", Some(&other.token())).expect(4).says(&["error:", "authority"]);
    // Held, and closed for all but one peer: nobody listens there.
    let closed = UdpSocket::bind("127.0.0.1:0").unwrap();
    closed.connect(fleet.address()).unwrap();
    let lonely = fleet.anybody("agent --scheduler").arg(closed.local_addr().unwrap().to_string());
    let lonely = lonely.arg("--token").arg(fleet.token()).arg("--state").arg(fleet.path("lonely"));
    lonely.end().expect(5).says(&["error: no scheduler answers", "hint:"]);

    assert_eq!(known(&fleet), (0, 1));
    for name in ["without", "nonsense", "second", "late", "forger", "astray", "lonely"] {
        assert!(!fleet.path(name).join("identity/certificate.pem").exists(), "{name} became a member");
    }
    agent.kill();
}

#[test]
fn a_client_of_another_fleet_is_refused() {
    let fleet = Fleet::start(CTL);
    let other = Fleet::start(CTL);
    let identity = other.path("identity");
    std::fs::write(identity.join("scheduler.txt"), format!("{}\n", fleet.address())).unwrap();
    let ended = fleet.anybody("jobs").env("MOTLEY_IDENTITY", &identity).end();
    ended.expect(4).says(&["error: the certificate is of another authority", "hint:"]);
    fleet.anybody("jobs").env("MOTLEY_IDENTITY", fleet.path("nobody")).end().expect(4).says(&["hint:"]);
    assert_eq!(known(&fleet), (0, 0));
}

#[test]
fn a_user_may_do_what_the_role_allows() {
    let fleet = Fleet::start(CTL);
    let project = Project::tiny(&fleet.path("."));
    let document = project.train(&TrainOptions::default());
    let token = fleet.ctl("token create --user anna --role viewer --json").end().expect(0).json();
    let token = token["token"].as_str().unwrap().to_owned();
    let anna = |arguments: &str| fleet.anybody(arguments).env("MOTLEY_IDENTITY", fleet.path("anna"));
    let login = |name: &str| {
        fleet
            .anybody("login --scheduler")
            .arg(fleet.address())
            .arg("--token")
            .arg(&token)
            .env("MOTLEY_IDENTITY", fleet.path(name))
            .end()
    };
    login("anna").expect(0);
    login("anna").expect(2).says(&["already"]);
    login("bert").expect(4).says(&["used"]);
    anna("jobs").end().expect(0);
    anna("submit").arg(&document).end().expect(4).says(&["error:", "viewer"]);
    anna("token create").end().expect(4);
    assert_eq!(known(&fleet), (0, 0));
}

#[test]
fn noise_at_the_door_changes_nothing() {
    let fleet = Fleet::start(CTL);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut state = 5_u64;
    for length in [0, 1, 17, 64, 1200, 1472, 9000] {
        let mut datagram = vec![0_u8; length];
        for byte in &mut datagram {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = (state >> 56) as u8;
        }
        for first in [0x00, 0xc0, 0xff] {
            if let Some(byte) = datagram.first_mut() {
                *byte = first;
            }
            // A datagram above the socket's limit is refused here, which is as good.
            let _refused = socket.send_to(&datagram, fleet.address());
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let identity = Identity::load(&fleet.path("identity")).unwrap();
    runtime.block_on(async {
        let wrong = connect(&fleet.address(), b"motley-wrong/1", &identity).await;
        assert!(wrong.is_err(), "a protocol that nobody speaks was accepted");
        // A user's certificate does not open the agents' door.
        if let Ok(link) = connect(&fleet.address(), b"motley-agent/1", &identity).await {
            let closed = tokio::time::timeout(Duration::from_secs(20), link.closed()).await;
            assert!(closed.is_ok(), "a user was taken for an agent");
        }
        // A message of another kind where a question is due.
        let link = connect(&fleet.address(), b"motley-client/1", &identity).await.unwrap();
        let mut channel = link.open().await.unwrap();
        let mut frame = 1000_u32.to_le_bytes().to_vec();
        frame.resize(1004, 0xff);
        channel.sender.send_chunk(frame.into()).await.unwrap();
        let answer = channel.receive::<motley_scheduler_core::wire::client::ToClient>().await;
        assert!(!matches!(answer, Ok(Some(motley_scheduler_core::wire::client::ToClient::Submitted { .. }))));
    });
    assert_eq!(known(&fleet), (0, 0));
}
