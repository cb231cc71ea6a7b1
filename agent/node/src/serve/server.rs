//! The listening socket, and the way a server ends.
//!
//! ```text
//! bound ──model loaded──▶ ready ──stop──▶ draining ──nothing in flight──▶ finishing ──all is sent──▶ closed
//!                                            └────────── drain time over ─────┘         └ or cut ┘
//! ```
//!
//! While draining the socket stays open: `/ready` says 503, so does every new request, with a retry hint; what was
//! accepted before is finished. While finishing nobody new is let in, and what was answered is sent as fast as its
//! reader takes it, for as long as the drain time lasts. What is cut then is counted.

use std::future::Future;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use super::ServeError;
use super::app::{App, ServedModel, router};
use super::connection::{self, connection};

/// How often a draining or running server looks at itself.
const LOOK: Duration = Duration::from_millis(20);

/// After a failed accept, such as for want of file descriptors: others have to end before the next can succeed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// How long a server waits for what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// For requests in flight, after a stop.
    pub(crate) drain: Duration,
    /// After the drain: for open connections to take note before they are cut.
    pub(crate) linger: Duration,
    /// For the head of a request, and for the next request on an idle connection.
    pub(crate) head: Duration,
    /// For a small body; a large one gets more, by [`SLOWEST_UPLOAD`].
    pub(crate) body: Duration,
    /// For the rest of a body once the server drains: the request is not begun yet, another server can have it.
    pub(crate) body_draining: Duration,
}

/// Bytes a second of the slowest client that is waited for: 2 Mbit/s.
const SLOWEST_UPLOAD: u64 = 256 << 10;

impl Patience {
    /// [`Patience::linger`] of every server.
    pub(crate) const LINGER: Duration = Duration::from_secs(2);

    pub(crate) fn new(drain: Duration) -> Patience {
        Patience {
            drain,
            linger: Self::LINGER,
            // Above the minute that clients and proxies commonly keep an idle connection: they close first.
            head: Duration::from_secs(75),
            body: Duration::from_secs(30),
            body_draining: Duration::from_secs(2),
        }
    }

    /// For a body of so many bytes.
    pub(crate) fn for_body(&self, bytes: u64) -> Duration {
        self.body + Duration::from_secs(bytes / SLOWEST_UPLOAD)
    }
}

/// How a server ended that was asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Drained {
    /// Connections on which a request was answered only in part, or not at all.
    pub(crate) cut: usize,
}

/// Takes the port, so that a port in use is known before a model is loaded.
///
/// A name may have an address of each family, such as `localhost`: all have to be free, else clients would find one
/// server or another by how they resolve the name. The first is listened on.
///
/// # Errors
/// The address is malformed, of another machine, or in use.
pub(crate) fn bind(listen: &str) -> Result<TcpListener, ServeError> {
    let error = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::AddrInUse => ServeError::PortInUse { listen: listen.to_owned() },
        _ => ServeError::Bind { listen: listen.to_owned(), source },
    };
    bind_first(listen.to_socket_addrs().map_err(error)?).map_err(error)
}

pub(crate) fn bind_first(addresses: impl Iterator<Item = SocketAddr>) -> std::io::Result<TcpListener> {
    let (mut first, mut failed) = (None, None);
    for address in addresses {
        match TcpListener::bind(address) {
            Ok(listener) => {
                first.get_or_insert(listener);
            }
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => return Err(error),
            // A family that this machine does not have.
            Err(error) => failed = Some(error),
        }
    }
    let nothing = || failed.unwrap_or_else(|| std::io::ErrorKind::AddrNotAvailable.into());
    let listener = first.ok_or_else(nothing)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Answers until `stop` is over, then drains.
///
/// # Errors
/// The socket fails, or the compute thread ended by itself.
pub(crate) async fn serve(
    listener: TcpListener,
    app: Arc<App>,
    stop: impl Future<Output = ()>,
) -> Result<Drained, ServeError> {
    let listener = tokio::net::TcpListener::from_std(listener).map_err(ServeError::Socket)?;
    let (finish, finishing) = watch::channel(false);
    let accepting = tokio::spawn(accept(listener, Arc::clone(&app), finishing));
    tokio::select! {
        () = stop => {}
        () = engine_death(&app) => return Err(ServeError::ComputeThread),
    }
    app.drain();
    let in_flight = app.in_flight.load(Ordering::SeqCst);
    tracing::info!(in_flight, "draining");
    let deadline = Instant::now() + app.patience.drain;
    while app.in_flight.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
        sleep(LOOK).await;
    }
    finish.send_replace(true);
    let mut open = accepting.await.map_err(|error| ServeError::Socket(error.into()))?;
    let last = deadline.max(Instant::now()) + app.patience.linger;
    while let Ok(Some(_)) = timeout_at(last, open.join_next()).await {}
    Ok(Drained { cut: app.unfinished.load(Ordering::SeqCst) })
}

/// Lets connections in until the server is to finish; gives those that are still open then.
async fn accept(
    listener: tokio::net::TcpListener,
    app: Arc<App>,
    mut finishing: watch::Receiver<bool>,
) -> JoinSet<()> {
    let router: Router = router(Arc::clone(&app));
    let mut open = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = connection::finish(&mut finishing) => return open,
            Some(_) = open.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                open.spawn(connection(stream, router.clone(), Arc::clone(&app), finishing.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "connection not accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn engine_death(app: &App) {
    while app.model.get().is_none_or(ServedModel::is_alive) {
        sleep(LOOK * 10).await;
    }
}
