//! A sentence-transformers folder in the dialect that everything reads.
//!
//! The layout forked in 2026: newer versions write other type names and another pooling schema, which
//! text-embeddings-inference and older loaders do not parse. The older dialect loads everywhere, so that is written:
//! boolean pooling keys, `max_seq_length`, `sentence_transformers.models.*`.

use std::collections::BTreeMap;
use std::fs;

use motley_ops::ModelConfig;
use serde_json::{Value, json};

use super::WorkloadError;
use super::disk::at;
use super::model::{OpenModel, pooling_name};

/// What the folder's small files say.
#[derive(Debug, Clone)]
struct Dialect<'a> {
    hidden: usize,
    /// One of [`POOLING_KEYS`]'s names.
    pooling: &'a str,
    normalize: bool,
    max_length: usize,
    lower_case: bool,
    prompts: &'a BTreeMap<String, String>,
    default_prompt: Option<&'a str>,
}

/// Names of poolings, and the key that turns each on.
const POOLING_KEYS: [(&str, &str); 6] = [
    ("cls", "pooling_mode_cls_token"),
    ("mean", "pooling_mode_mean_tokens"),
    ("max", "pooling_mode_max_tokens"),
    ("mean_sqrt_len_tokens", "pooling_mode_mean_sqrt_len_tokens"),
    ("weightedmean", "pooling_mode_weightedmean_tokens"),
    ("lasttoken", "pooling_mode_lasttoken"),
];

/// Files of a model folder that are copied as they are, where there are any.
const COPIED: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
];

/// The versions whose loaders define the dialect; readers compare them, nothing more.
const VERSIONS: [(&str, &str); 3] =
    [("sentence_transformers", "5.1.0"), ("transformers", "4.56.0"), ("pytorch", "2.8.0")];

impl Dialect<'_> {
    /// Of a model with the settings that it was opened with.
    ///
    /// # Errors
    /// Its config.json or pooling cannot be read.
    fn of(open: &OpenModel) -> Result<Dialect<'_>, WorkloadError> {
        let (pooling, settings) = (open.pooling()?, open.tokenizer.settings());
        Ok(Dialect {
            hidden: ModelConfig::parse(&open.files.config)?.hidden,
            pooling: pooling_name(pooling.kind),
            normalize: pooling.normalize,
            max_length: settings.max_length,
            lower_case: settings.lower_case,
            prompts: &settings.prompts,
            default_prompt: settings.default_prompt.as_deref(),
        })
    }

    /// The small files, by relative path.
    fn files(&self) -> Vec<(&'static str, Value)> {
        let module = |index: usize, path: &str, kind: &str| {
            json!({"idx": index, "name": index.to_string(), "path": path,
                   "type": format!("sentence_transformers.models.{kind}")})
        };
        let mut modules = vec![module(0, "", "Transformer"), module(1, "1_Pooling", "Pooling")];
        if self.normalize {
            modules.push(module(2, "2_Normalize", "Normalize"));
        }
        let mut pooling = json!({"word_embedding_dimension": self.hidden, "include_prompt": true});
        for (name, key) in POOLING_KEYS {
            pooling[key] = (name == self.pooling).into();
        }
        let versions: BTreeMap<&str, &str> = VERSIONS.into();
        vec![
            ("modules.json", modules.into()),
            ("1_Pooling/config.json", pooling),
            (
                "sentence_bert_config.json",
                json!({"max_seq_length": self.max_length, "do_lower_case": self.lower_case}),
            ),
            (
                "config_sentence_transformers.json",
                json!({"model_type": "SentenceTransformer", "__version__": versions, "prompts": self.prompts,
                       "default_prompt_name": self.default_prompt, "similarity_fn_name": "cosine"}),
            ),
        ]
    }
}

/// A folder's files by relative path, all but the transformer's own: modules, pooling, longest text, prompts and
/// tokenizer, as the model was opened. A normalisation has no file.
///
/// # Errors
/// The model's files cannot be read.
pub(crate) fn module_files(open: &OpenModel) -> Result<Vec<(&'static str, Vec<u8>)>, WorkloadError> {
    let small = Dialect::of(open)?.files().into_iter();
    let mut files: Vec<_> = small.map(|(name, value)| (name, format!("{value:#}\n").into_bytes())).collect();
    for name in COPIED {
        let path = open.folder.path.join(name);
        if path.is_file() {
            files.push((name, fs::read(&path).map_err(at(&path))?));
        }
    }
    Ok(files)
}

/// config.json for float32 weights, whatever precision the source had.
pub(crate) fn float32_config(config: &str) -> serde_json::Result<String> {
    let mut value: Value = serde_json::from_str(config)?;
    if let Some(fields) = value.as_object_mut() {
        for key in ["torch_dtype", "dtype"] {
            if fields.contains_key(key) {
                fields.insert(key.to_owned(), "float32".into());
            }
        }
        fields.remove("quantization_config");
    }
    serde_json::to_string_pretty(&value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_files_are_in_the_older_dialect() {
        let prompts = BTreeMap::from([("query".to_owned(), "q: ".to_owned())]);
        let dialect = Dialect {
            hidden: 384,
            pooling: "mean",
            normalize: true,
            max_length: 256,
            lower_case: false,
            prompts: &prompts,
            default_prompt: None,
        };
        let files: BTreeMap<_, _> = dialect.files().into_iter().collect();
        let pooling = &files["1_Pooling/config.json"];
        assert_eq!(pooling["pooling_mode_mean_tokens"], true);
        assert_eq!(pooling["pooling_mode_cls_token"], false);
        assert_eq!(pooling["word_embedding_dimension"], 384);
        assert_eq!(files["sentence_bert_config.json"]["max_seq_length"], 256);
        assert_eq!(files["modules.json"][2]["type"], "sentence_transformers.models.Normalize");
        assert_eq!(files["config_sentence_transformers.json"]["prompts"]["query"], "q: ");
        let plain = Dialect { normalize: false, ..dialect };
        assert_eq!(plain.files()[0].1.as_array().unwrap().len(), 2);
    }

    #[test]
    fn config_speaks_of_float32_and_no_quantization() {
        let text =
            float32_config(r#"{"torch_dtype": "float16", "quantization_config": {}, "hidden_size": 8}"#);
        let value: Value = serde_json::from_str(&text.unwrap()).unwrap();
        assert_eq!(value, json!({"torch_dtype": "float32", "hidden_size": 8}));
        assert!(!float32_config("{}").unwrap().contains("dtype"));
    }
}
