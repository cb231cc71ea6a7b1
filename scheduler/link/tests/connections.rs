//! Real QUIC on loopback: who gets in, who does not, and what strangers cannot break.

#![allow(clippy::unwrap_used, reason = "a test's helpers may fail as loudly as the test itself")]

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use motley_scheduler_core::authorize::Role;
use motley_scheduler_core::id::NodeId;
use motley_scheduler_core::wire::client::{FromClient, ToClient};
use motley_scheduler_core::wire::codec::{self, Limit};
use motley_scheduler_core::wire::join::{JoinReply, JoinRequest, Principal};
use motley_scheduler_core::wire::{ALPN_AGENT, ALPN_BULK, ALPN_CLIENT, ALPN_JOIN};
use motley_scheduler_link::{
    Authority, Client, CloseCode, Identity, LinkError, Server, Token, Validity, connect, join,
};

const DAY: Duration = Duration::from_secs(86_400);

/// What waiting is for at most: the machine may be busy, and speed is not what is proven here.
const PATIENCE: Duration = Duration::from_secs(180);

fn node(authority: &Authority) -> Identity {
    let principal = Principal::Node { node: NodeId(1) };
    authority.issue(&principal, Validity::starting(SystemTime::now(), DAY)).unwrap()
}

fn user(authority: &Authority) -> Identity {
    let principal = Principal::User { name: "ada".into(), role: Role::Admin };
    authority.issue(&principal, Validity::starting(SystemTime::now(), DAY)).unwrap()
}

fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// A server that admits every secret as node 5, and answers every request with `Done`.
fn serve(authority: Authority) -> (String, tokio::task::JoinHandle<()>) {
    let mut server = Server::bind(loopback(), &authority).unwrap();
    let address = server.local_address().to_string();
    let authority = std::sync::Arc::new(authority);
    let task = tokio::spawn(async move {
        while let Some(incoming) = server.accept().await {
            let authority = authority.clone();
            tokio::spawn(async move {
                while let Ok(mut channel) = incoming.link.accept().await {
                    if incoming.alpn == ALPN_JOIN {
                        let Ok(request) = channel.receiver.receive_first::<JoinRequest>("join").await else {
                            return;
                        };
                        let principal = Principal::Node { node: NodeId(5) };
                        let validity = Validity::starting(SystemTime::now(), DAY);
                        let certificate =
                            authority.sign(&request.certificate_request, &principal, validity).unwrap();
                        let reply = JoinReply::Accepted {
                            principal,
                            certificate,
                            authority: authority.certificate().to_vec(),
                            valid_seconds: DAY.as_secs(),
                        };
                        channel.send(&reply).await.unwrap();
                        channel.finish();
                        continue;
                    }
                    tokio::spawn(async move {
                        match channel.receiver.receive_first::<FromClient>("request").await {
                            Ok(_) => channel.send(&ToClient::Done).await.unwrap(),
                            Err(_) => channel.sender.abort(CloseCode::Protocol),
                        }
                    });
                }
            });
        }
    });
    (address, task)
}

async fn answers(address: &str, authority_user: &Identity) {
    let client = Client::connect(address, authority_user).await.unwrap();
    assert_eq!(client.request(FromClient::Status).await.unwrap(), ToClient::Done);
    client.close().await;
}

#[tokio::test]
async fn stranger_joins_with_a_token_and_then_connects() {
    let authority = Authority::create().unwrap();
    let token = Token::generate(&authority.fingerprint()).unwrap();
    let (address, _server) = serve(authority);
    let identity = join(&address, &token, "host").await.unwrap();
    assert_eq!(*identity.principal(), Principal::Node { node: NodeId(5) });
    assert!(identity.expires() > SystemTime::now());
    connect(&address, ALPN_AGENT, &identity).await.unwrap();
    connect(&address, ALPN_BULK, &identity).await.unwrap();
}

#[tokio::test]
async fn secret_is_not_shown_to_a_scheduler_of_another_authority() {
    let (address, _server) = serve(Authority::create().unwrap());
    let other = Authority::create().unwrap();
    let token = Token::generate(&other.fingerprint()).unwrap();
    let error = join(&address, &token, "host").await.unwrap_err();
    assert!(matches!(error, LinkError::FingerprintMismatch { .. }), "{error:?}");
    assert!(error.to_string().contains("hint:"), "{error}");
}

#[tokio::test]
async fn certificates_are_checked_before_a_byte_is_read() {
    let authority = Authority::create().unwrap();
    let foreign = Authority::create().unwrap();
    let expired = authority
        .issue(
            &Principal::User { name: "ada".into(), role: Role::Admin },
            Validity { begins: SystemTime::now() - 2 * DAY, expires: SystemTime::now() - DAY },
        )
        .unwrap();
    // A key of the foreign authority's member, behind our authority's certificate as trust anchor.
    let pending = Identity::request().unwrap();
    let principal = Principal::User { name: "eve".into(), role: Role::Admin };
    let certificate =
        foreign.sign(pending.request_der(), &principal, Validity::starting(SystemTime::now(), DAY)).unwrap();
    let stranger = pending.finish(&certificate, authority.certificate()).unwrap();
    let (good, node) = (user(&authority), node(&authority));
    let (address, _server) = serve(authority);
    for (what, identity, alpn, wanted) in [
        ("expired", &expired, ALPN_CLIENT, "expired"),
        ("foreign member", &stranger, ALPN_CLIENT, "authority"),
        ("foreign scheduler", &user(&foreign), ALPN_CLIENT, "authority"),
        ("user as agent", &good, ALPN_AGENT, "user's certificate"),
        ("node as client", &node, ALPN_CLIENT, "node's certificate"),
    ] {
        let error = connect(&address, alpn, identity).await.expect_err(what).to_string();
        assert!(error.contains(wanted), "{what}: {error}");
    }
    answers(&address, &good).await;
}

#[tokio::test]
async fn name_with_an_address_that_is_silent_waits_only_for_the_other() {
    let authority = Authority::create().unwrap();
    let good = user(&authority);
    let (address, _server) = serve(authority);
    let port: u16 = address.rsplit(':').next().unwrap().parse().unwrap();
    let Ok(silent) = std::net::UdpSocket::bind(("::1", port)) else {
        let skipped = "skipped: this machine has no second loopback address\n";
        let _unsaid = std::io::Write::write_all(&mut std::io::stderr(), skipped.as_bytes());
        return;
    };
    let (both, silent_one) = (format!("localhost:{port}"), format!("[::1]:{port}"));
    tokio::select! {
        biased;
        () = answers(&both, &good) => {}
        result = connect(&silent_one, ALPN_CLIENT, &good) => {
            panic!("the silent address was waited for: {result:?}")
        }
    }
    drop(silent);
}

#[tokio::test]
async fn nobody_listening_is_said_and_a_taken_port_too() {
    let authority = Authority::create().unwrap();
    let server = Server::bind(loopback(), &authority).unwrap();
    let error = Server::bind(server.local_address(), &authority).unwrap_err().to_string();
    assert!(error.contains("cannot listen on 127.0.0.1") && error.contains("hint:"), "{error}");
    let error = connect("localhost", ALPN_CLIENT, &user(&authority)).await.unwrap_err();
    assert!(matches!(error, LinkError::Address { .. }), "{error:?}");
    // Held, so that nobody else takes it, and closed for all but one peer: the kernel refuses what others send.
    let closed = std::net::UdpSocket::bind(loopback()).unwrap();
    closed.connect(server.local_address()).unwrap();
    let address = closed.local_addr().unwrap().to_string();
    let error = connect(&address, ALPN_CLIENT, &user(&authority)).await.unwrap_err();
    assert!(matches!(error, LinkError::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains("refused"), "known at once, not after a silence: {error}");
}

#[tokio::test]
async fn scheduler_that_is_busy_at_first_is_reached_by_a_later_try() {
    let authority = Authority::create().unwrap();
    let good = user(&authority);
    let (address, _server) = serve(authority);
    answers(&lose_the_first_try(&address).await, &good).await;
}

/// Passes packets on, both ways, but none of the first connection that is tried. Returns where it listens.
async fn lose_the_first_try(address: &str) -> String {
    let front = tokio::net::UdpSocket::bind(loopback()).await.unwrap();
    let back = tokio::net::UdpSocket::bind(loopback()).await.unwrap();
    back.connect(address).await.unwrap();
    let listens = front.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let (mut up, mut down) = (vec![0; 1 << 16], vec![0; 1 << 16]);
        let (mut first, mut client) = (None, None);
        loop {
            tokio::select! {
                received = front.recv_from(&mut up) => {
                    let (size, from) = received.unwrap();
                    // A client's first packets: long header, version, then the connection's name.
                    if up[0] & 0x80 != 0 && client.is_none() {
                        let name = up[6..6 + usize::from(up[5])].to_vec();
                        client = (*first.get_or_insert_with(|| name.clone()) != name).then_some(from);
                    }
                    if client == Some(from) && size > 1 {
                        back.send(&up[..size]).await.unwrap();
                    }
                }
                received = back.recv(&mut down) => {
                    let client = client.expect("the server answers somebody");
                    front.send_to(&down[..received.unwrap()], client).await.unwrap();
                }
            }
        }
    });
    listens
}

#[tokio::test]
async fn receive_may_be_dropped_half_way_without_losing_a_byte() {
    let authority = Authority::create().unwrap();
    let mut server = Server::bind(loopback(), &authority).unwrap();
    let address = server.local_address().to_string();
    let serving = tokio::spawn(async move {
        let incoming = server.accept().await.unwrap();
        let mut channel = incoming.link.accept().await.unwrap();
        let mut received = Vec::new();
        while received.len() < 3 {
            // Dropped hundreds of times in the middle of a length or a body.
            tokio::select! {
                message = channel.receiver.receive::<FromClient>() => received.push(message.unwrap().unwrap()),
                () = tokio::time::sleep(Duration::from_millis(1)) => {}
            }
        }
        received
    });
    let link = connect(&address, ALPN_CLIENT, &user(&authority)).await.unwrap();
    let messages = [
        FromClient::Submit { document: "x".repeat(300), files: vec![], memory: vec![] },
        FromClient::Jobs,
        FromClient::Submit { document: "y".repeat(200), files: vec![], memory: vec![] },
    ];
    let mut bytes = Vec::new();
    for message in &messages {
        let body = codec::encode(message, Limit::Client).unwrap();
        bytes.extend((body.len() as u32).to_le_bytes());
        bytes.extend(body);
    }
    let mut channel = link.open().await.unwrap();
    for byte in bytes.chunks(3) {
        channel.sender.send_chunk(byte.to_vec().into()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(serving.await.unwrap(), messages);
}

mod hostile {
    //! Bytes that no program of ours sends, by a QUIC client of its own.

    use super::*;
    use std::sync::Arc;

    use quinn::crypto::rustls::QuicClientConfig;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};

    /// Dials without our checks: any ALPN, certificate or none.
    async fn dial(
        address: &str,
        alpn: &[u8],
        identity: Option<&Identity>,
        authority: &[u8],
    ) -> Result<quinn::Connection, quinn::ConnectionError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from(authority.to_vec())).unwrap();
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let folder = tempfile::tempdir().unwrap();
                identity.save(folder.path()).unwrap();
                let read = |name| std::fs::read(folder.path().join(name)).unwrap();
                let certificate = CertificateDer::from_pem_slice(&read("certificate.pem")).unwrap();
                let key = PrivateKeyDer::from_pem_slice(&read("key.pem")).unwrap();
                builder.with_client_auth_cert(vec![certificate], key).unwrap()
            }
        };
        config.alpn_protocols = vec![alpn.to_vec()];
        let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()));
        let endpoint = quinn::Endpoint::client(loopback()).unwrap();
        endpoint.connect_with(config, address.parse().unwrap(), "scheduler.motley").unwrap().await
    }

    async fn closing_reason(connection: &quinn::Connection) -> String {
        tokio::time::timeout(PATIENCE, connection.closed()).await.expect("closed in time").to_string()
    }

    #[tokio::test]
    async fn every_protocol_but_join_needs_a_certificate_and_others_do_not_exist() {
        let authority = Authority::create().unwrap();
        let (root, good) = (authority.certificate().to_vec(), user(&authority));
        let (address, _server) = serve(authority);
        for alpn in [ALPN_AGENT, ALPN_CLIENT, ALPN_BULK] {
            let connection = dial(&address, alpn, None, &root).await.unwrap();
            let (mut send, mut receive) = connection.open_bi().await.unwrap();
            let _ = send.write_all(b"\x02\0\0\0hi").await;
            assert!(receive.read_to_end(100).await.is_err());
            let reason = closing_reason(&connection).await;
            assert!(reason.contains("a certificate is needed"), "{reason}");
        }
        for alpn in [&b"h3"[..], b"motley-agent/2", b""] {
            assert!(dial(&address, alpn, Some(&good), &root).await.is_err());
        }
        answers(&address, &good).await;
    }

    #[tokio::test]
    async fn frames_that_are_none_end_their_connection_and_nothing_else() {
        let authority = Authority::create().unwrap();
        let (root, good) = (authority.certificate().to_vec(), user(&authority));
        let (address, _server) = serve(authority);
        let frames: [&[u8]; 6] = [
            b"",
            b"\x01",
            b"\xff\xff\xff\xff",
            b"\x10\0\0\0short",
            b"\x03\0\0\0\xfd\xff\xff",
            &[b"\x09\0\0\0".as_slice(), &[0xff; 9]].concat(),
        ];
        for frame in frames {
            // As the hello of a member, and as the join request of a stranger.
            let member = dial(&address, ALPN_CLIENT, Some(&good), &root).await.unwrap();
            let (mut send, mut receive) = member.open_bi().await.unwrap();
            send.write_all(frame).await.unwrap();
            send.finish().unwrap();
            let answer = receive.read_to_end(1000).await;
            assert!(answer.is_err(), "{frame:?} was answered: {answer:?}");
            let stranger = dial(&address, ALPN_JOIN, None, &root).await.unwrap();
            let (mut send, mut receive) = stranger.open_bi().await.unwrap();
            send.write_all(frame).await.unwrap();
            send.finish().unwrap();
            let answer = receive.read_to_end(1000).await.unwrap_or_default();
            assert!(answer.is_empty(), "{frame:?} was answered: {answer:?}");
        }
        answers(&address, &good).await;
    }

    #[tokio::test]
    async fn silence_and_floods_are_bounded() {
        let authority = Authority::create().unwrap();
        let (root, good) = (authority.certificate().to_vec(), user(&authority));
        let (address, _server) = serve(authority);
        let silent = dial(&address, ALPN_CLIENT, Some(&good), &root).await.unwrap();
        let flooding = dial(&address, ALPN_JOIN, None, &root).await.unwrap();
        let _first = flooding.open_bi().await.unwrap();
        let second = tokio::time::timeout(Duration::from_millis(300), flooding.open_bi()).await;
        assert!(second.is_err(), "a stranger got a second stream");
        let uni = tokio::time::timeout(Duration::from_millis(300), flooding.open_uni()).await;
        assert!(uni.is_err(), "a stranger got a one-way stream");
        // A stranger that sends for ever is stopped by the window, not by memory.
        let (mut send, _receive) = _first;
        let _ = send.write_all(b"\xff\x1f\0\0").await;
        let endless = async {
            let mut sent = 0_usize;
            while send.write_all(&[0; 1000]).await.is_ok() && sent < 100 << 20 {
                sent += 1000;
            }
            sent
        };
        let sent = tokio::time::timeout(Duration::from_secs(20), endless).await.unwrap_or(0);
        assert!(sent < 10 << 20, "{sent} bytes were taken from a stranger");
        let reason = closing_reason(&silent).await;
        assert!(reason.contains("no hello within"), "{reason}");
        answers(&address, &good).await;
    }

    #[tokio::test]
    async fn a_member_has_a_bounded_number_of_streams() {
        let authority = Authority::create().unwrap();
        let (address, _server) = serve_silently(&authority);
        let link = connect(&address, ALPN_CLIENT, &user(&authority)).await.unwrap();
        let mut held = Vec::new();
        loop {
            // The first ones come, however long it takes; a further one that does not come soon never will.
            let patience = if held.len() < 32 { PATIENCE } else { Duration::from_millis(300) };
            let Ok(channel) = tokio::time::timeout(patience, link.open()).await else { break };
            let mut channel = channel.unwrap();
            channel.send(&FromClient::Status).await.unwrap();
            held.push(channel);
            assert!(held.len() <= 64, "{} streams", held.len());
        }
        assert!(held.len() >= 32, "{} streams", held.len());
    }

    /// Accepts streams and never answers.
    fn serve_silently(authority: &Authority) -> (String, tokio::task::JoinHandle<()>) {
        let mut server = Server::bind(loopback(), authority).unwrap();
        let address = server.local_address().to_string();
        let task = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Some(incoming) = server.accept().await {
                tokio::spawn(async move {
                    let mut channels = Vec::new();
                    while let Ok(channel) = incoming.link.accept().await {
                        channels.push(channel);
                    }
                });
                held.push(());
            }
        });
        (address, task)
    }
}
