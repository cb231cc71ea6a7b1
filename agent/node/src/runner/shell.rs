//! The shell of a runner process: everything around a workload, from `spec.json` to `result.json`.
//!
//! ```text
//! main thread      spec, lock, session, pid, control socket; waits for the workload; writes the result
//! workload thread  the workload; a panic in it is caught and told as an internal error
//! control thread   control.sock: lease renewals, stop
//! watch thread     SIGTERM, end of the lease, death of the parent (embedded mode)
//! ```

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use motley_scheduler_core::failure::FailureReason;
use motley_scheduler_core::wire::agent::{AttemptPhase, Outcome};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::context::{Embedded, Folders, RunnerSpec, StopFlag};
use super::control::{self, ControlCommand};
use super::files::{read_json, write_json};
use super::lease::{Lease, LeaseState};
use super::process::ProcessIdentity;
use super::report::Reporter;
use super::result::RunnerResult;
use crate::failure::Failure;

/// The workload parses JSON and walks models recursively in places; threads get 2 MiB by default.
const STACK_BYTES: usize = 16 << 20;

/// How often signals, lease and parent are looked at.
const LOOK: Duration = Duration::from_millis(100);

/// A second, at [`LOOK`].
const LOCK_TRIES: usize = 10;

/// What a workload works with, before the document is read.
#[derive(Debug)]
pub(crate) struct Shell {
    pub(crate) spec: RunnerSpec,
    pub(crate) folders: Folders,
    pub(crate) reporter: Reporter,
    pub(crate) stop: StopFlag,
}

/// How a workload ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finish {
    Done,
    /// It was asked to stop and did.
    Stopped,
}

/// Why a runner could not even begin. Told on its log; the agent reports the runner as lost.
#[derive(Debug, thiserror::Error)]
pub enum ShellError {
    #[error("{path}: {source}")]
    Folder { path: String, source: io::Error },
    #[error("{path} holds no spec.json\nhint: runners are started by the agent")]
    NoSpec { path: String },
    #[error("another runner is at work in {path}")]
    Taken { path: String },
}

/// Runs `work` in an attempt folder and leaves `result.json` there.
pub(crate) fn run<W>(folder: &Path, work: W) -> ExitCode
where
    W: FnOnce(Shell) -> Result<Finish, Failure> + Send + 'static,
{
    match attempt(folder, work) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "runner could not begin or end");
            let _ = io::Write::write_all(&mut io::stderr(), format!("error: {error}\n").as_bytes());
            ExitCode::FAILURE
        }
    }
}

fn attempt<W>(folder: &Path, work: W) -> Result<(), ShellError>
where
    W: FnOnce(Shell) -> Result<Finish, Failure> + Send + 'static,
{
    let failed = |source| ShellError::Folder { path: folder.display().to_string(), source };
    let folder = &folder.canonicalize().map_err(failed)?;
    let spec: RunnerSpec = read_json(&folder.join("spec.json"))
        .map_err(failed)?
        .ok_or_else(|| ShellError::NoSpec { path: folder.display().to_string() })?;
    // Held until the process is gone, however it goes.
    let _lock = take_lock(folder)?;
    // Fails only for the leader of a process group, which a child of the agent is not.
    let _ = nix::unistd::setsid();
    let identity = ProcessIdentity::of_this_process(&spec.nonce).map_err(failed)?;
    write_json(&folder.join("pid.json"), &identity).map_err(failed)?;
    let folders = Folders::new(folder, &spec.settings.models.cache);
    for each in [&folders.input, &folders.inputs, &folders.checkpoints, &folders.output] {
        fs::create_dir_all(each).map_err(failed)?;
    }
    let reporter = Reporter::open(&folder.join("events.jsonl")).map_err(failed)?;
    let panic = catch_panic_text();
    let orders = Arc::new(Orders::new(&spec));
    start_control(folder, &orders).map_err(failed)?;
    start_watch(&orders, &reporter, spec.embedded.clone()).map_err(failed)?;
    let embedded = spec.embedded.is_some();
    reporter.phase(AttemptPhase::Running);

    let shell = Shell { spec, folders, reporter: reporter.clone(), stop: orders.stop.clone() };
    let thread = thread::Builder::new().name("workload".into()).stack_size(STACK_BYTES);
    let finished = thread.spawn(move || work(shell)).map_err(failed)?.join();
    let outcome = outcome(finished.ok(), &orders, &panic);
    // In embedded mode whoever reads the log is told the end anyway, in the same place.
    if let Outcome::Failed { reason, message } = &outcome
        && !embedded
    {
        reporter.log(&format!("failed ({reason}): {message}"));
    }
    RunnerResult { outcome }.write(folder).map_err(failed)
}

/// What the control and watch threads have learned.
#[derive(Debug)]
struct Orders {
    stop: StopFlag,
    lease: Lease,
    lease_over: AtomicBool,
}

impl Orders {
    fn new(spec: &RunnerSpec) -> Self {
        let lease = Lease::new(Instant::now(), spec.assignment.lease, spec.keep_running);
        Orders { stop: StopFlag::new(), lease, lease_over: AtomicBool::new(false) }
    }
}

/// `finished` is `None` when the workload panicked.
fn outcome(
    finished: Option<Result<Finish, Failure>>,
    orders: &Orders,
    panic: &Mutex<Option<String>>,
) -> Outcome {
    match finished {
        Some(Ok(Finish::Done)) => Outcome::Succeeded,
        Some(Ok(Finish::Stopped)) if orders.lease_over.load(Ordering::SeqCst) => Outcome::Failed {
            reason: FailureReason::NodeLost,
            message: "the scheduler could not be reached for longer than keep_running; stopped after a last checkpoint"
                .into(),
        },
        Some(Ok(Finish::Stopped)) => Outcome::Cancelled,
        Some(Err(Failure { reason, message })) => Outcome::Failed { reason, message },
        None => {
            let text = panic.lock().unwrap_or_else(PoisonError::into_inner).take();
            let text = text.unwrap_or_else(|| "panic without a text".into());
            let hint = "hint: this is a mistake of Motley, not of the job; please report it with the job's log";
            let Failure { reason, message } =
                Failure::new(FailureReason::Internal, format!("internal error: {text}\n{hint}"));
            Outcome::Failed { reason, message }
        }
    }
}

fn take_lock(folder: &Path) -> Result<File, ShellError> {
    let path = folder.display().to_string();
    let lock = File::options().create(true).truncate(false).write(true).open(folder.join("runner.lock"));
    let lock = lock.map_err(|source| ShellError::Folder { path: path.clone(), source })?;
    for _ in 0..LOCK_TRIES {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            // An agent that looks whether there is a runner holds the lock for an instant.
            Err(fs::TryLockError::WouldBlock) => thread::sleep(LOOK),
            Err(fs::TryLockError::Error(source)) => return Err(ShellError::Folder { path, source }),
        }
    }
    Err(ShellError::Taken { path })
}

/// Keeps the first panic's text and place instead of a backtrace; the first is the cause, later ones its echo.
fn catch_panic_text() -> Arc<Mutex<Option<String>>> {
    let kept = Arc::new(Mutex::new(None));
    let keep = Arc::clone(&kept);
    std::panic::set_hook(Box::new(move |info| {
        let payload = info.payload();
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default();
        let place = info.location().map(|at| format!(" ({}:{})", at.file(), at.line())).unwrap_or_default();
        let text = format!("{text}{place}");
        let _ = io::Write::write_all(&mut io::stderr(), format!("internal error: {text}\n").as_bytes());
        keep.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(text);
    }));
    kept
}

fn start_control(folder: &Path, orders: &Arc<Orders>) -> io::Result<()> {
    let listener = control::listen(folder)?;
    let orders = Arc::clone(orders);
    thread::Builder::new().name("control".into()).spawn(move || {
        control::obey(&listener, |command| match command {
            ControlCommand::Lease { lease, keep_running } => {
                orders.lease.renew(Instant::now(), lease, keep_running);
            }
            ControlCommand::Stop => orders.stop.set(),
        });
    })?;
    Ok(())
}

static SIGTERM_SEEN: AtomicBool = AtomicBool::new(false);

extern "C" fn note_sigterm(_: nix::libc::c_int) {
    SIGTERM_SEEN.store(true, Ordering::SeqCst);
}

fn start_watch(orders: &Arc<Orders>, reporter: &Reporter, embedded: Option<Embedded>) -> io::Result<()> {
    let action = SigAction::new(SigHandler::Handler(note_sigterm), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler does nothing but store to an atomic, which is async-signal-safe.
    unsafe { sigaction(Signal::SIGTERM, &action) }?;
    let orders = Arc::clone(orders);
    let reporter = reporter.clone();
    thread::Builder::new().name("watch".into()).spawn(move || watch(&orders, &reporter, embedded))?;
    Ok(())
}

fn watch(orders: &Orders, reporter: &Reporter, embedded: Option<Embedded>) -> ! {
    let mut lapsed = false;
    loop {
        thread::sleep(LOOK);
        if SIGTERM_SEEN.load(Ordering::SeqCst) {
            orders.stop.set();
        }
        match orders.lease.at(Instant::now()) {
            LeaseState::Held if lapsed => {
                lapsed = false;
                reporter.log("the scheduler is back: the lease is renewed");
            }
            LeaseState::Lapsed { left } if !lapsed => {
                lapsed = true;
                let seconds = left.as_secs();
                reporter
                    .log(&format!("the lease has ended without renewal: going on locally for {seconds} s"));
            }
            LeaseState::Over if !orders.lease_over.swap(true, Ordering::SeqCst) => {
                reporter.log("the lease was not renewed in time: stopping");
                orders.stop.set();
            }
            _ => {}
        }
        if let Some(embedded) = &embedded
            && nix::unistd::getppid().as_raw() as u32 != embedded.parent
        {
            vanish(&embedded.root);
        }
    }
}

/// The process that started this one is gone: nothing of the run may stay behind, neither files nor processes.
///
/// A parent-death signal would not do: the kernel sends it when the *thread* that started the runner ends, and the
/// threads of an async runtime come and go.
fn vanish(root: &Path) -> ! {
    // Under its new name nobody who still writes finds the folder.
    let doomed = root.with_extension("ended");
    if fs::rename(root, &doomed).is_ok() {
        for _ in 0..3 {
            if fs::remove_dir_all(&doomed).is_ok() {
                break;
            }
            thread::sleep(LOOK);
        }
    }
    // Zero: every process of this process group, which a runner leads, itself included.
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(0), Signal::SIGKILL);
    std::process::exit(1)
}
