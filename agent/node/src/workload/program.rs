//! Facts about the running program and process, for reports.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::models::hash_file;

/// Which program made a report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramFacts {
    pub name: String,
    pub version: String,
    /// Of the executable file.
    pub sha256: String,
}

impl ProgramFacts {
    /// Of this process.
    pub fn current() -> ProgramFacts {
        static HASH: OnceLock<String> = OnceLock::new();
        // The link stays readable when the file was replaced under the running process, unlike its path.
        let hash = || {
            let file = Path::new("/proc/self/exe");
            let file = if file.exists() { Ok(file.to_path_buf()) } else { std::env::current_exe() };
            file.and_then(|file| hash_file(&file))
                .map_or_else(|_| "unknown".to_owned(), |hash| hash.to_string())
        };
        ProgramFacts {
            name: "motley".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            sha256: HASH.get_or_init(hash).clone(),
        }
    }
}

/// The most memory this process has held, in bytes; absent where the system does not tell.
pub fn peak_resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kibibytes << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_knows_itself() {
        let facts = ProgramFacts::current();
        assert_eq!(facts.sha256.len(), 64, "{facts:?}");
        assert!(peak_resident_bytes().unwrap() > 1 << 20);
    }
}
