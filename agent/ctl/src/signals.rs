//! SIGINT (Ctrl-C) and SIGTERM: both ask to end.

use std::sync::{Arc, OnceLock};

use motley_agent_node::runner::StopFlag;

use crate::failure::{Exit, Failure};

/// Listens from its making on, so that a signal during a slow start is not lost.
pub struct Signals {
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    #[cfg(unix)]
    pub fn new() -> Result<Signals, Failure> {
        use tokio::signal::unix::{SignalKind, signal};
        let failed = |error| Failure::failed(format!("cannot listen for signals: {error}"));
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
        })
    }

    /// The next signal.
    pub async fn next(&mut self) {
        self.next_exit().await;
    }

    /// The next signal, as the exit code of a command that it ends.
    #[cfg(unix)]
    async fn next_exit(&mut self) -> Exit {
        tokio::select! {
            _ = self.interrupt.recv() => Exit::Interrupted,
            _ = self.terminate.recv() => Exit::Terminated,
        }
    }

    #[cfg(not(unix))]
    pub fn new() -> Result<Signals, Failure> {
        Ok(Signals {})
    }

    #[cfg(not(unix))]
    async fn next_exit(&mut self) -> Exit {
        if let Err(error) = tokio::signal::ctrl_c().await {
            tracing::warn!(%error, "cannot listen for Ctrl-C");
            std::future::pending::<()>().await;
        }
        Exit::Interrupted
    }
}

/// Signals for a command that computes on the thread it was called on: it looks, and nothing interrupts it.
pub struct Watched {
    pub stop: StopFlag,
    exit: Arc<OnceLock<Exit>>,
}

impl Watched {
    /// Listens on a thread of its own. The second signal ends the process at once.
    pub fn start() -> Result<Watched, Failure> {
        let failed = |error| Failure::failed(format!("cannot listen for signals: {error}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let mut signals = {
            let _entered = runtime.enter();
            Signals::new()?
        };
        let (stop, exit) = (StopFlag::new(), Arc::new(OnceLock::new()));
        let watched = Watched { stop: stop.clone(), exit: Arc::clone(&exit) };
        let listen = move || {
            let first = runtime.block_on(signals.next_exit());
            exit.get_or_init(|| first);
            stop.set();
            let second = runtime.block_on(signals.next_exit());
            std::process::exit(second.code().into())
        };
        std::thread::Builder::new().name("signals".into()).spawn(listen).map_err(failed)?;
        Ok(watched)
    }

    /// The signal that came, if one did.
    pub fn exit(&self) -> Option<Exit> {
        self.exit.get().copied()
    }
}
