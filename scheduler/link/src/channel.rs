//! A connection and its streams.
//!
//! ```text
//! frame = length (u32, little-endian) | so many bytes of one message
//! ```
//!
//! `receive` may be dropped half-way and called again (in a `select!`) without losing a byte; `send` may not.

use std::time::Duration;

use bytes::Bytes as Chunk;
use motley_scheduler_core::unit::Bytes;
use motley_scheduler_core::wire::Message;
use motley_scheduler_core::wire::codec::{self, Limit};
use quinn::{ConnectionError, ReadError, VarInt, WriteError};
use serde::de::DeserializeOwned;

use crate::LinkError;

/// Taken from the stream at once while a frame is read: a lying length reserves no more than this.
const READ_STEP: usize = 64 << 10;

/// Why a connection or stream is closed; with a sentence on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum CloseCode {
    /// All is said.
    Done = 0,
    /// No certificate, or not the right one.
    Denied = 1,
    /// The peer does not keep to the protocol.
    Protocol = 2,
    /// What was asked for failed on this side.
    Failed = 3,
}

/// An established connection. Clones are the same connection.
#[derive(Debug, Clone)]
pub struct Link {
    pub(crate) connection: quinn::Connection,
    pub(crate) frame: Limit,
    /// What both ends have agreed on; before that, what every version knows.
    pub(crate) version: u16,
    /// Of whoever dialed: one endpoint a connection.
    pub(crate) endpoint: Option<quinn::Endpoint>,
}

/// One stream, both ways.
#[derive(Debug)]
pub struct Channel {
    pub sender: Sender,
    pub receiver: Receiver,
}

/// The half that sends. Dropped without [`Sender::finish`], the peer sees what was sent and an end.
#[derive(Debug)]
pub struct Sender {
    pub(crate) stream: quinn::SendStream,
    limit: Limit,
    version: u16,
}

/// The half that receives.
#[derive(Debug)]
pub struct Receiver {
    pub(crate) stream: quinn::RecvStream,
    limit: Limit,
    /// The frame so far, its length included.
    partial: Vec<u8>,
}

impl Link {
    /// Opens a stream. Nothing is sent before the first message.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn open(&self) -> Result<Channel, LinkError> {
        let (send, receive) = self.connection.open_bi().await.map_err(closed)?;
        Ok(Channel::new(send, receive, self.frame, self.version))
    }

    /// The next stream that the peer opens.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn accept(&self) -> Result<Channel, LinkError> {
        let (send, receive) = self.connection.accept_bi().await.map_err(closed)?;
        Ok(Channel::new(send, receive, self.frame, self.version))
    }

    /// Closes the connection at once; the peer sees `reason`.
    pub fn close(&self, code: CloseCode, reason: &str) {
        // A close frame has to fit one packet.
        let reason = reason.as_bytes();
        self.connection.close(VarInt::from_u32(code as u32), &reason[..reason.len().min(1000)]);
    }

    /// Closes the connection, and waits (a second at most) until the peer must know.
    pub async fn shut_down(&self, reason: &str) {
        self.close(CloseCode::Done, reason);
        if let Some(endpoint) = &self.endpoint {
            let _ = tokio::time::timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
        }
    }

    /// Waits for the end of the connection, and says why.
    pub async fn closed(&self) -> LinkError {
        closed(self.connection.closed().await)
    }

    /// The protocol version that both ends speak.
    pub fn version(&self) -> u16 {
        self.version
    }

    pub fn remote_address(&self) -> std::net::SocketAddr {
        self.connection.remote_address()
    }
}

impl Channel {
    pub(crate) fn new(
        send: quinn::SendStream,
        receive: quinn::RecvStream,
        limit: Limit,
        version: u16,
    ) -> Self {
        Channel {
            sender: Sender { stream: send, limit, version },
            receiver: Receiver { stream: receive, limit, partial: Vec::new() },
        }
    }

    /// See [`Sender::send`].
    ///
    /// # Errors
    /// As there.
    pub async fn send<T: Message>(&mut self, message: &T) -> Result<(), LinkError> {
        self.sender.send(message).await
    }

    /// See [`Receiver::receive`].
    ///
    /// # Errors
    /// As there.
    pub async fn receive<T: DeserializeOwned>(&mut self) -> Result<Option<T>, LinkError> {
        self.receiver.receive().await
    }

    /// Nothing more will be sent.
    pub fn finish(&mut self) {
        self.sender.finish();
    }

    pub fn split(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
    }
}

impl Sender {
    /// Sends one message. Not to be dropped half-way: what follows would be read as its rest.
    ///
    /// # Errors
    /// The peer is too old for the message, it is above the limit of this connection, or the connection is gone.
    pub async fn send<T: Message>(&mut self, message: &T) -> Result<(), LinkError> {
        if message.since() > self.version {
            return Err(LinkError::PeerTooOld { since: message.since(), agreed: self.version });
        }
        let body = codec::encode(message, self.limit).map_err(malformed)?;
        let length = u32::try_from(body.len()).map_err(malformed)?;
        let mut frame = Vec::with_capacity(4 + body.len());
        frame.extend_from_slice(&length.to_le_bytes());
        frame.extend_from_slice(&body);
        self.stream.write_chunk(Chunk::from(frame)).await.map_err(write_failed)
    }

    /// Nothing more will be sent.
    pub fn finish(&mut self) {
        // Refused only when the stream is gone already.
        let _ = self.stream.finish();
    }

    /// Breaks the stream off: the peer must not take what came for whole.
    pub fn abort(&mut self, code: CloseCode) {
        let _ = self.stream.reset(VarInt::from_u32(code as u32));
    }
}

impl Receiver {
    /// The next message; `None` when the peer has finished.
    ///
    /// # Errors
    /// A message that is too large, cut off or not one, or a connection that is gone.
    pub async fn receive<T: DeserializeOwned>(&mut self) -> Result<Option<T>, LinkError> {
        if !self.fill(4).await? {
            return match self.partial.len() {
                0 => Ok(None),
                received => Err(LinkError::Truncated { received: received as u64, expected: 4 }),
            };
        }
        let prefix = [self.partial[0], self.partial[1], self.partial[2], self.partial[3]];
        let length = u32::from_le_bytes(prefix) as usize;
        if length > self.limit.bytes() {
            self.stop(CloseCode::Protocol);
            let limit = Bytes(self.limit.bytes() as u64);
            return Err(LinkError::TooLarge { size: Bytes(length as u64), limit });
        }
        if !self.fill(4 + length).await? {
            let received = self.partial.len() as u64 - 4;
            return Err(LinkError::Truncated { received, expected: length as u64 });
        }
        let message = codec::decode(&self.partial[4..], self.limit);
        self.partial = Vec::new();
        message.map(Some).map_err(malformed)
    }

    /// The same within [`crate::settings::FIRST_MESSAGE_SECONDS`], and `None` is an error: the first message of a
    /// stream, called `what`.
    ///
    /// # Errors
    /// As [`Receiver::receive`]; nothing came, or not in time.
    pub async fn receive_first<T: DeserializeOwned>(&mut self, what: &'static str) -> Result<T, LinkError> {
        self.receive_within(what, crate::settings::FIRST_MESSAGE_SECONDS).await
    }

    /// The next message, within a time; `None` is an error.
    ///
    /// # Errors
    /// As [`Receiver::receive`]; nothing came, or not in time.
    pub async fn receive_within<T: DeserializeOwned>(
        &mut self,
        what: &'static str,
        seconds: u64,
    ) -> Result<T, LinkError> {
        match tokio::time::timeout(Duration::from_secs(seconds), self.receive()).await {
            Ok(Ok(Some(message))) => Ok(message),
            Ok(Ok(None)) => Err(LinkError::Closed { reason: format!("the stream ended before the {what}") }),
            Ok(Err(error)) => Err(error),
            Err(_) => {
                self.stop(CloseCode::Protocol);
                Err(LinkError::Timeout { what, seconds })
            }
        }
    }

    /// Tells the peer to stop sending on this stream.
    pub fn stop(&mut self, code: CloseCode) {
        // Refused only when the stream is gone already.
        let _ = self.stream.stop(VarInt::from_u32(code as u32));
    }

    /// Reads until the frame so far has `size` bytes, and never a byte beyond: raw bytes may follow. False when the
    /// stream ends before.
    async fn fill(&mut self, size: usize) -> Result<bool, LinkError> {
        while self.partial.len() < size {
            let step = (size - self.partial.len()).min(READ_STEP);
            match self.stream.read_chunk(step, true).await.map_err(read_failed)? {
                Some(chunk) => self.partial.extend_from_slice(&chunk.bytes),
                None => return Ok(false),
            }
        }
        Ok(true)
    }
}

fn malformed(error: impl std::fmt::Display) -> LinkError {
    LinkError::Malformed { reason: error.to_string() }
}

/// An ended connection in words: the peer's own, where it left some.
pub(crate) fn closed(error: ConnectionError) -> LinkError {
    match &error {
        ConnectionError::ApplicationClosed(close) => {
            let reason = match String::from_utf8_lossy(&close.reason) {
                text if text.is_empty() => "the peer has gone".to_owned(),
                text => text.into_owned(),
            };
            if u64::from(close.error_code) == u64::from(CloseCode::Denied as u32) {
                LinkError::Refused { reason }
            } else {
                LinkError::Closed { reason }
            }
        }
        ConnectionError::ConnectionClosed(close) => tls_refused(u64::from(close.error_code), &error),
        ConnectionError::TransportError(failure) => tls_refused(u64::from(failure.code), &error),
        ConnectionError::TimedOut => LinkError::Closed { reason: "nothing was heard for too long".into() },
        _ => LinkError::Closed { reason: error.to_string() },
    }
}

/// TLS alerts, which QUIC carries as 0x100 + alert.
fn tls_refused(code: u64, error: &ConnectionError) -> LinkError {
    const BAD_CERTIFICATE: u64 = 0x12a;
    const CERTIFICATE_EXPIRED: u64 = 0x12d;
    const UNKNOWN_AUTHORITY: u64 = 0x130;
    const BAD_SIGNATURE: u64 = 0x133;
    const NO_COMMON_PROTOCOL: u64 = 0x178;
    const REJOIN: &str = "hint: join again with a new token (`ctl token create` on the scheduler prints one)";
    let reason = match code {
        CERTIFICATE_EXPIRED => format!("the certificate has expired\n{REJOIN}"),
        UNKNOWN_AUTHORITY | BAD_CERTIFICATE | BAD_SIGNATURE => {
            format!("the certificate is of another authority\n{REJOIN}")
        }
        NO_COMMON_PROTOCOL => "the peer does not speak this protocol\n\
             hint: are both programs of this version, and is that the scheduler's port?"
            .to_owned(),
        0x100..=0x1ff => format!("{error}"),
        _ => return LinkError::Closed { reason: error.to_string() },
    };
    LinkError::Handshake { reason }
}

pub(crate) fn read_failed(error: ReadError) -> LinkError {
    match error {
        ReadError::ConnectionLost(error) => closed(error),
        ReadError::Reset(code) => {
            LinkError::Closed { reason: format!("the peer broke off the stream ({code})") }
        }
        other => LinkError::Closed { reason: other.to_string() },
    }
}

pub(crate) fn write_failed(error: WriteError) -> LinkError {
    match error {
        WriteError::ConnectionLost(error) => closed(error),
        WriteError::Stopped(code) => {
            LinkError::Closed { reason: format!("the peer stopped reading ({code})") }
        }
        other => LinkError::Closed { reason: other.to_string() },
    }
}
