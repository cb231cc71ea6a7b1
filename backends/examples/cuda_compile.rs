//! Compiles every CUDA source for every architecture that counts, without a device: prints registers, spills and shared
//! memory of each function, and fails if a source does not compile or a function that takes the time of a step spills.
//!
//! ```text
//! cargo run --release -p motley-backends --example cuda_compile -- [--nvrtc DIR...] [--ptx FILE]
//! ```
//!
//! `--nvrtc` names folders that hold libnvrtc, where it is not on the library path; a `ptxas` found below them, or on the
//! path, proves the shipped PTX. `--ptx` writes what is shipped in the program: backends/src/cuda/kernels.ptx.

#![allow(clippy::print_stdout)] // the table is what it is for

use std::ffi::CString;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use cudarc::nvrtc::{result, sys};
use sha2::{Digest, Sha256};

/// Machine code is made for these: Turing has no bf16.
const ARCHITECTURES: [(&str, u32); 5] = [("75", 32), ("80", 32), ("80", 16), ("90a", 32), ("90a", 16)];
/// PTX is shipped for these, and each serves all that came later: in f32 there is nothing that newer ones do otherwise.
const SHIPPED: [(&str, u32); 2] = [("75", 32), ("80", 16)];
/// Of CUDA 12.0, so that every driver that this program works with takes it: NVRTC writes its own version, and nothing in
/// the sources needs a newer one, which ptxas proves.
const PTX_VERSION: &str = "8.0";
/// What a step or a batch spends its time in.
const HOT: [&str; 6] = ["attention_", "product_", "layer_norm_", "gelu_", "lora_", "nf4_"];

struct Options {
    folders: Vec<PathBuf>,
    ptx: Option<PathBuf>,
}

fn main() -> ExitCode {
    let options = options();
    // Stays loaded, so that the loader finds it when it is asked for its name alone.
    let _library = options.folders.iter().find_map(|folder| preload(folder));
    // SAFETY: opens the library by name and closes it again; it has no other effect.
    if !unsafe { sys::is_culib_present() } {
        println!("libnvrtc is not here\nhint: --nvrtc DIR, or LD_LIBRARY_PATH");
        return ExitCode::FAILURE;
    }
    let mut sound = report();
    if let Some(file) = &options.ptx {
        match archive(options.folders.iter().find_map(|folder| ptxas(folder)).as_deref()) {
            Ok(text) => {
                std::fs::write(file, &text).expect("the file can be written");
                println!("{}: {} bytes", file.display(), text.len());
            }
            Err(problem) => {
                println!("{problem}");
                sound = false;
            }
        }
    }
    if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn options() -> Options {
    let mut options = Options { folders: vec![], ptx: None };
    let mut arguments = std::env::args().skip(1).peekable();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--nvrtc" => {
                while let Some(folder) = arguments.next_if(|next| !next.starts_with("--")) {
                    options.folders.push(folder.into());
                }
            }
            "--ptx" => options.ptx = arguments.next().map(PathBuf::from),
            other => panic!("{other} is not known; --nvrtc DIR... and --ptx FILE are"),
        }
    }
    options
}

/// Files below a folder whose name begins with `start`.
fn below(folder: &Path, start: &str) -> Vec<PathBuf> {
    let mut found = vec![];
    let mut pending = vec![folder.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                pending.push(path);
            } else if entry.file_name().to_string_lossy().starts_with(start) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn preload(folder: &Path) -> Option<libloading::Library> {
    // SAFETY: NVRTC's initialisers have no effect on this program.
    let load = |path: &PathBuf| unsafe { libloading::Library::new(path) }.ok();
    below(folder, "libnvrtc.so").iter().find_map(load)
}

fn ptxas(folder: &Path) -> Option<PathBuf> {
    below(folder, "ptxas").into_iter().find(|path| path.ends_with("ptxas"))
}

/// Compiles for machines; false if something is wrong.
fn report() -> bool {
    let mut sound = true;
    println!(
        "{:44} {:>6} {:>4} {:>9} {:>6} {:>6}",
        "function", "sm", "bits", "registers", "spills", "shared"
    );
    for (name, text) in motley_backends::cuda_sources() {
        for (architecture, bits) in ARCHITECTURES {
            let log = match compile(&text, &format!("sm_{architecture}"), bits) {
                Ok((_, log)) => log,
                Err(problem) => {
                    println!("{name}.cu for sm_{architecture}, {bits} bits:\n{problem}");
                    sound = false;
                    continue;
                }
            };
            for function in functions(&log) {
                let Function { name, registers, spills, shared } = &function;
                println!("{name:44} {architecture:>6} {bits:>4} {registers:>9} {spills:>6} {shared:>6}");
                if *spills > 0 && HOT.iter().any(|hot| name.starts_with(hot)) {
                    println!("{name} spills {spills} bytes on sm_{architecture}");
                    sound = false;
                }
            }
        }
    }
    sound
}

/// What ptxas says of one function.
struct Function {
    name: String,
    registers: u32,
    /// Bytes stored and loaded.
    spills: u32,
    shared: u32,
}

fn functions(log: &str) -> Vec<Function> {
    let mut functions: Vec<Function> = vec![];
    for line in log.lines() {
        let before = |what: &str| {
            let words = line.split_once(what)?.0;
            words.split_whitespace().next_back()?.parse::<u32>().ok()
        };
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let name = rest.split('\'').next().unwrap_or_default().to_owned();
            functions.push(Function { name, registers: 0, spills: 0, shared: 0 });
        } else if let Some(function) = functions.last_mut() {
            let spilled = [" bytes spill stores", " bytes spill loads"].map(before);
            function.spills += spilled.into_iter().flatten().sum::<u32>();
            function.registers = before(" registers").unwrap_or(function.registers);
            function.shared = before(" bytes smem").unwrap_or(function.shared);
        }
    }
    functions
}

/// PTX of all that is shipped, each module behind a line that names its source by hash.
fn archive(ptxas: Option<&Path>) -> Result<String, String> {
    let mut text = String::new();
    for (name, source) in motley_backends::cuda_sources() {
        let hash: String = Sha256::digest(&source).iter().map(|byte| format!("{byte:02x}")).collect();
        for (architecture, bits) in SHIPPED {
            let (ptx, _) = compile(&source, &format!("compute_{architecture}"), bits)?;
            let ptx = of_version(&ptx);
            prove(ptxas, &ptx, architecture).map_err(|problem| format!("{name}: {problem}"))?;
            let _infallible = writeln!(text, "//// {name} compute_{architecture} {bits} {hash}\n{ptx}");
        }
    }
    Ok(text)
}

/// Of [`PTX_VERSION`], and without comments and the hints that are newer.
fn of_version(ptx: &str) -> String {
    let is_kept = |line: &&str| {
        !line.starts_with("//") && !line.is_empty() && !line.contains(".pragma \"used_bytes_mask")
    };
    let lines = ptx.lines().filter(is_kept);
    let lines = lines.map(|line| match line.strip_prefix(".version ") {
        Some(_) => format!(".version {PTX_VERSION}\n"),
        None => format!("{}\n", line.trim_start()),
    });
    lines.collect()
}

/// Assembles the PTX, if there is an assembler.
fn prove(ptxas: Option<&Path>, ptx: &str, architecture: &str) -> Result<(), String> {
    let path = std::env::temp_dir().join(format!("motley-cuda-compile-{}.ptx", std::process::id()));
    std::fs::write(&path, ptx).map_err(|error| error.to_string())?;
    let mut command = Command::new(ptxas.unwrap_or(Path::new("ptxas")));
    let output =
        command.arg(format!("-arch=sm_{architecture}")).args(["-o", "/dev/null"]).arg(&path).output();
    let _left_behind = std::fs::remove_file(&path);
    match output {
        Ok(output) if !output.status.success() => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        Ok(_) => Ok(()),
        Err(_) if ptxas.is_none() => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// PTX for `compute_*` (nothing for `sm_*`), and the log.
fn compile(text: &str, architecture: &str, bits: u32) -> Result<(String, String), String> {
    let text = CString::new(text).map_err(|error| error.to_string())?;
    let mut options = vec![
        format!("--gpu-architecture={architecture}"),
        "--std=c++17".to_owned(),
        format!("-DACTIVATION_BITS={bits}"),
    ];
    if architecture.starts_with("sm_") {
        options.push("--ptxas-options=-v".to_owned());
    }
    let of_chars = |chars: Vec<std::ffi::c_char>| {
        let bytes: Vec<u8> = chars.into_iter().map(|c| c as u8).take_while(|byte| *byte != 0).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let program = result::create_program(&text, None).map_err(|error| format!("{error:?}"))?;
    // SAFETY: the program is alive in all of these and destroyed once, at the end.
    unsafe {
        let compiled = result::compile_program(program, &options);
        let log = result::get_program_log(program).map(of_chars).unwrap_or_default();
        let ptx = compiled.and_then(|()| result::get_ptx(program)).map(of_chars);
        let _leaked = result::destroy_program(program);
        ptx.map(|ptx| (ptx, log.clone())).map_err(|error| format!("{error:?}\n{log}"))
    }
}
