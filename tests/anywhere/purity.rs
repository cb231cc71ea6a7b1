//! The deciding half is pure, and its guard bites: violations planted in a scratch crate with the same `clippy.toml`
//! are caught.

use std::process::Command;

use motley_tests::repository;

/// What the deciding half may use. A new name here is a decision, not a formality.
const PACKAGES: [&str; 6] = ["bincode", "serde", "strsim", "thiserror", "toml", "toml_edit"];

/// One violation each, as the body of a function.
const VIOLATIONS: [(&str, &str); 8] = [
    ("the clock", "let _ = std::time::Instant::now();"),
    ("the wall clock", "let _ = std::time::SystemTime::now();"),
    ("a thread", "std::thread::spawn(|| ());"),
    ("the environment", "let _ = std::env::var(\"HOME\");"),
    ("a file", "let _ = std::fs::read(\"x\");"),
    ("an open file", "let _ = std::fs::File::open(\"x\");"),
    ("a hash map", "let _ = std::collections::HashMap::<u8, u8>::new();"),
    ("a socket", "let _ = std::net::UdpSocket::bind(\"127.0.0.1:0\");"),
];

#[test]
fn the_manifest_of_the_deciding_half_names_nothing_that_acts() {
    let path = repository().join("scheduler/core/Cargo.toml");
    let manifest: toml::Table = toml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let names: Vec<&String> = manifest["dependencies"].as_table().unwrap().keys().collect();
    for name in names {
        assert!(PACKAGES.contains(&name.as_str()), "scheduler/core names {name}");
    }
}

#[test]
fn a_planted_violation_is_caught() {
    let found = Command::new("cargo").args(["clippy", "--version"]).output();
    if !found.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: cargo clippy is not installed");
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(scratch.path().join(name), text).unwrap();
    std::fs::create_dir(scratch.path().join("src")).unwrap();
    std::fs::copy(repository().join("scheduler/core/clippy.toml"), scratch.path().join("clippy.toml"))
        .unwrap();
    write(
        "Cargo.toml",
        "[package]\nname = \"planted\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[workspace]\n",
    );
    let functions: Vec<String> = VIOLATIONS
        .iter()
        .enumerate()
        .map(|(index, (_, body))| format!("pub fn planted_{index}() {{\n    {body}\n}}\n"))
        .collect();
    write("src/lib.rs", &functions.join("\n"));
    let output = clippy(scratch.path());
    for (index, (what, _)) in VIOLATIONS.iter().enumerate() {
        let line = format!("src/lib.rs:{}:", 4 * index + 2);
        assert!(output.contains(&line), "{what} was not caught; clippy said:\n{output}");
    }
    write(
        "src/lib.rs",
        "pub fn clean() -> std::collections::BTreeMap<u8, u8> {\n    Default::default()\n}\n",
    );
    let output = clippy(scratch.path());
    assert!(!output.contains("src/lib.rs"), "clean code was refused:\n{output}");
}

fn clippy(folder: &std::path::Path) -> String {
    let output = Command::new("cargo")
        .args(["clippy", "--quiet", "--offline", "--", "-D", "clippy::disallowed_methods"])
        .args(["-D", "clippy::disallowed_types"])
        .current_dir(folder)
        .env("CARGO_TARGET_DIR", folder.join("target"))
        .env_remove("CLIPPY_CONF_DIR")
        .env_remove("RUSTFLAGS")
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stderr).into_owned()
}
