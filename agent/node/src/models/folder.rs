//! A verified model folder, and what a workload reads from it.

use std::fs::{self, File};
use std::path::{Component, Path, PathBuf};

use memmap2::Mmap;
use motley_scheduler_core::id::ContentHash;
use safetensors::SafeTensors;
use sha2::{Digest, Sha256};

use super::{ModelError, hash_file, io};

/// A folder with config.json, tokenizer.json and sound weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFolder {
    pub path: PathBuf,
    /// Which source it came from, as one would write it in a document.
    pub origin: String,
    /// SHA-256 of the weights file; of several shards, of their hashes in order of name.
    pub weights_sha256: ContentHash,
    /// Sorted by name.
    pub weights: Vec<PathBuf>,
}

/// A folder's texts, and its weights mapped into memory.
pub struct LoadedModel {
    pub config: String,
    pub tokenizer: String,
    pub tokenizer_config: Option<String>,
    /// config.json of the pooling that modules.json lists; without that, `1_Pooling/config.json` if it is there.
    pub pooling: Option<String>,
    pub modules: Option<String>,
    pub sentence_bert: Option<String>,
    pub sentence_transformers: Option<String>,
    /// One map a shard, in order of name.
    pub weights: Vec<Mmap>,
}

impl ModelFolder {
    /// Checks that everything is there and sound, and hashes the weights.
    ///
    /// # Errors
    /// A missing file, a truncated or lying weights header, or another hash than expected.
    pub fn verify(path: PathBuf, origin: String, expected: Option<ContentHash>) -> Result<Self, ModelError> {
        for name in ["config.json", "tokenizer.json"] {
            if !path.join(name).is_file() {
                let hint =
                    "name a sentence-transformers folder; `tokenizer.json` is the fast tokenizer's file";
                return Err(ModelError::Incomplete { folder: path.clone(), missing: name.into(), hint });
            }
        }
        let weights = weight_files(&path)?;
        for file in &weights {
            check_header(file)?;
        }
        let weights_sha256 = hash_weights(&weights)?;
        if let Some(expected) = expected.filter(|expected| *expected != weights_sha256) {
            let what = format!("the weights of `{origin}` in {}", path.display());
            return Err(ModelError::WrongHash { what, expected, found: weights_sha256 });
        }
        Ok(ModelFolder { path, origin, weights_sha256, weights })
    }

    /// Reads the texts and maps the weights.
    ///
    /// # Errors
    /// A file that can no longer be read.
    pub fn open(&self) -> Result<LoadedModel, ModelError> {
        let modules = self.optional("modules.json")?;
        Ok(LoadedModel {
            config: self.required("config.json")?,
            tokenizer: self.required("tokenizer.json")?,
            tokenizer_config: self.optional("tokenizer_config.json")?,
            pooling: self.pooling(modules.as_deref())?,
            modules,
            sentence_bert: self.optional("sentence_bert_config.json")?,
            sentence_transformers: self.optional("config_sentence_transformers.json")?,
            weights: self.weights.iter().map(|path| map(path)).collect::<Result<_, _>>()?,
        })
    }

    /// A missing pooling would be taken for `mean`, which gives other vectors without a word.
    fn pooling(&self, modules: Option<&str>) -> Result<Option<String>, ModelError> {
        // Modules that cannot be read are refused with their reason where they are used.
        let Some(folder) = modules.and_then(|text| motley_ops::pooling_folder(text).ok()) else {
            return self.optional("1_Pooling/config.json");
        };
        let name = format!("{folder}/config.json");
        let inside = Path::new(&folder).components().all(|part| matches!(part, Component::Normal(_)));
        if folder.is_empty() || !inside || !self.path.join(&name).is_file() {
            let hint =
                "modules.json names it, and says with it how the vectors are made: fetch the whole model";
            return Err(ModelError::Incomplete { folder: self.path.clone(), missing: name, hint });
        }
        self.required(&name).map(Some)
    }

    fn required(&self, name: &str) -> Result<String, ModelError> {
        let path = self.path.join(name);
        fs::read_to_string(&path).map_err(io(&path))
    }

    fn optional(&self, name: &str) -> Result<Option<String>, ModelError> {
        if self.path.join(name).is_file() { self.required(name).map(Some) } else { Ok(None) }
    }
}

/// The weights of a folder that may lack other files.
///
/// # Errors
/// There are none, or they cannot be read.
pub(super) fn map_weights(folder: &Path) -> Result<Vec<Mmap>, ModelError> {
    weight_files(folder)?.iter().map(|path| map(path)).collect()
}

fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let single = folder.join("model.safetensors");
    if single.is_file() {
        return Ok(vec![single]);
    }
    let index = folder.join("model.safetensors.index.json");
    if !index.is_file() {
        return Err(ModelError::Incomplete {
            folder: folder.to_owned(),
            missing: "model.safetensors".into(),
            hint: "weights in other formats (pytorch_model.bin, ONNX) are not read: save the model as safetensors",
        });
    }
    let text = fs::read_to_string(&index).map_err(io(&index))?;
    let damaged = |message: String| ModelError::Damaged { path: index.clone(), message };
    let value: serde_json::Value = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
    let map = value["weight_map"].as_object().ok_or_else(|| damaged("it has no `weight_map`".into()))?;
    let mut names: Vec<&str> = map.values().filter_map(|name| name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() || names.iter().any(|name| name.contains('/') || name.contains("..")) {
        return Err(damaged("its `weight_map` names no file of this folder".into()));
    }
    let missing = names.iter().find(|name| !folder.join(name).is_file());
    if let Some(name) = missing {
        let hint = "fetch the missing shard; model.safetensors.index.json lists it";
        return Err(ModelError::Incomplete { folder: folder.to_owned(), missing: (*name).into(), hint });
    }
    Ok(names.iter().map(|name| folder.join(name)).collect())
}

fn check_header(path: &Path) -> Result<(), ModelError> {
    let mapped = map(path)?;
    match SafeTensors::deserialize(&mapped) {
        Ok(_) => Ok(()),
        Err(error) => Err(ModelError::Damaged { path: path.to_owned(), message: error.to_string() }),
    }
}

fn hash_weights(files: &[PathBuf]) -> Result<ContentHash, ModelError> {
    let hashes = files.iter().map(|path| hash_file(path).map_err(io(path))).collect::<Result<Vec<_>, _>>()?;
    if let [only] = hashes[..] {
        return Ok(only);
    }
    let mut hasher = Sha256::new();
    hashes.iter().for_each(|hash| hasher.update(hash.0));
    Ok(ContentHash(hasher.finalize().into()))
}

fn map(path: &Path) -> Result<Mmap, ModelError> {
    let file = File::open(path).map_err(io(path))?;
    // SAFETY: the map is read-only. Files of the model store are never written after they were renamed into place;
    // a user who truncates a `file:` model under a running job, or while submitting one, gets a bus error in that
    // process only.
    unsafe { Mmap::map(&file) }.map_err(io(path))
}
