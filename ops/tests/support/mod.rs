//! What the suites share: the real model, the reference files, texts as tokens. What is not there is said on stderr
//! and skipped.
//!
//! MOTLEY_TEST_BACKEND names the backend that computes, `cpu` if it is not set; `emulated` is CUDA on the processor, as
//! the conformance suite has it. On another than the cpu, what takes long on a device that is a processor is cut short:
//! the reference's texts to those of up to 64 tokens, its training to one step.
#![allow(dead_code, unreachable_pub)]

pub mod decoder;
#[path = "../../../backends/tests/conformance/emulation/mod.rs"]
pub mod emulation;
pub mod infonce;
pub mod plain;
pub mod small;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use motley_backends::{Backend, DeviceRequest, Precision, open, open_emulated};
use motley_ops::{Encoder, LoadOptions, ModelFiles, TokenizedText};
use tokenizers::{Tokenizer, TruncationParams};

/// Longest text of the reference files.
const MAX_LENGTH: usize = 256;

/// A model folder, read whole.
#[derive(Clone)]
pub struct Model {
    pub config: String,
    pub pooling: String,
    pub modules: String,
    pub weights: Vec<u8>,
    folder: PathBuf,
}

impl Model {
    /// The folder that MOTLEY_TEST_MODEL names.
    pub fn find() -> Option<Model> {
        let Some(folder) = std::env::var_os("MOTLEY_TEST_MODEL").map(PathBuf::from) else {
            say_skipped("MOTLEY_TEST_MODEL names no model folder");
            return None;
        };
        let text = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
        Some(Model {
            config: text("config.json"),
            pooling: text("1_Pooling/config.json"),
            modules: text("modules.json"),
            weights: std::fs::read(folder.join("model.safetensors")).unwrap(),
            folder,
        })
    }

    /// On a fresh backend of `threads` workers.
    pub fn load(&self, threads: usize, options: &LoadOptions) -> Encoder {
        self.load_as(&self.config, threads, options)
    }

    /// With another config.json.
    pub fn load_as(&self, config: &str, threads: usize, options: &LoadOptions) -> Encoder {
        self.load_on(device(threads), config, options)
    }

    pub fn load_on(&self, device: Arc<dyn Backend>, config: &str, options: &LoadOptions) -> Encoder {
        let files = ModelFiles {
            config_json: config,
            pooling_json: Some(&self.pooling),
            modules_json: Some(&self.modules),
            sentence_bert_json: None,
            weights: &[&self.weights],
        };
        Encoder::load(device, &files, options).unwrap()
    }

    pub fn tokenizer(&self) -> Tokenizer {
        let mut tokenizer = Tokenizer::from_file(self.folder.join("tokenizer.json")).unwrap();
        tokenizer.with_padding(None);
        let truncation = TruncationParams { max_length: MAX_LENGTH, ..TruncationParams::default() };
        tokenizer.with_truncation(Some(truncation)).unwrap();
        tokenizer
    }
}

fn backend() -> String {
    std::env::var("MOTLEY_TEST_BACKEND").unwrap_or_else(|_| "cpu".to_owned())
}

/// Whether another backend than the CPU is asked for.
pub fn is_elsewhere() -> bool {
    backend() != "cpu"
}

pub fn device(threads: usize) -> Arc<dyn Backend> {
    if backend() == "emulated" {
        return emulated(Precision::F32).expect("g++ on x86-64");
    }
    open(&DeviceRequest { backend: backend(), threads: Some(threads), ..DeviceRequest::default() }).unwrap()
}

/// CUDA emulated on the processor; nothing where that cannot be built.
pub fn emulated(precision: Precision) -> Option<Arc<dyn Backend>> {
    match emulation::library(precision) {
        Ok(library) => Some(open_emulated(&library, precision).unwrap()),
        Err(emulation::Absence::NoCompiler) => {
            eprintln!("skipped: emulated CUDA needs g++ on x86-64");
            None
        }
        Err(emulation::Absence::Broken(problem)) => panic!("{problem}"),
    }
}

pub fn tokenize(tokenizer: &Tokenizer, text: &str) -> TokenizedText {
    let encoding = tokenizer.encode(text, true).unwrap();
    TokenizedText { ids: encoding.get_ids().to_vec(), type_ids: Vec::new() }
}

/// A file or folder of the shared data.
pub fn shared(path: &str) -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    let root = std::env::var_os("MOTLEY_SHARED").map_or_else(beside, PathBuf::from);
    let path = root.join(path);
    if path.exists() {
        return Some(path);
    }
    say_skipped(&format!("{} is not there (MOTLEY_SHARED)", path.display()));
    None
}

pub fn json_lines(path: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Central difference of the fourth order.
pub fn difference(mut along: impl FnMut(f64) -> f64, step: f64) -> f64 {
    (8.0 * (along(step) - along(-step)) - (along(2.0 * step) - along(-2.0 * step))) / (12.0 * step)
}

/// Says on stderr, past the test runner (which keeps the words of a passing test to itself), that a check does nothing.
pub fn say_skipped(why: &str) {
    let _unsaid = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("skipped: {why}\n"));
}
