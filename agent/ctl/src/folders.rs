//! Where things lie when the user names no folder.
//!
//! ```text
//! configuration   $XDG_CONFIG_HOME, ~/.config      motley/identity           who I am for which scheduler
//! data            $XDG_DATA_HOME, ~/.local/share   motley/scheduler, motley/agent
//! cache           $XDG_CACHE_HOME, ~/.cache        motley                    models of local commands
//! ```
//! (On Windows `%APPDATA%` and `%LOCALAPPDATA%`.)

use std::path::PathBuf;

use crate::failure::Failure;

/// The folder with the user's certificate and the address of the scheduler.
pub fn identity() -> Result<PathBuf, Failure> {
    base("XDG_CONFIG_HOME", "APPDATA", ".config").map(|base| base.join("identity"))
}

/// State of the scheduler on this machine.
pub fn scheduler_state() -> Result<PathBuf, Failure> {
    base("XDG_DATA_HOME", "LOCALAPPDATA", ".local/share").map(|base| base.join("scheduler"))
}

/// State of the agent on this machine.
pub fn agent_state() -> Result<PathBuf, Failure> {
    base("XDG_DATA_HOME", "LOCALAPPDATA", ".local/share").map(|base| base.join("agent"))
}

/// Models that `ctl run`, `ctl embed` and the like fetched.
pub fn cache() -> Result<PathBuf, Failure> {
    base("XDG_CACHE_HOME", "LOCALAPPDATA", ".cache")
}

fn base(xdg: &str, windows: &str, below_home: &str) -> Result<PathBuf, Failure> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let named = if cfg!(windows) { set(windows) } else { set(xdg).filter(|path| path.is_absolute()) };
    let folder = named.or_else(|| set("HOME").map(|home| home.join(below_home)));
    folder.map(|folder| folder.join("motley")).ok_or_else(|| {
        Failure::usage("no home folder: HOME is not set")
            .hint("set HOME, or name the folder with --state or --identity")
    })
}
