//! Who a runner is, so that an agent finds it again after its own restart and takes no other process for it.
//!
//! A pid alone is reused; with the start time it names one process of one boot; the nonce in its environment tells
//! that it was started for this very attempt.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Variable in the runner's environment that holds its nonce.
pub const NONCE_VARIABLE: &str = "MOTLEY_RUNNER_NONCE";

/// `pid.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`: clock ticks since the boot.
    pub start_time: u64,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot: String,
    pub nonce: String,
}

impl ProcessIdentity {
    /// The calling process.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn of_this_process(nonce: &str) -> io::Result<Self> {
        let pid = std::process::id();
        let stat = fs::read_to_string("/proc/self/stat")?;
        let (_, start_time) = parse_stat(&stat).ok_or(io::ErrorKind::InvalidData)?;
        Ok(ProcessIdentity { pid, start_time, boot: boot_id()?, nonce: nonce.to_owned() })
    }

    /// Whether that very process still runs. A zombie does not.
    pub fn is_alive(&self) -> bool {
        let folder = Path::new("/proc").join(self.pid.to_string());
        let Some((state, start_time)) =
            fs::read_to_string(folder.join("stat")).ok().as_deref().and_then(parse_stat)
        else {
            return false;
        };
        if matches!(state, 'Z' | 'X') || start_time != self.start_time {
            return false;
        }
        if boot_id().is_ok_and(|boot| boot != self.boot) {
            return false;
        }
        // Unreadable only for processes of somebody else, which are not ours.
        let expected = format!("{NONCE_VARIABLE}={}", self.nonce);
        fs::read(folder.join("environ"))
            .is_ok_and(|environment| environment.split(|&b| b == 0).any(|entry| entry == expected.as_bytes()))
    }
}

/// Changes with every start of the machine.
///
/// # Errors
/// `/proc` cannot be read.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// State and start time. The command's name, in parentheses, may itself hold spaces and parentheses.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    // State is field 3, the start time field 22.
    let start_time = fields.nth(18)?.parse().ok()?;
    Some((state, start_time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_parentheses_and_spaces_do_not_shift_the_fields() {
        let stat = "7 (a) b (c) R 1 7 7 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 4242 9 9";
        assert_eq!(parse_stat(stat), Some(('R', 4242)));
        assert_eq!(parse_stat("7 (a"), None);
    }

    fn wait_until(is_so: impl Fn() -> bool) {
        let begin = std::time::Instant::now();
        while !is_so() {
            assert!(begin.elapsed() < std::time::Duration::from_secs(180), "waited in vain");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    #[test]
    fn a_process_with_another_start_time_or_nonce_is_another_process() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .env(NONCE_VARIABLE, "abc")
            .stdin(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        let (_, start_time) = parse_stat(&stat).unwrap();
        let identity =
            ProcessIdentity { pid: child.id(), start_time, boot: boot_id().unwrap(), nonce: "abc".into() };
        // The environment of a new process is its parent's until its `exec`.
        wait_until(|| identity.is_alive());
        assert!(!ProcessIdentity { start_time: start_time + 1, ..identity.clone() }.is_alive());
        assert!(!ProcessIdentity { nonce: "xyz".into(), ..identity.clone() }.is_alive());
        assert!(!ProcessIdentity { boot: "other".into(), ..identity.clone() }.is_alive());
        child.kill().unwrap();
        // Not waited for yet: a zombie, which is not alive.
        wait_until(|| !identity.is_alive());
        child.wait().unwrap();
        assert!(!identity.is_alive());
    }
}
