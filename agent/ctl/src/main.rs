//! The binary `ctl`: everything is in the library.

fn main() -> std::process::ExitCode {
    motley_agent_ctl::main()
}
