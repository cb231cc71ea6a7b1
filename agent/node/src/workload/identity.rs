//! `motley.json` beside `adapter_config.json`: which base an adapter belongs to.
//!
//! An adapter is trained on one base: these weights, quantized or not, with these prompts and this pooling. On any
//! other its vectors differ (a QLoRA adapter on the full-precision base: lowest cosine 0.92), so it is refused there
//! unless the full-precision base is asked for by name. PEFT's own files have no place for this; other programs skip
//! the file.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use motley_scheduler_core::document::Quantization;
use motley_scheduler_core::document::model::AdapterBase;
use serde::{Deserialize, Serialize};

use super::results::sha256_text;

/// `motley.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdapterIdentity {
    pub format: u32,
    pub base: BaseFacts,
    /// Of both of PEFT's files: [`adapter_sha256`].
    pub adapter_sha256: String,
}

/// The base that an adapter was trained on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseFacts {
    /// As one would write it in a document.
    pub source: String,
    pub weights_sha256: String,
    /// Absent: full precision.
    pub quantization: Option<Recipe>,
    pub prompts: BTreeMap<String, String>,
    /// Longest text in tokens while training; what the adapter is used with where nothing else is asked for.
    pub max_length: u32,
    /// Of prompts, pooling and normalisation.
    pub preparation_sha256: String,
}

/// How the frozen weights were quantized.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// `nf4`.
    pub kind: String,
    pub block_size: u32,
    pub double_quantization: bool,
}

/// An adapter's files.
#[derive(Debug, Clone)]
pub struct AdapterFiles {
    pub folder: PathBuf,
    pub config: String,
    pub weights: Vec<u8>,
    /// Absent where another program made the adapter.
    pub identity: Option<AdapterIdentity>,
    /// [`adapter_sha256`].
    pub sha256: String,
}

/// An adapter that cannot be used here.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    #[error("{}: {message}\nhint: name a folder with adapter_config.json and adapter_model.safetensors", path.display())]
    Unreadable { path: PathBuf, message: String },
    #[error(
        "the adapter in {} belongs to a base with weights SHA-256 {expected} ({source_text}); the model has {found}\n\
         hint: set [model] source to the adapter's own base", folder.display()
    )]
    OtherWeights { folder: PathBuf, source_text: String, expected: String, found: String },
    #[error(
        "the adapter in {} was trained with other prompts or pooling than the model and document give\n\
         hint: {hint}", folder.display()
    )]
    OtherPreparation { folder: PathBuf, hint: String },
    #[error(
        "the adapter in {} does not say which base it belongs to (no motley.json: another program made it)\n\
         hint: if it was trained on the unquantized model, set [adapter] base = \"full_precision\", or give \
         --full-precision", folder.display()
    )]
    Unidentified { folder: PathBuf },
    #[error(
        "the adapter in {} has changed: its SHA-256 is {found}, motley.json says {expected}\n\
         hint: take the adapter folder as training wrote it", folder.display()
    )]
    Changed { folder: PathBuf, expected: String, found: String },
    #[error(
        "the adapter in {} belongs to {what}, which this build does not have\n\
         hint: use the version of Motley that trained it", folder.display()
    )]
    OtherRecipe { folder: PathBuf, what: String },
}

const FORMAT: u32 = 1;
pub(crate) const IDENTITY_FILE: &str = "motley.json";
pub(crate) const CONFIG_FILE: &str = "adapter_config.json";
pub(crate) const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// Block of NF4, as bitsandbytes.
const NF4_BLOCK_SIZE: u32 = 64;

impl Recipe {
    pub fn of(quantization: Quantization) -> Recipe {
        let Quantization::Nf4 { double_quantization } = quantization;
        Recipe { kind: "nf4".to_owned(), block_size: NF4_BLOCK_SIZE, double_quantization }
    }

    pub fn quantization(&self) -> Quantization {
        Quantization::Nf4 { double_quantization: self.double_quantization }
    }
}

impl AdapterIdentity {
    pub fn new(base: BaseFacts, config: &str, weights: &[u8]) -> AdapterIdentity {
        AdapterIdentity { format: FORMAT, base, adapter_sha256: adapter_sha256(config, weights) }
    }

    /// What of it this build cannot reproduce.
    fn foreign(&self) -> Option<String> {
        if self.format != FORMAT {
            return Some(format!("{IDENTITY_FILE} of format {}", self.format));
        }
        let recipe = self.base.quantization.as_ref()?;
        let known = *recipe == Recipe::of(recipe.quantization());
        (!known).then(|| format!("a base quantized to {} in blocks of {}", recipe.kind, recipe.block_size))
    }
}

/// Hash of both of PEFT's files: the configuration's alpha scales the weights as much as they say themselves. It is
/// what `sha256sum adapter_config.json adapter_model.safetensors | sha256sum` prints.
pub fn adapter_sha256(config: &str, weights: &[u8]) -> String {
    let (config, weights) = (sha256_text(config.as_bytes()), sha256_text(weights));
    sha256_text(format!("{config}  {CONFIG_FILE}\n{weights}  {WEIGHTS_FILE}\n").as_bytes())
}

/// Hash of everything but weights that turns a text into a vector. `pooling` is the pooling's canonical name.
pub fn preparation_sha256(prompts: &BTreeMap<String, String>, pooling: &str, normalize: bool) -> String {
    let facts = serde_json::json!({"prompts": prompts, "pooling": pooling, "normalize": normalize});
    sha256_text(facts.to_string().as_bytes())
}

impl AdapterFiles {
    /// Reads an adapter folder; a job's output folder may be named too.
    ///
    /// # Errors
    /// A file is missing or malformed, or weights and configuration are not those that motley.json names.
    pub fn read(folder: &Path) -> Result<AdapterFiles, AdapterError> {
        let inner = folder.join("adapter");
        let folder = if !folder.join(CONFIG_FILE).is_file() && inner.is_dir() { &inner } else { folder };
        let unreadable =
            |name: &str, message: String| AdapterError::Unreadable { path: folder.join(name), message };
        let bytes =
            |name: &str| fs::read(folder.join(name)).map_err(|error| unreadable(name, error.to_string()));
        let config = String::from_utf8(bytes(CONFIG_FILE)?)
            .map_err(|error| unreadable(CONFIG_FILE, error.to_string()))?;
        let weights = bytes(WEIGHTS_FILE)?;
        let sha256 = adapter_sha256(&config, &weights);
        let identity = if folder.join(IDENTITY_FILE).is_file() {
            let parsed = serde_json::from_slice::<AdapterIdentity>(&bytes(IDENTITY_FILE)?);
            Some(parsed.map_err(|error| unreadable(IDENTITY_FILE, error.to_string()))?)
        } else {
            None
        };
        if let Some(identity) = identity.as_ref().filter(|identity| identity.adapter_sha256 != sha256) {
            let (expected, found) = (identity.adapter_sha256.clone(), sha256);
            return Err(AdapterError::Changed { folder: folder.to_path_buf(), expected, found });
        }
        if let Some(what) = identity.as_ref().and_then(AdapterIdentity::foreign) {
            return Err(AdapterError::OtherRecipe { folder: folder.to_path_buf(), what });
        }
        Ok(AdapterFiles { folder: folder.to_path_buf(), config, weights, identity, sha256 })
    }

    /// How the base must be quantized for this adapter: as it was in training, or not at all if asked by name.
    ///
    /// # Errors
    /// The base is not the adapter's own.
    pub fn quantization(
        &self,
        base: AdapterBase,
        weights_sha256: &str,
    ) -> Result<Option<Quantization>, AdapterError> {
        let folder = self.folder.clone();
        let Some(identity) = &self.identity else {
            return match base {
                AdapterBase::Own => Err(AdapterError::Unidentified { folder }),
                AdapterBase::FullPrecision => Ok(None),
            };
        };
        if identity.base.weights_sha256 != weights_sha256 {
            let (source_text, expected) =
                (identity.base.source.clone(), identity.base.weights_sha256.clone());
            let found = weights_sha256.to_owned();
            return Err(AdapterError::OtherWeights { folder, source_text, expected, found });
        }
        Ok(match base {
            AdapterBase::Own => identity.base.quantization.as_ref().map(Recipe::quantization),
            AdapterBase::FullPrecision => None,
        })
    }

    /// Checks prompts and pooling against those of training.
    ///
    /// # Errors
    /// They differ; the hint names the prompt.
    pub fn check_preparation(
        &self,
        prompts: &BTreeMap<String, String>,
        preparation_sha256: &str,
    ) -> Result<(), AdapterError> {
        let Some(identity) = &self.identity else { return Ok(()) };
        if identity.base.preparation_sha256 == preparation_sha256 {
            return Ok(());
        }
        let trained = &identity.base.prompts;
        let names = trained.keys().chain(prompts.keys());
        let differing = names.into_iter().find(|name| trained.get(*name) != prompts.get(*name));
        let quoted =
            |prompt: Option<&String>| prompt.map_or("nothing".to_owned(), |prompt| format!("{prompt:?}"));
        let hint = match differing {
            Some(name) => format!(
                "prompt `{name}` was {} in training and is {} here; correct [model] prompts",
                quoted(trained.get(name)),
                quoted(prompts.get(name))
            ),
            None => {
                "take the model folder that the adapter was trained on, with its 1_Pooling and modules.json"
                    .to_owned()
            }
        };
        Err(AdapterError::OtherPreparation { folder: self.folder.clone(), hint })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompts(text: &str) -> BTreeMap<String, String> {
        BTreeMap::from([("query".to_owned(), text.to_owned())])
    }

    fn folder(quantization: Option<Recipe>) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let base = BaseFacts {
            source: "org/model".into(),
            weights_sha256: "w".into(),
            quantization,
            prompts: prompts("q: "),
            max_length: 64,
            preparation_sha256: preparation_sha256(&prompts("q: "), "mean", true),
        };
        let identity = AdapterIdentity::new(base, "{}", b"tensors");
        fs::write(folder.path().join(CONFIG_FILE), "{}").unwrap();
        fs::write(folder.path().join(WEIGHTS_FILE), "tensors").unwrap();
        fs::write(folder.path().join(IDENTITY_FILE), serde_json::to_string(&identity).unwrap()).unwrap();
        folder
    }

    fn nf4() -> Recipe {
        Recipe::of(Quantization::Nf4 { double_quantization: true })
    }

    #[test]
    fn a_recipe_that_this_build_does_not_have_is_refused() {
        for recipe in [Recipe { kind: "int8".into(), ..nf4() }, Recipe { block_size: 128, ..nf4() }] {
            let folder = folder(Some(recipe));
            let error = AdapterFiles::read(folder.path()).unwrap_err();
            assert!(matches!(error, AdapterError::OtherRecipe { .. }), "{error}");
        }
    }

    #[test]
    fn an_adapter_asks_for_its_own_base() {
        let folder = folder(Some(nf4()));
        let adapter = AdapterFiles::read(folder.path()).unwrap();
        let own = adapter.quantization(AdapterBase::Own, "w").unwrap();
        assert_eq!(own, Some(Quantization::Nf4 { double_quantization: true }));
        assert_eq!(adapter.quantization(AdapterBase::FullPrecision, "w").unwrap(), None);
        for base in [AdapterBase::Own, AdapterBase::FullPrecision] {
            let message = adapter.quantization(base, "v").unwrap_err().to_string();
            assert!(message.contains("org/model") && message.contains("hint:"), "{message}");
        }
    }

    #[test]
    fn other_prompts_or_pooling_are_refused() {
        let folder = folder(None);
        let adapter = AdapterFiles::read(folder.path()).unwrap();
        let check = |text: &str, pooling: &str| {
            adapter.check_preparation(&prompts(text), &preparation_sha256(&prompts(text), pooling, true))
        };
        assert!(check("q: ", "mean").is_ok());
        let message = check("Q: ", "mean").unwrap_err().to_string();
        assert!(message.contains("`query` was \"q: \" in training and is \"Q: \" here"), "{message}");
        assert!(check("q: ", "cls").unwrap_err().to_string().contains("1_Pooling"));
    }

    #[test]
    fn foreign_and_changed_adapters_are_told_apart() {
        let folder = folder(Some(nf4()));
        fs::write(folder.path().join(WEIGHTS_FILE), "other").unwrap();
        assert!(matches!(AdapterFiles::read(folder.path()), Err(AdapterError::Changed { .. })));
        fs::remove_file(folder.path().join(IDENTITY_FILE)).unwrap();
        let foreign = AdapterFiles::read(folder.path()).unwrap();
        assert!(matches!(
            foreign.quantization(AdapterBase::Own, "w"),
            Err(AdapterError::Unidentified { .. })
        ));
        assert_eq!(foreign.quantization(AdapterBase::FullPrecision, "w").unwrap(), None);
        let message = AdapterFiles::read(Path::new("/nowhere")).unwrap_err().to_string();
        assert!(message.contains("/nowhere/adapter_config.json"), "{message}");
    }

    #[test]
    fn a_changed_configuration_is_noticed() {
        let folder = folder(None);
        let hash = AdapterFiles::read(folder.path()).unwrap().sha256;
        fs::write(folder.path().join(CONFIG_FILE), "{\"lora_alpha\": 64}").unwrap();
        let message = AdapterFiles::read(folder.path()).unwrap_err().to_string();
        assert!(message.contains("has changed") && message.contains(&hash), "{message}");
        // By `sha256sum` of coreutils over files of `{}` and `tensors`.
        assert_eq!(hash, adapter_sha256("{}", b"tensors"));
        assert_eq!(hash, "e98962c2e65f6702d26275c59af16bca2f4df86b17ee8e8df7e7f5266c97a3b2");
    }

    #[test]
    fn a_job_output_folder_leads_to_its_adapter() {
        let (root, adapter) = (tempfile::tempdir().unwrap(), folder(None));
        fs::rename(adapter.path(), root.path().join("adapter")).unwrap();
        assert!(AdapterFiles::read(root.path()).unwrap().folder.ends_with("adapter"));
        fs::create_dir(adapter.path()).unwrap();
    }
}
