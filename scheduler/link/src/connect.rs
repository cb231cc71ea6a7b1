//! Dialing the scheduler: members by certificate, strangers by token.
//!
//! In TLS 1.3 a client learns that its certificate was refused only when it first reads. So `connect` has not
//! succeeded before the hello was answered.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use motley_scheduler_core::wire::codec::Limit;
use motley_scheduler_core::wire::hello::{Hello, HelloReply};
use motley_scheduler_core::wire::join::{JoinReply, JoinRequest};
use motley_scheduler_core::wire::{ALPN_JOIN, VERSION, VERSION_MIN};
use quinn::crypto::rustls::QuicClientConfig;
use tokio::task::JoinSet;

use crate::settings::{self, DIAL_SECONDS, DIAL_TRY_SECONDS, FIRST_MESSAGE_SECONDS, REPLY_SECONDS};
use crate::tls::{self, SERVER_NAME};
use crate::{Identity, Link, LinkError, Token, channel};

/// Addresses of one name that are dialed.
const ADDRESSES_MAX: usize = 8;

/// Connects as a member and exchanges hellos. `address` is `HOST:PORT`; every address of the host is tried.
///
/// # Errors
/// Nobody answers, the certificate is refused (foreign, expired, of the wrong kind), or the versions differ.
pub async fn connect(address: &str, alpn: &'static [u8], identity: &Identity) -> Result<Link, LinkError> {
    let crypto = Arc::new(tls::member(identity, alpn)?);
    let mut link = dial(address, alpn, crypto).await?;
    match hello(&link).await {
        Ok(version) => {
            link.version = version;
            Ok(link)
        }
        Err(error) => {
            link.shut_down("no agreement").await;
            Err(error)
        }
    }
}

/// Makes a key here, shows the token's secret to the scheduler of the token's fingerprint and to nobody else, and
/// returns the identity that the scheduler signs.
///
/// # Errors
/// Nobody answers, the scheduler is another one, or it refuses the token.
pub async fn join(address: &str, token: &Token, name: &str) -> Result<Identity, LinkError> {
    let (crypto, pinned) = tls::stranger(token.fingerprint())?;
    let mismatch = |found| LinkError::FingerprintMismatch {
        address: address.to_owned(),
        expected: token.fingerprint(),
        found,
    };
    let link =
        dial(address, ALPN_JOIN, Arc::new(crypto)).await.map_err(|error| match pinned.authority() {
            Some(Err(found)) => mismatch(found),
            _ => error,
        })?;
    // The handshake stands, so the verifier has seen the authority, and it fits.
    let authority = match pinned.authority() {
        Some(Ok(authority)) => authority.to_vec(),
        Some(Err(found)) => return Err(mismatch(found)),
        None => return Err(LinkError::Handshake { reason: "the peer showed no certificate".into() }),
    };
    let result = ask_to_join(&link, token, name, &authority).await;
    link.shut_down("joined").await;
    result
}

async fn ask_to_join(
    link: &Link,
    token: &Token,
    name: &str,
    authority: &[u8],
) -> Result<Identity, LinkError> {
    let pending = Identity::request()?;
    let mut channel = link.open().await?;
    let request = JoinRequest {
        version: VERSION,
        secret: token.secret().to_owned(),
        certificate_request: pending.request_der().to_vec(),
        name: name.to_owned(),
    };
    channel.send(&request).await?;
    channel.finish();
    match channel.receiver.receive_within("answer to the token", REPLY_SECONDS).await? {
        JoinReply::Accepted { certificate, .. } => pending.finish(&certificate, authority),
        JoinReply::Refused { reason } => Err(LinkError::Refused { reason }),
    }
}

async fn dial(address: &str, alpn: &'static [u8], crypto: Arc<QuicClientConfig>) -> Result<Link, LinkError> {
    let mut config = quinn::ClientConfig::new(crypto);
    config.transport_config(settings::client_transport(alpn));
    let unreachable = |reason: String| LinkError::Unreachable { address: address.to_owned(), reason };
    let mut failure = unreachable("the name has no address".into());
    // All at once: where one address leads nowhere (`localhost` is two), nothing says so before the time is up.
    let mut attempts = JoinSet::new();
    for remote in resolve(address).await?.into_iter().take(ADDRESSES_MAX) {
        attempts.spawn(dial_one(address.to_owned(), remote, alpn, config.clone()));
    }
    while let Some(attempt) = attempts.join_next().await {
        match attempt {
            Ok(Err(error @ LinkError::Unreachable { .. })) => failure = error,
            Ok(result) => return result,
            Err(error) => failure = unreachable(error.to_string()),
        }
    }
    Err(failure)
}

async fn resolve(address: &str) -> Result<Vec<SocketAddr>, LinkError> {
    let error = |reason: String| LinkError::Address { address: address.to_owned(), reason };
    if !address.contains(':') {
        return Err(error("it has no port".into()));
    }
    let found = tokio::net::lookup_host(address).await.map_err(|failure| error(failure.to_string()))?;
    Ok(found.collect())
}

/// Tries one address until it answers, says no, or the time is up.
async fn dial_one(
    address: String,
    remote: SocketAddr,
    alpn: &'static [u8],
    config: quinn::ClientConfig,
) -> Result<Link, LinkError> {
    let unreachable = |error: &dyn std::fmt::Display| LinkError::Unreachable {
        address: address.clone(),
        reason: error.to_string(),
    };
    let any: SocketAddr = if remote.is_ipv4() { ([0; 4], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = settings::socket(any).map_err(|error| unreachable(&error))?;
    let runtime = Arc::new(quinn::TokioRuntime);
    let endpoint = quinn::Endpoint::new(settings::endpoint(), None, socket, runtime)
        .map_err(|error| unreachable(&error))?;
    let connection = tokio::select! {
        connection = try_often(&endpoint, config, remote) => connection?,
        error = nobody_listens(any, remote) => Err(unreachable(&error))?,
    };
    let connection = connection.ok_or_else(|| unreachable(&format!("no answer within {DIAL_SECONDS} s")))?;
    let frame = Limit::of_alpn(alpn).expect("only the four names of ours are dialed");
    Ok(Link { connection, frame, version: VERSION_MIN, endpoint: Some(endpoint) })
}

/// `None` is silence, try after try.
async fn try_often(
    endpoint: &quinn::Endpoint,
    config: quinn::ClientConfig,
    remote: SocketAddr,
) -> Result<Option<quinn::Connection>, LinkError> {
    for _ in 0..DIAL_SECONDS / DIAL_TRY_SECONDS {
        let connecting = endpoint.connect_with(config.clone(), remote, SERVER_NAME).map_err(|error| {
            LinkError::Unreachable { address: remote.to_string(), reason: error.to_string() }
        })?;
        match tokio::time::timeout(Duration::from_secs(DIAL_TRY_SECONDS), connecting).await {
            Ok(Ok(connection)) => return Ok(Some(connection)),
            Ok(Err(quinn::ConnectionError::TimedOut)) | Err(_) => {}
            Ok(Err(error)) => return Err(channel::closed(error)),
        }
    }
    Ok(None)
}

/// Returns when the kernel at the other end says that the port is closed, which quinn does not listen to; never
/// otherwise. One byte is no QUIC packet, and a scheduler drops it.
async fn nobody_listens(any: SocketAddr, remote: SocketAddr) -> std::io::Error {
    let probe = async {
        let socket = tokio::net::UdpSocket::bind(any).await?;
        socket.connect(remote).await?;
        socket.send(&[0]).await?;
        socket.recv(&mut [0]).await
    };
    match probe.await {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => error,
        // Firewalls and networks without a way back say nothing, or something else: the handshake decides.
        _ => std::future::pending().await,
    }
}

/// Returns the version that both speak.
async fn hello(link: &Link) -> Result<u16, LinkError> {
    let mut channel = link.open().await?;
    let build = env!("CARGO_PKG_VERSION").to_owned();
    channel.send(&Hello { version_min: VERSION_MIN, version_max: VERSION, build }).await?;
    channel.finish();
    match channel.receiver.receive_within("hello", FIRST_MESSAGE_SECONDS).await {
        Ok(HelloReply::Agreed { version, .. }) if (VERSION_MIN..=VERSION).contains(&version) => Ok(version),
        Ok(HelloReply::Agreed { version, .. }) => Err(LinkError::Unexpected {
            expected: "a protocol version of ours",
            found: format!("version {version}"),
        }),
        Ok(HelloReply::Refused { reason }) => Err(LinkError::Refused { reason }),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use motley_scheduler_core::authorize::Role;
    use motley_scheduler_core::unit::Bytes;
    use motley_scheduler_core::wire::ALPN_CLIENT;
    use motley_scheduler_core::wire::agent::{FromAgent, NodeFacts};
    use motley_scheduler_core::wire::client::{FromClient, Refusal, RefusalKind, ToClient};
    use motley_scheduler_core::wire::join::Principal;

    use super::*;
    use crate::{Authority, Channel, Validity};

    /// Says that it speaks this version, whatever it is asked, and answers each request with its number.
    async fn play(endpoint: quinn::Endpoint, version: u16) {
        while let Some(incoming) = endpoint.accept().await {
            let connection = incoming.await.unwrap();
            let mut requests = 0;
            while let Ok((send, receive)) = connection.accept_bi().await {
                let mut channel = Channel::new(send, receive, Limit::Client, version);
                if requests == 0 {
                    let hello: Hello = channel.receive().await.unwrap().unwrap();
                    assert!((hello.version_min..=hello.version_max).contains(&VERSION_MIN));
                    channel.send(&HelloReply::Agreed { version, build: "old".into() }).await.unwrap();
                } else if channel.receive::<FromClient>().await.unwrap().is_some() {
                    let reply = Refusal::new(RefusalKind::Failed, requests.to_string());
                    channel.send(&ToClient::Refused(reply)).await.unwrap();
                    requests += 1;
                }
                requests = requests.max(1);
                channel.finish();
            }
        }
    }

    async fn dial_a_scheduler_of(version: u16) -> (Result<Link, LinkError>, tokio::task::JoinHandle<()>) {
        let authority = Authority::create().unwrap();
        let principal = Principal::User { name: "ada".into(), role: Role::Admin };
        let validity = Validity::starting(SystemTime::now(), Duration::from_secs(86_400));
        let user = authority.issue(&principal, validity).unwrap();
        let config = quinn::ServerConfig::with_crypto(Arc::new(tls::server(&authority).unwrap()));
        let endpoint = quinn::Endpoint::server(config, ([127, 0, 0, 1], 0).into()).unwrap();
        let address = endpoint.local_addr().unwrap().to_string();
        let playing = tokio::spawn(play(endpoint, version));
        (connect(&address, ALPN_CLIENT, &user).await, playing)
    }

    #[tokio::test]
    async fn nothing_newer_than_agreed_is_sent_to_an_older_scheduler() {
        assert_eq!(VERSION_MIN, VERSION - 1, "this version and the one before are spoken");
        let (link, _playing) = dial_a_scheduler_of(VERSION_MIN).await;
        let link = link.unwrap();
        assert_eq!(link.version(), VERSION_MIN);
        let ask = async |request: FromClient| {
            let mut channel = link.open().await.unwrap();
            channel.send(&request).await?;
            channel.finish();
            channel.receive::<ToClient>().await
        };
        let facts = NodeFacts {
            name: "n".into(),
            boot: "b".into(),
            build: "0".into(),
            devices: Vec::new(),
            cores: 1,
            memory: Bytes(1),
        };
        let newest = FromAgent::ReportDevices { facts, details: Vec::new(), attempts: Vec::new() };
        let error = link.open().await.unwrap().send(&newest).await.unwrap_err();
        assert!(matches!(error, LinkError::PeerTooOld { since: VERSION, agreed: VERSION_MIN }), "{error:?}");
        assert!(error.to_string().contains("hint:"), "{error}");
        let Ok(Some(ToClient::Refused(reply))) = ask(FromClient::Jobs).await else { panic!("no answer") };
        assert_eq!(reply.message, "1", "what was too new has not arrived");
    }

    #[tokio::test]
    async fn a_version_that_nobody_offered_is_no_agreement() {
        let (link, _playing) = dial_a_scheduler_of(VERSION + 1).await;
        let error = link.unwrap_err();
        assert!(matches!(error, LinkError::Unexpected { .. }), "{error:?}");
    }
}
