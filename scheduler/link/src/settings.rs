//! Every limit, window and timeout of a connection, with its reason. Measured: the numbers come from transfers on loopback and on local networks.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use motley_scheduler_core::wire::ALPN_BULK;
use motley_scheduler_core::wire::codec::Limit;
use quinn::{EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

/// A handshake takes 2 to 11 ms on a local network; ten seconds are a very bad line.
pub const HANDSHAKE_SECONDS: u64 = 10;
/// One try of whoever dials. QUIC repeats lost packets ever more slowly, so a fresh try is the quicker way out of a
/// bad start.
pub const DIAL_TRY_SECONDS: u64 = 5;
/// All tries together: a machine at forty times its load has answered within this. Where nothing listens the kernel
/// says so at once.
pub const DIAL_SECONDS: u64 = 15;
const _: () = assert!(DIAL_SECONDS.is_multiple_of(DIAL_TRY_SECONDS));
/// From the end of the handshake to the hello or the join request, and from the opening of a stream to its first
/// message: whoever opens and says nothing holds a stream no longer than this.
pub const FIRST_MESSAGE_SECONDS: u64 = 10;
/// Between two chunks of raw bytes.
pub const STALL_SECONDS: u64 = 30;
/// The answer to a request. Longer than the scheduler takes to commit on a disk that stalls.
pub const REPLY_SECONDS: u64 = 60;

/// Handshakes under way at once; above half of it, addresses have to prove that they are theirs.
pub const HANDSHAKES_MAX: usize = 256;
/// Open connections of one scheduler: a thousand nodes with two each, and their users.
pub const CONNECTIONS_MAX: usize = 4096;

/// Keep-alive of whoever dialed.
const KEEP_ALIVE: Duration = Duration::from_secs(3);
/// Loss of a control connection is noticed after this; below `suspect_after` (15 s).
const CONTROL_IDLE_MILLISECONDS: u32 = 12_000;
/// Of a bulk connection, which disks may stall.
const BULK_IDLE_MILLISECONDS: u32 = 20_000;

/// Bandwidth-delay product of 10 Gbit/s at 5 ms is 6 MB.
const STREAM_WINDOW: u32 = 8 << 20;
/// Of a connection before its certificate was looked at: eight join requests.
const STRANGER_WINDOW: u32 = 64 << 10;
const CONTROL_WINDOW: u32 = 4 << 20;
const BULK_WINDOW: u32 = 64 << 20;

/// Smaller socket buffers lose thousands of packets per GiB on loopback already.
const SOCKET_BUFFER: usize = 4 << 20;

/// Largest packet, where the network (loopback, jumbo frames) lets it through: half the work per byte of 1452.
/// A burst of ten has to stay below the 65,507 bytes of one UDP send, or the kernel drops it without a word.
const PACKET_MAX: u16 = 6500;
const _: () = assert!(PACKET_MAX as usize * 10 <= 65_507);

/// What a connection is allowed, by its ALPN.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Largest message, either way.
    pub frame: Limit,
    /// Streams that whoever dialed may have open.
    pub streams: u32,
    pub window: u32,
}

/// Limits of an ALPN; none for a name that is not ours.
pub(crate) fn limits(alpn: &[u8]) -> Option<Limits> {
    let frame = Limit::of_alpn(alpn)?;
    let (streams, window) = match frame {
        Limit::Join => (1, STRANGER_WINDOW),
        // The control stream, and the hello before it.
        Limit::Agent => (2, CONTROL_WINDOW),
        // Requests of one `ctl`, those that follow logs included.
        Limit::Client => (64, CONTROL_WINDOW),
        Limit::Bulk => (16, BULK_WINDOW),
    };
    Some(Limits { frame, streams, window })
}

/// Log bytes of one message stay below this, so that logs never delay a beat by much.
pub const LOG_CHUNK_BYTES: usize = 256 << 10;
const _: () = assert!(LOG_CHUNK_BYTES * 4 <= Limit::Agent.bytes());

/// How a server starts every connection: one stream and little memory, until the certificate was looked at.
pub(crate) fn server_transport() -> Arc<TransportConfig> {
    let mut transport = common(BULK_IDLE_MILLISECONDS);
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .receive_window(VarInt::from_u32(STRANGER_WINDOW));
    Arc::new(transport)
}

/// What a connection is allowed once it is known who speaks.
pub(crate) fn raise(connection: &quinn::Connection, limits: Limits) {
    connection.set_receive_window(VarInt::from_u32(limits.window));
    connection.set_send_window(u64::from(limits.window));
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(limits.streams));
}

/// How a member dials.
pub(crate) fn client_transport(alpn: &[u8]) -> Arc<TransportConfig> {
    let (idle, window) = match alpn {
        ALPN_BULK => (BULK_IDLE_MILLISECONDS, BULK_WINDOW),
        _ => (CONTROL_IDLE_MILLISECONDS, CONTROL_WINDOW),
    };
    let mut transport = common(idle);
    // The scheduler opens no streams: its half of the trust is to answer.
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .receive_window(VarInt::from_u32(window))
        .send_window(u64::from(window))
        .keep_alive_interval(Some(KEEP_ALIVE));
    Arc::new(transport)
}

fn common(idle_milliseconds: u32) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(idle_milliseconds))))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .datagram_receive_buffer_size(None)
        .mtu_discovery_config(Some(discovery()))
        .initial_rtt(Duration::from_millis(100));
    transport
}

/// Packets start at 1200 bytes and grow as far as probes get through.
fn discovery() -> MtuDiscoveryConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(PACKET_MAX);
    discovery
}

/// Of both ends.
pub(crate) fn endpoint() -> EndpointConfig {
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(PACKET_MAX).expect("above QUIC's least of 1200");
    config
}

/// A UDP socket with buffers large enough for bulk transfers.
pub(crate) fn socket(address: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    let reference = socket2::SockRef::from(&socket);
    // Asking for more than the kernel allows is no error: it gives what it allows.
    let _ = reference.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = reference.set_send_buffer_size(SOCKET_BUFFER);
    Ok(socket)
}

/// Says so, once at the start of a server, when the kernel gives less than was asked for.
pub(crate) fn warn_about_small_buffers(socket: &UdpSocket) {
    let reference = socket2::SockRef::from(socket);
    let smallest = reference.recv_buffer_size().unwrap_or(0).min(reference.send_buffer_size().unwrap_or(0));
    if smallest < SOCKET_BUFFER {
        tracing::warn!(
            bytes = smallest,
            wanted = SOCKET_BUFFER,
            "socket buffers are small: transfers may lose packets; \
             hint: sysctl -w net.core.rmem_max={SOCKET_BUFFER} net.core.wmem_max={SOCKET_BUFFER}"
        );
    }
}
