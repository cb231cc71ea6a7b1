//! The rules of the house that no compiler knows: homes of packages, lengths, first paragraphs, documentation.

use std::path::{Path, PathBuf};

use motley_tests::repository;

/// Which crates may name a package. The table of ARCHITECTURE.md.
const HOMES: &[(&str, &[&str])] = &[
    ("wgpu", &["backends"]),
    ("cudarc", &["backends"]),
    ("nvml-wrapper", &["agent/node"]),
    ("tokio", &["scheduler/link", "scheduler/head", "agent/node", "agent/ctl", "tests"]),
    ("quinn", &["scheduler/link"]),
    ("rustls", &["scheduler/link"]),
    ("rcgen", &["scheduler/link"]),
    ("bincode", &["scheduler/core"]),
    ("axum", &["scheduler/head", "agent/node"]),
    ("rusqlite", &["scheduler/head"]),
    ("sqlx", &["scheduler/head"]),
    ("object_store", &["scheduler/head"]),
    ("tokenizers", &["agent/node"]),
    ("ureq", &["agent/node"]),
    ("reqwest", &["agent/node"]),
    ("gemm", &["kernels", "backends"]),
    ("rayon", &["kernels", "backends"]),
    ("tracing", &["backends", "ops", "scheduler/link", "scheduler/head", "agent/node", "agent/ctl", "tests"]),
];
/// Our own crates: each may depend on what stands below it on its arrow.
const ARROWS: &[(&str, &[&str])] = &[
    ("kernels", &[]),
    ("backends", &["motley-kernels"]),
    ("ops", &["motley-kernels", "motley-backends"]),
    ("scheduler/core", &[]),
    ("scheduler/link", &["motley-scheduler-core"]),
    ("scheduler/head", &["motley-scheduler-core", "motley-scheduler-link"]),
    (
        "agent/node",
        &[
            "motley-scheduler-core",
            "motley-scheduler-link",
            "motley-ops",
            "motley-backends",
            "motley-kernels",
        ],
    ),
    (
        "agent/ctl",
        &["motley-scheduler-core", "motley-scheduler-link", "motley-scheduler-head", "motley-agent-node"],
    ),
];
const FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;

/// A Rust file of the repository.
struct Source {
    /// From the root, with `/`.
    path: String,
    text: String,
    /// Compiled for tests alone.
    is_tests: bool,
}

impl Source {
    /// Lines before the unit tests, which stand last; none of a file that is tests alone.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let in_a_suite = self.path.starts_with("tests/") || self.path.contains("/tests/");
        let end = match self.is_tests || in_a_suite {
            true => 0,
            false => self.text.find("\nmod tests {").unwrap_or(self.text.len()),
        };
        self.text[..end].lines().enumerate().map(|(index, line)| (index + 1, line))
    }

    /// Paths, without ending, of the modules that this file declares for tests alone.
    fn test_modules(&self) -> Vec<String> {
        let stem = self.path.trim_end_matches(".rs");
        let folder = match stem.rsplit_once('/') {
            Some((folder, "mod" | "lib" | "main")) => folder,
            _ => stem,
        };
        let lines: Vec<&str> = self.text.lines().collect();
        let declared =
            lines.windows(2).filter(|pair| pair[0].starts_with("#[cfg(") && pair[0].contains("test"));
        let names = declared.filter_map(|pair| pair[1].split("mod ").nth(1)?.strip_suffix(';'));
        names.map(|name| format!("{folder}/{name}")).collect()
    }
}

fn sources() -> Vec<Source> {
    let root = repository();
    let mut pending: Vec<PathBuf> =
        ["agent", "backends", "kernels", "ops", "scheduler", "tests"].map(|folder| root.join(folder)).into();
    let mut found = Vec::new();
    while let Some(folder) = pending.pop() {
        for entry in std::fs::read_dir(&folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() && entry.file_name() != "target" {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(&root).unwrap().to_string_lossy().replace('\\', "/");
                found.push(Source { path, text, is_tests: false });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    let test_modules: Vec<String> = found.iter().flat_map(Source::test_modules).collect();
    for source in &mut found {
        let below = |module: &String| {
            source
                .path
                .strip_prefix(module.as_str())
                .is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
        };
        source.is_tests = test_modules.iter().any(below);
    }
    assert!(found.len() > 50, "only {} files found below {}", found.len(), root.display());
    found
}

fn complain(rule: &str, complaints: Vec<String>) {
    assert!(complaints.is_empty(), "{rule}:\n  {}", complaints.join("\n  "));
}

#[test]
fn every_file_says_first_what_it_is() {
    let silent = sources().into_iter().filter(|source| !source.text.starts_with("//! "));
    complain("a file begins with a paragraph `//! ...`", silent.map(|source| source.path).collect());
}

#[test]
fn files_and_functions_are_short() {
    let mut complaints = Vec::new();
    for source in sources() {
        let lines = source.text.lines().count();
        if lines > FILE_LINES_MAX {
            complaints.push(format!("{}: {lines} lines", source.path));
        }
        for (line, length) in long_functions(&source.text) {
            complaints.push(format!("{}:{line}: a function of {length} lines", source.path));
        }
    }
    complain("files have at most 500 lines, functions 70", complaints);
}

/// First line and length in lines of code of functions that are too long. rustfmt has aligned the closing brace.
fn long_functions(text: &str) -> Vec<(usize, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let words: Vec<&str> = code.split([' ', '<', '(']).collect();
        let is_function = words.iter().take(6).position(|word| *word == "fn").is_some_and(|at| {
            words[..at].iter().all(|word| {
                matches!(
                    *word,
                    "pub" | "const" | "async" | "unsafe" | "extern" | "\"C\"" | "crate)" | "super)"
                )
            })
        });
        if !is_function || code.ends_with(';') {
            continue;
        }
        let end = format!("{}}}", &line[..line.len() - code.len()]);
        let body = lines[index..].iter().take_while(|line| ***line != end);
        let counts = |line: &&&str| !line.trim().is_empty() && !line.trim_start().starts_with("//");
        let length = body.filter(counts).count() + 1;
        if length > FUNCTION_LINES_MAX + 2 && !code.ends_with('}') {
            found.push((index + 1, length));
        }
    }
    found
}

#[test]
fn a_long_function_would_be_noticed() {
    let body = "    let x = 1;\n".repeat(80);
    assert_eq!(long_functions(&format!("pub fn f() {{\n{body}}}\n")), [(1, 82)]);
    assert_eq!(long_functions("fn f() {}\nfn g() {\n    1\n}\n"), []);
}

#[test]
fn nothing_is_unfinished_or_unwrapped() {
    let banned =
        [".unwrap()", "todo!(", "unimplemented!(", "dbg!(", concat!("FIX", "ME"), concat!("XX", "X")];
    let mut complaints = Vec::new();
    for source in sources() {
        for (number, line) in source.code() {
            let code = line.split("//").next().unwrap_or_default();
            complaints.extend(
                banned
                    .iter()
                    .filter(|word| code.contains(**word))
                    .map(|word| format!("{}:{number}: {word}", source.path)),
            );
        }
    }
    complain("outside tests there is no", complaints);
}

#[test]
fn bincode_is_named_in_one_file_alone() {
    let allowed = ["scheduler/core/src/wire/codec.rs", "tests/anywhere/tidy.rs", "tests/anywhere/purity.rs"];
    let others = sources()
        .into_iter()
        .filter(|source| !allowed.contains(&source.path.as_str()) && source.text.contains("bincode"));
    complain("bincode has one home, wire/codec.rs", others.map(|source| source.path).collect());
}

#[test]
fn unsafe_code_argues_its_safety() {
    let mut complaints = Vec::new();
    for source in sources() {
        let lines: Vec<&str> = source.text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let opens = code.contains(concat!("uns", "afe {")) || code.contains(concat!("uns", "afe impl"));
            let above = &lines[index.saturating_sub(12)..=index];
            if opens && !above.iter().any(|line| line.contains("SAFETY:")) {
                complaints.push(format!("{}:{}", source.path, index + 1));
            }
        }
    }
    complain("an unsafe block has `// SAFETY:` before it", complaints);
}

/// Names of what a crate is made of; what only its tests use may live anywhere.
fn dependencies(krate: &str) -> Vec<String> {
    let path = repository().join(krate).join("Cargo.toml");
    let manifest: toml::Table = toml::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut tables: Vec<&toml::Table> = vec![&manifest];
    let targets = manifest.get("target").and_then(toml::Value::as_table);
    tables.extend(targets.into_iter().flat_map(toml::Table::values).filter_map(toml::Value::as_table));
    let kinds = ["dependencies", "build-dependencies"];
    let tables = tables.iter().flat_map(|table| kinds.iter().filter_map(|kind| table.get(*kind)));
    tables.filter_map(toml::Value::as_table).flat_map(|table| table.keys().cloned()).collect()
}

fn crates() -> Vec<String> {
    let text = std::fs::read_to_string(repository().join("Cargo.toml")).unwrap();
    let manifest: toml::Table = toml::from_str(&text).unwrap();
    let members = manifest["workspace"]["members"].as_array().unwrap();
    members.iter().map(|member| member.as_str().unwrap().to_owned()).collect()
}

#[test]
fn packages_stay_in_their_homes() {
    let mut complaints = Vec::new();
    for krate in crates() {
        let names = dependencies(&krate);
        for (package, homes) in HOMES {
            if names.iter().any(|name| name == package) && !homes.contains(&krate.as_str()) {
                complaints.push(format!("{krate} names {package}, which lives in {}", homes.join(", ")));
            }
        }
    }
    complain("packages have homes", complaints);
}

#[test]
fn arrows_between_crates_run_downward() {
    let mut complaints = Vec::new();
    for (krate, below) in ARROWS {
        let ours = dependencies(krate).into_iter().filter(|name| name.starts_with("motley-"));
        complaints.extend(
            ours.filter(|name| !below.contains(&name.as_str())).map(|name| format!("{krate} knows {name}")),
        );
    }
    complain("a crate knows only what stands below it", complaints);
    assert_eq!(crates().len(), ARROWS.len() + 1, "the table of arrows lists every crate but the tests");
}

#[test]
fn every_dependency_has_its_reason() {
    let mut complaints = Vec::new();
    for krate in crates() {
        let text = std::fs::read_to_string(repository().join(&krate).join("Cargo.toml")).unwrap();
        let mut in_dependencies = false;
        for line in text.lines() {
            if line.starts_with('[') {
                in_dependencies = line.ends_with("dependencies]");
                continue;
            }
            let names_ours = line.starts_with("motley-") || line.starts_with('#');
            if in_dependencies && line.contains('=') && !names_ours && !line.contains(" # ") {
                complaints.push(format!("{krate}: {line}"));
            }
        }
    }
    complain("a dependency has half a line on why", complaints);
}

#[test]
fn every_kernel_has_its_specification_and_its_fast_path() {
    let kernels = repository().join("kernels/src");
    let mut complaints = Vec::new();
    let folders = std::fs::read_dir(&kernels).unwrap().flatten().map(|entry| entry.path());
    let mut count = 0;
    for folder in folders.filter(|path| path.is_dir() && path.join("reference.rs").exists()) {
        count += 1;
        let lacks = ["mod.rs", "cpu.rs"].into_iter().filter(|name| !folder.join(name).exists());
        complaints.extend(lacks.map(|name| format!("{} lacks {name}", folder.display())));
    }
    complain("a kernel has mod.rs, reference.rs and cpu.rs", complaints);
    assert!(count >= 5, "only {count} kernels found");
}

#[test]
fn nothing_names_this_machine() {
    let telling = [concat!("/wo", "rk/"), concat!("/tm", "p/plan"), concat!("artifac", "tory")];
    let mut complaints = Vec::new();
    let documents = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "Cargo.toml", "Cargo.lock"];
    let documents = documents.iter().map(|name| repository().join(name)).filter(|path| path.exists());
    for path in documents {
        let text = std::fs::read_to_string(&path).unwrap();
        complaints.extend(names(&telling, &text).map(|word| format!("{}: {word}", path.display())));
    }
    for source in sources() {
        complaints.extend(names(&telling, &source.text).map(|word| format!("{}: {word}", source.path)));
    }
    complain("no path or host of one machine is committed", complaints);
}

fn names<'a>(words: &'a [&'a str], text: &'a str) -> impl Iterator<Item = &'a str> {
    words.iter().copied().filter(move |word| text.contains(word))
}

#[test]
fn links_between_documents_lead_somewhere() {
    let root = repository();
    let mut complaints = Vec::new();
    let docs = std::fs::read_dir(root.join("docs")).into_iter().flatten().flatten().map(|entry| entry.path());
    let top = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(|name| root.join(name));
    let files = docs.chain(top).filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    for path in files.filter(|path| path.exists()) {
        let text = std::fs::read_to_string(&path).unwrap();
        let folder = path.parent().unwrap_or(Path::new(""));
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap_or_default();
            if !file.is_empty() && !file.contains("://") && !folder.join(file).exists() {
                complaints.push(format!("{} links to {target}", path.display()));
            }
        }
    }
    complain("a link leads to a file", complaints);
}
