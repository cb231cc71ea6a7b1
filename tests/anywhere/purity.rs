//! The deciding half is pure, and its guard bites: violations planted in a scratch crate with the same `clippy.toml`
//! are caught.

use std::process::Command;

use motley_tests::repository;

/// What the deciding half may use. A new name here is a decision, not a formality.
const PACKAGES: [&str; 6] = ["bincode", "serde", "strsim", "thiserror", "toml", "toml_edit"];

/// At least one violation of each kind, as the body of a function. None is run.
const VIOLATIONS: [(&str, &str); 36] = [
    ("the clock", "let _ = std::time::Instant::now();"),
    ("the wall clock", "let _ = std::time::SystemTime::now();"),
    ("a moment of the machine's clock", "let _: Option<std::time::Instant> = None;"),
    ("a moment of the wall clock", "let _: Option<std::time::SystemTime> = None;"),
    ("a thread", "std::thread::spawn(|| ());"),
    ("threads in a scope", "std::thread::scope(|_| ());"),
    ("a thread with a name", "let _ = std::thread::Builder::new();"),
    ("a pause", "std::thread::sleep(std::time::Duration::from_secs(1));"),
    ("the number of cores", "let _ = std::thread::available_parallelism();"),
    ("a process", "let _ = std::process::Command::new(\"x\");"),
    ("the end of the process", "std::process::exit(0);"),
    ("the environment", "let _ = std::env::var(\"HOME\");"),
    ("the whole environment", "let _ = std::env::vars();"),
    ("the command line", "let _ = std::env::args();"),
    ("the current folder", "let _ = std::env::current_dir();"),
    ("a folder for temporary files", "let _ = std::env::temp_dir();"),
    ("a file", "let _ = std::fs::read(\"x\");"),
    ("an open file", "let _ = std::fs::File::open(\"x\");"),
    ("a file with options", "let _ = std::fs::OpenOptions::new();"),
    ("a new folder", "let _ = std::fs::create_dir_all(\"x\");"),
    ("a renamed file", "let _ = std::fs::rename(\"x\", \"y\");"),
    ("a removed file", "let _ = std::fs::remove_file(\"x\");"),
    ("a folder's list", "let _ = std::fs::read_dir(\"x\");"),
    ("a look at a path", "let _ = std::path::Path::new(\"x\").exists();"),
    ("a path's true name", "let _ = std::path::Path::new(\"x\").canonicalize();"),
    ("input", "let _ = std::io::stdin();"),
    ("output", "let _ = std::io::stdout();"),
    ("a hash map", "let _ = std::collections::HashMap::<u8, u8>::new();"),
    ("a hash set", "let _ = std::collections::HashSet::<u8>::new();"),
    ("entropy", "let _ = std::hash::RandomState::new();"),
    ("a UDP socket", "let _ = std::net::UdpSocket::bind(\"127.0.0.1:0\");"),
    ("a TCP connection", "let _ = std::net::TcpStream::connect(\"127.0.0.1:9\");"),
    ("a TCP port", "let _ = std::net::TcpListener::bind(\"127.0.0.1:0\");"),
    ("a Unix connection", "let _ = std::os::unix::net::UnixStream::connect(\"x\");"),
    ("a Unix port", "let _ = std::os::unix::net::UnixListener::bind(\"x\");"),
    ("a Unix socket", "let _ = std::os::unix::net::UnixDatagram::unbound();"),
];

#[test]
fn the_manifest_of_the_deciding_half_names_nothing_that_acts() {
    let path = repository().join("scheduler/core/Cargo.toml");
    let manifest: toml::Table = toml::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let mut names = named(&manifest);
    names.sort_unstable();
    assert_eq!(names, PACKAGES, "{}", path.display());
    assert!(!path.with_file_name("build.rs").exists(), "a build script would act at build time");

    let planted = "[dependencies]\na = \"1\"\n[build-dependencies]\nb = \"1\"\n[target.'cfg(unix)'.dependencies]\n\
                   c = \"1\"\n[target.'cfg(windows)'.build-dependencies]\nd = \"1\"\n[dev-dependencies]\ne = \"1\"\n";
    let mut names = named(&toml::from_str(planted).unwrap());
    names.sort_unstable();
    assert_eq!(names, ["a", "b", "c", "d"], "every table that ends in the program is looked at");
}

/// The packages that a manifest brings into its crate, or into its building; not those of its tests.
fn named(manifest: &toml::Table) -> Vec<String> {
    let of_targets = manifest.get("target").and_then(toml::Value::as_table);
    let of_targets =
        of_targets.into_iter().flat_map(|targets| targets.values().filter_map(toml::Value::as_table));
    let tables = of_targets.chain([manifest]).flat_map(|table| {
        ["dependencies", "build-dependencies"].map(|name| table.get(name).and_then(toml::Value::as_table))
    });
    tables.flatten().flat_map(|table| table.keys().cloned()).collect()
}

#[test]
fn a_planted_violation_is_caught() {
    let found = Command::new("cargo").args(["clippy", "--version"]).output();
    if !found.is_ok_and(|output| output.status.success()) {
        motley_tests::say_skipped("cargo clippy is not installed");
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
