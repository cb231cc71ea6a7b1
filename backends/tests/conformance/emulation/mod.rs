//! CUDA sources to a library that runs on the processor: one C++ unit a source, of `emulated.cuh`, the prelude, the
//! source, and a generated function `<kernel>__launch` for each kernel. Layouts of arguments and types of buffers are
//! asserted in the units against the entries. Needs g++ on x86-64; results are kept by a hash of everything.

mod units;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use motley_backends::Precision;

const COMPILER: &str = "g++";
const RUNTIME: &str = include_str!("runtime.cpp");
/// Contraction to fused multiply-adds is as nvcc does it.
const FLAGS: [&str; 10] = [
    "-std=c++17",
    "-O2",
    // A card faults where a load of 8 or 16 bytes is not aligned, a processor does not.
    "-fsanitize=alignment",
    "-fno-sanitize-recover=alignment",
    "-march=native",
    "-ffp-contract=fast",
    "-fPIC",
    "-shared",
    "-w",
    "-fvisibility=hidden",
];

/// The library of all sources for a precision.
///
/// # Errors
/// There is no compiler, or a source does not compile: the compiler's words.
pub fn library(precision: Precision) -> Result<PathBuf, Absence> {
    library_of("all", motley_backends::cuda_sources(), precision)
}

/// A library of the sources given, each with the prelude; `set` names them all.
pub fn library_of(set: &str, sources: Vec<(&str, String)>, precision: Precision) -> Result<PathBuf, Absence> {
    if !cfg!(target_arch = "x86_64") || Command::new(COMPILER).arg("--version").output().is_err() {
        return Err(Absence::NoCompiler);
    }
    let folder =
        PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("emulated-cuda-{set}-{}", precision.name()));
    // Tests of one process share the folder.
    static BUILDING: Mutex<()> = Mutex::new(());
    let _alone = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    std::fs::create_dir_all(&folder).map_err(|error| Absence::Broken(error.to_string()))?;
    let bits = format!("-DACTIVATION_BITS={}", precision.bytes() * 8);
    let mut files = vec![("runtime".to_owned(), RUNTIME.to_owned())];
    for (name, text) in sources {
        let names = preprocessed(&folder, name, &units::probe(name, &text), &bits)?;
        files.push((name.to_owned(), units::unit(name, &text, &units::kernels(&names))));
    }
    let mut hash = DefaultHasher::new();
    (&files, FLAGS, &bits, processor()).hash(&mut hash);
    let library = folder.join(format!("{:016x}.so", hash.finish()));
    if !library.exists() {
        build(&folder, &library, &files, &bits)?;
    }
    Ok(library)
}

/// Why there is no library.
pub enum Absence {
    NoCompiler,
    Broken(String),
}

/// What `-march=native` means here.
fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    text.lines().find(|line| line.starts_with("flags")).unwrap_or_default().to_owned()
}

fn write(path: &Path, text: &str) -> Result<(), Absence> {
    std::fs::write(path, text).map_err(|error| Absence::Broken(format!("{}: {error}", path.display())))
}

/// Runs the compiler; what it prints.
fn compile(command: &mut Command) -> Result<String, Absence> {
    let output = command.output().map_err(|error| Absence::Broken(error.to_string()))?;
    let told = String::from_utf8_lossy(&output.stderr);
    let first: String = told.lines().take(60).map(|line| format!("{line}\n")).collect();
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(Absence::Broken(first))
    }
}

fn preprocessed(folder: &Path, name: &str, text: &str, bits: &str) -> Result<String, Absence> {
    let path = folder.join(format!("{name}.probe.cpp"));
    write(&path, text)?;
    compile(Command::new(COMPILER).args(["-std=c++17", "-E", "-P", "-w", bits]).arg(&path))
}

fn build(folder: &Path, library: &Path, files: &[(String, String)], bits: &str) -> Result<(), Absence> {
    let mut command = Command::new(COMPILER);
    command.args(FLAGS).arg(bits);
    for (name, text) in files {
        let path = folder.join(format!("{name}.cpp"));
        write(&path, text)?;
        command.arg(path);
    }
    let incoming = library.with_extension(format!("incoming-{}", std::process::id()));
    compile(command.arg("-o").arg(&incoming))?;
    std::fs::rename(&incoming, library).map_err(|error| Absence::Broken(error.to_string()))
}
