//! (being built)

/// Runs `ctl`.
pub fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
