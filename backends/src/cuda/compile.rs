//! From sources to images that the driver loads: by NVRTC where it is on the node, with a cache on disk; else the PTX
//! that is shipped in the program.

use std::ffi::{CStr, CString};
use std::fs;
use std::path::{Path, PathBuf};

use cudarc::nvrtc::{result, sys};
use sha2::{Digest, Sha256};

use super::cuda_sources;
use crate::open::Precision;
use crate::{Error, Result};

pub(super) fn nvrtc_is_there() -> bool {
    // SAFETY: opens the library by name and closes it again; it has no other effect.
    unsafe { sys::is_culib_present() }
}

/// Images of the sources for one device and precision.
pub(super) struct Compiler {
    capability: (i32, i32),
    precision: Precision,
    sources: Vec<(&'static str, String)>,
}

impl Compiler {
    pub fn new(capability: (i32, i32), precision: Precision) -> Self {
        Compiler { capability, precision, sources: cuda_sources() }
    }

    /// What to load for `source`, the best first. PTX ends with a zero byte. An NVRTC that is older than the device does
    /// not know its architecture; the shipped PTX is for all.
    ///
    /// # Errors
    /// There is none.
    pub fn images(&self, source: &str) -> Result<Vec<Vec<u8>>> {
        let mut images = Vec::new();
        let text = self.sources.iter().find(|(name, _)| *name == source).map(|(_, text)| text.as_str());
        let text = text.unwrap_or_default();
        let compiled = nvrtc_is_there().then(|| self.cubin(source, text)).transpose();
        let refused = match compiled {
            Ok(image) => {
                images.extend(image);
                None
            }
            Err(error) => Some(error),
        };
        images.extend(super::shipped::ptx(source, self.capability, self.precision));
        if images.is_empty() {
            return Err(refused.unwrap_or_else(|| Error::Unavailable {
                backend: "cuda",
                reason: format!("{source} is not among the shipped PTX, and libnvrtc is not on this machine"),
                remedy: "install CUDA's NVRTC, or put its folder into LD_LIBRARY_PATH".to_owned(),
            }));
        }
        Ok(images)
    }

    fn options(&self) -> Vec<String> {
        let (major, minor) = self.capability;
        vec![
            format!("--gpu-architecture=sm_{major}{minor}"),
            "--std=c++17".to_owned(),
            format!("-DACTIVATION_BITS={}", self.precision.bytes() * 8),
        ]
    }

    fn cubin(&self, source: &str, text: &str) -> Result<Vec<u8>> {
        let options = self.options();
        let cached = cache_folder().map(|folder| folder.join(self.cache_name(source, text, &options)));
        if let Some(image) = cached.as_ref().and_then(|path| fs::read(path).ok()) {
            return Ok(image);
        }
        let image = compile(text, &options).map_err(|log| Error::DeviceFailed {
            device: format!("sm_{}{}", self.capability.0, self.capability.1),
            call: "nvrtcCompileProgram",
            reason: format!("{source}.cu: {log}"),
        })?;
        if let Some(path) = cached {
            // Without a cache the next start compiles again: nothing is lost but seconds.
            let _uncached = store(&path, &image);
        }
        Ok(image)
    }

    /// Everything that the image depends on.
    fn cache_name(&self, source: &str, text: &str, options: &[String]) -> String {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: writes two integers.
        let _unknown = unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
        let mut hash = Sha256::new();
        for part in [text, &options.join(" "), &format!("nvrtc {major}.{minor}")] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let digest: String = hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        format!("{source}-{digest}.cubin")
    }
}

/// Machine code for the architecture that `options` name.
///
/// # Errors
/// The compiler's words.
fn compile(text: &str, options: &[String]) -> std::result::Result<Vec<u8>, String> {
    let text = CString::new(text).map_err(|error| error.to_string())?;
    let program = result::create_program(&text, None).map_err(|error| format!("{error:?}"))?;
    let image = compile_program(program, options);
    // SAFETY: the program was created above and is destroyed once.
    let _leaked = unsafe { result::destroy_program(program) };
    image
}

fn compile_program(program: sys::nvrtcProgram, options: &[String]) -> std::result::Result<Vec<u8>, String> {
    // SAFETY: the program is alive in all of these, and the buffer has the size that was asked for.
    unsafe {
        if let Err(error) = result::compile_program(program, options) {
            let log = result::get_program_log(program).unwrap_or_default();
            let log: Vec<u8> = log.into_iter().map(|c| c as u8).collect();
            let log = CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy().into_owned();
            return Err(if log.is_empty() { format!("{error:?}") } else { log });
        }
        let mut size = 0;
        sys::nvrtcGetCUBINSize(program, &mut size).result().map_err(|error| format!("{error:?}"))?;
        let mut image = vec![0u8; size];
        sys::nvrtcGetCUBIN(program, image.as_mut_ptr().cast())
            .result()
            .map_err(|error| format!("{error:?}"))?;
        Ok(image)
    }
}

/// Whole or not at all: another process may read it at this moment.
fn store(path: &Path, image: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let incoming = path.with_extension(format!("incoming-{}", std::process::id()));
    fs::write(&incoming, image)?;
    fs::rename(&incoming, path)
}

/// `$XDG_CACHE_HOME/motley/cuda`
fn cache_folder() -> Option<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let root = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    Some(root.or_else(home)?.join("motley").join("cuda"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_architecture_that_nvrtc_does_not_know_gets_the_shipped_ptx() {
        let images = Compiler::new((99, 9), Precision::Bf16).images("gelu").unwrap();
        assert!(images.len() == 1 && images[0].starts_with(b".version"));
    }
}
