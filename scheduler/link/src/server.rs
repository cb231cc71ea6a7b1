//! The scheduler's end: one UDP port, handshakes side by side, and a look at the certificate before a byte is read.
//!
//! ```text
//! packet → room? (else refused, or asked to prove its address) → TLS handshake (10 s)
//!        → motley-join/1: handed on, one stream of 8 KiB
//!        → any other: certificate of the right kind? else closed
//!                     → Hello ⇄ HelloReply on the first stream (10 s) → windows raised → handed on
//! ```

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use motley_scheduler_core::wire::hello::{Hello, HelloReply};
use motley_scheduler_core::wire::join::Principal;
use motley_scheduler_core::wire::{ALPN_AGENT, ALPN_CLIENT, ALPN_JOIN, VERSION, VERSION_MIN};
use quinn::crypto::rustls::HandshakeData;
use rustls::pki_types::CertificateDer;
use tokio::sync::{Semaphore, mpsc};

use crate::settings::{self, CONNECTIONS_MAX, FIRST_MESSAGE_SECONDS, HANDSHAKE_SECONDS, HANDSHAKES_MAX};
use crate::{Authority, Channel, CloseCode, Link, LinkError, certificate, channel, tls};

/// Connections that wait for [`Server::accept`].
const READY_MAX: usize = 64;

/// A bound port.
#[derive(Debug)]
pub struct Server {
    endpoint: quinn::Endpoint,
    ready: mpsc::Receiver<Incoming>,
    local_address: SocketAddr,
}

/// A connection whose certificate fits its ALPN, and whose version was agreed on.
#[derive(Debug)]
pub struct Incoming {
    pub alpn: &'static [u8],
    /// Absent on `motley-join/1` alone.
    pub principal: Option<Principal>,
    /// The end of the certificate: beyond it the connection should not last.
    pub expires: Option<SystemTime>,
    pub link: Link,
    pub remote: SocketAddr,
}

impl Server {
    /// Takes the port and begins to accept. Needs a tokio runtime around it.
    ///
    /// # Errors
    /// The port is taken or not allowed.
    pub fn bind(address: SocketAddr, authority: &Authority) -> Result<Server, LinkError> {
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls::server(authority)?));
        config.transport_config(settings::server_transport());
        let listen_error = |source: std::io::Error| {
            let hint = listen_hint(address, &source);
            LinkError::Listen { address, source, hint }
        };
        let socket = settings::socket(address).map_err(listen_error)?;
        settings::warn_about_small_buffers(&socket);
        let runtime = Arc::new(quinn::TokioRuntime);
        let endpoint = quinn::Endpoint::new(settings::endpoint(), Some(config), socket, runtime)
            .map_err(listen_error)?;
        let local_address = endpoint.local_addr().map_err(listen_error)?;
        let (sender, ready) = mpsc::channel(READY_MAX);
        tokio::spawn(accept_all(endpoint.clone(), sender));
        Ok(Server { endpoint, ready, local_address })
    }

    pub fn local_address(&self) -> SocketAddr {
        self.local_address
    }

    /// The next connection; `None` when the server is closed.
    pub async fn accept(&mut self) -> Option<Incoming> {
        self.ready.recv().await
    }

    /// Closes every connection and the port, and waits (a second at most) until the peers must know.
    pub async fn shut_down(&self, reason: &str) {
        self.endpoint.close((CloseCode::Done as u32).into(), reason.as_bytes());
        let _ = tokio::time::timeout(Duration::from_secs(1), self.endpoint.wait_idle()).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.endpoint.close((CloseCode::Done as u32).into(), b"the scheduler ended");
    }
}

fn listen_hint(address: SocketAddr, error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            "another program (another scheduler?) has this UDP port; choose one with --listen"
        }
        std::io::ErrorKind::PermissionDenied if address.port() < 1024 => "ports below 1024 need privileges",
        std::io::ErrorKind::AddrNotAvailable => "this machine has no such address; 0.0.0.0 means all of them",
        _ => "choose another address with --listen",
    }
}

async fn accept_all(endpoint: quinn::Endpoint, ready: mpsc::Sender<Incoming>) {
    let room = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    while let Some(incoming) = endpoint.accept().await {
        let crowded = room.available_permits() < HANDSHAKES_MAX / 2;
        if crowded && incoming.may_retry() {
            // Costs the sender a round trip, and a forged address everything.
            let _ = incoming.retry();
            continue;
        }
        let remote = incoming.remote_address();
        let Ok(permit) = room.clone().try_acquire_owned() else {
            tracing::warn!(%remote, "connection refused: {HANDSHAKES_MAX} handshakes are under way");
            incoming.refuse();
            continue;
        };
        if endpoint.open_connections() > CONNECTIONS_MAX {
            tracing::warn!(%remote, "connection refused: {CONNECTIONS_MAX} are open");
            incoming.refuse();
            continue;
        }
        let ready = ready.clone();
        tokio::spawn(async move {
            let result = welcome(incoming).await;
            drop(permit);
            match result {
                // Nobody accepts any more: the connection closes as it is dropped.
                Ok(incoming) => drop(ready.send(incoming).await),
                Err(error) => tracing::warn!(%remote, "connection refused: {}", first_line(&error)),
            }
        });
    }
}

fn first_line(error: &LinkError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// Handshake, certificate, hello.
async fn welcome(incoming: quinn::Incoming) -> Result<Incoming, LinkError> {
    let remote = incoming.remote_address();
    let connecting = incoming.accept().map_err(channel::closed)?;
    let limit = Duration::from_secs(HANDSHAKE_SECONDS);
    let connection = match tokio::time::timeout(limit, connecting).await {
        Ok(result) => result.map_err(channel::closed)?,
        Err(_) => return Err(LinkError::Timeout { what: "handshake", seconds: HANDSHAKE_SECONDS }),
    };
    let alpn = alpn(&connection)?;
    let limits = settings::limits(alpn).ok_or(LinkError::Unexpected {
        expected: "a protocol of ours",
        found: String::from_utf8_lossy(alpn).into_owned(),
    })?;
    let mut link = Link { connection, frame: limits.frame, version: VERSION_MIN, endpoint: None };
    if alpn == ALPN_JOIN {
        return Ok(Incoming { alpn, principal: None, expires: None, link, remote });
    }
    let facts = certificate_facts(&link.connection);
    let expires = facts.as_ref().map(|facts| facts.expires);
    let principal = facts.and_then(|facts| facts.principal);
    if let Err(reason) = check(alpn, principal.as_ref()) {
        link.close(CloseCode::Denied, reason);
        return Err(LinkError::Refused { reason: reason.to_owned() });
    }
    match greet(&link).await {
        Ok(version) => link.version = version,
        Err(error) => {
            link.close(CloseCode::Protocol, &error.to_string());
            return Err(error);
        }
    }
    settings::raise(&link.connection, limits);
    Ok(Incoming { alpn, principal, expires, link, remote })
}

/// Which of our protocols was agreed on in TLS.
fn alpn(connection: &quinn::Connection) -> Result<&'static [u8], LinkError> {
    use motley_scheduler_core::wire::ALPN_BULK;
    let data = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
    let name = data.and_then(|data| data.protocol).unwrap_or_default();
    [ALPN_JOIN, ALPN_AGENT, ALPN_CLIENT, ALPN_BULK].into_iter().find(|known| *known == name).ok_or_else(
        || LinkError::Handshake {
            reason: format!("protocol `{}` is unknown", String::from_utf8_lossy(&name)),
        },
    )
}

/// Whom the certificate speaks for, and how long. TLS has checked that it is ours and in date.
fn certificate_facts(connection: &quinn::Connection) -> Option<certificate::Facts> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    certificate::read(chain.first()?).ok()
}

fn check(alpn: &[u8], principal: Option<&Principal>) -> Result<(), &'static str> {
    match principal {
        None => Err("a certificate is needed\nhint: join first, with a token of `ctl token create`"),
        Some(Principal::User { .. }) if alpn == ALPN_AGENT => Err(
            "a user's certificate is not a node's\nhint: join this node with a token of `ctl token create`",
        ),
        Some(Principal::Node { .. }) if alpn == ALPN_CLIENT => {
            Err("a node's certificate is not a user's\nhint: use an identity folder of a user")
        }
        Some(_) => Ok(()),
    }
}

/// Returns the version that both speak.
async fn greet(link: &Link) -> Result<u16, LinkError> {
    let limit = Duration::from_secs(FIRST_MESSAGE_SECONDS);
    let mut channel: Channel = match tokio::time::timeout(limit, link.accept()).await {
        Ok(channel) => channel?,
        Err(_) => return Err(LinkError::Timeout { what: "hello", seconds: FIRST_MESSAGE_SECONDS }),
    };
    let hello: Hello = channel.receiver.receive_first("hello").await?;
    let reply = agree(&hello);
    channel.send(&reply).await?;
    channel.finish();
    match reply {
        HelloReply::Agreed { version, .. } => Ok(version),
        HelloReply::Refused { reason } => {
            // The reply should arrive before the end of the connection does.
            let _ = tokio::time::timeout(Duration::from_secs(1), channel.sender.stream.stopped()).await;
            Err(LinkError::Refused { reason })
        }
    }
}

fn agree(hello: &Hello) -> HelloReply {
    let version = hello.version_max.min(VERSION);
    if version >= hello.version_min.max(VERSION_MIN) {
        return HelloReply::Agreed { version, build: env!("CARGO_PKG_VERSION").to_owned() };
    }
    let reason = format!(
        "the scheduler speaks protocol versions {VERSION_MIN} to {VERSION}, this program ({}) {} to {}\n\
         hint: update the older of the two",
        hello.build, hello.version_min, hello.version_max
    );
    HelloReply::Refused { reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_that_both_speak_is_agreed_on() {
        let hello = |version_min, version_max| Hello { version_min, version_max, build: "9.9".into() };
        for (min, max) in [(VERSION_MIN, VERSION), (VERSION, VERSION + 5), (0, u16::MAX)] {
            let reply = agree(&hello(min, max));
            assert!(matches!(reply, HelloReply::Agreed { version: VERSION, .. }), "{reply:?}");
        }
        let older = agree(&hello(0, VERSION_MIN));
        assert!(matches!(older, HelloReply::Agreed { version: VERSION_MIN, .. }), "{older:?}");
        for (min, max) in [(VERSION + 1, VERSION + 2), (0, 0), (VERSION + 1, 0)] {
            let HelloReply::Refused { reason } = agree(&hello(min, max)) else { panic!("{min} {max}") };
            assert!(reason.contains("9.9") && reason.contains("hint:"), "{reason}");
        }
    }
}
