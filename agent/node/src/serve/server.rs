//! The listening socket, and the way a server ends.
//!
//! ```text
//! bound ──model loaded──▶ ready ──stop──▶ draining ──nothing in flight, or drain time over──▶ closed
//! ```
//!
//! While draining the socket stays open: `/ready` says 503, so does every new request, with a retry hint; what was
//! accepted before is finished and sent.

use std::future::Future;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use super::ServeError;
use super::app::{App, router};

/// How often a draining or running server looks at itself.
const LOOK: Duration = Duration::from_millis(20);

/// After the last answer: time for open connections to take note before they are cut.
const LINGER: Duration = Duration::from_secs(2);

/// Takes the port, so that a port in use is known before a model is loaded.
///
/// # Errors
/// The address is malformed, of another machine, or in use.
pub(crate) fn bind(listen: &str) -> Result<TcpListener, ServeError> {
    let error = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::AddrInUse => ServeError::PortInUse { listen: listen.to_owned() },
        _ => ServeError::Bind { listen: listen.to_owned(), source },
    };
    let addresses: Vec<SocketAddr> = listen.to_socket_addrs().map_err(error)?.collect();
    let listener = TcpListener::bind(addresses.as_slice()).map_err(error)?;
    listener.set_nonblocking(true).map_err(error)?;
    Ok(listener)
}

/// Answers until `stop` is over, then drains for at most `drain`.
///
/// # Errors
/// The socket fails, or the compute thread ended by itself.
pub(crate) async fn serve(
    listener: TcpListener,
    app: Arc<App>,
    stop: impl Future<Output = ()>,
    drain: Duration,
) -> Result<(), ServeError> {
    let listener = tokio::net::TcpListener::from_std(listener).map_err(ServeError::Socket)?;
    let (finish, finished) = oneshot::channel::<()>();
    let shutdown = async {
        let _ = finished.await;
    };
    let server = axum::serve(listener, router(Arc::clone(&app))).with_graceful_shutdown(shutdown);
    let server = tokio::spawn(server.into_future());
    tokio::select! {
        () = stop => {}
        () = engine_death(&app) => return Err(ServeError::ComputeThread),
    }
    app.draining.store(true, Ordering::SeqCst);
    let in_flight = app.in_flight.load(Ordering::SeqCst);
    tracing::info!(in_flight, "draining");
    let deadline = Instant::now() + drain;
    while app.in_flight.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
        sleep(LOOK).await;
    }
    let _ = finish.send(());
    match timeout(LINGER, server).await {
        Ok(Ok(result)) => result.map_err(ServeError::Socket),
        // Connections that keep open are cut with the process.
        Ok(Err(_)) | Err(_) => Ok(()),
    }
}

async fn engine_death(app: &App) {
    while app.model.get().is_none_or(|model| model.engine.is_alive()) {
        sleep(LOOK * 10).await;
    }
}
