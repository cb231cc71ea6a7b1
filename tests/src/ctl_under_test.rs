//! The same three lines as `ctl`, here because cargo builds no other package's binary for a test.

fn main() -> std::process::ExitCode {
    motley_agent_ctl::main()
}
