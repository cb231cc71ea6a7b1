//! One connection: HTTP/1.1 requests, one after the other, until its client or the server ends it.
//!
//! `axum::serve` would do, but has neither a limit for the time that a request's head may take, nor a way to learn
//! whose answer was cut when the server ended.

use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::app::App;

/// Counts a connection that has begun a request as unfinished for as long as it exists. Once the server finishes, a
/// connection ends as soon as it owes nothing: those that are left then are owed (the rest of) an answer.
struct Unfinished(Arc<App>);

impl Unfinished {
    fn new(app: &Arc<App>) -> Unfinished {
        app.unfinished.fetch_add(1, Ordering::SeqCst);
        Unfinished(Arc::clone(app))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        self.0.unfinished.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Over when the server finishes.
pub(super) async fn finish(finishing: &mut watch::Receiver<bool>) {
    // A sender that is gone is a server that is gone.
    let _ = finishing.wait_for(|finish| *finish).await;
}

/// Answers the requests of one client.
pub(super) async fn connection(
    stream: TcpStream,
    router: Router,
    app: Arc<App>,
    mut finishing: watch::Receiver<bool>,
) {
    let head = app.patience.head;
    let router = TowerToHyperService::new(router);
    let begun = OnceLock::new();
    let service = service_fn(move |request: Request<Incoming>| {
        begun.get_or_init(|| Unfinished::new(&app));
        router.call(request)
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(head);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = finish(&mut finishing) => {
            // Sends what is owed, and closes.
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection broke");
    }
}
