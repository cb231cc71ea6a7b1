//! How token vectors become one embedding: the pooling's config.json in both of its schemas, and modules.json.
//!
//! sentence-transformers changed the schema in 5.4; a reader that ignores what it does not know pools wrongly and
//! says nothing, so everything unknown is refused here.

use motley_kernels::pool;
use serde_json::{Map, Value};

use super::ModelConfig;
use crate::{Error, Result};

const POOLING: &str = "1_Pooling/config.json";
const MODULES: &str = "modules.json";
const SUPPORTED: &str = "exactly one of cls, mean, max, mean_sqrt_len_tokens, weightedmean, lasttoken";

/// Pooling and what follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pooling {
    pub kind: pool::Kind,
    /// Embeddings get unit length.
    pub normalize: bool,
}

impl Pooling {
    /// Reads the pooling's config.json and modules.json. Without modules.json a missing pooling file means `mean`, as
    /// in sentence-transformers, in decoders the last token, and nothing is normalised; with it, the pooling has to be
    /// there.
    ///
    /// # Errors
    /// Malformed text, an unknown pooling mode, several modes at once, a module that is not supported, or modules
    /// whose pooling is missing.
    pub fn parse(pooling: Option<&str>, modules: Option<&str>, model: &ModelConfig) -> Result<Self> {
        let modules = modules.map(parse_modules).transpose()?;
        let kind = match (pooling, &modules) {
            (Some(text), _) => parse_kind(text, model.hidden)?,
            (None, None) if model.decoder.is_some() => pool::Kind::LastToken,
            (None, None) => pool::Kind::Mean,
            (None, Some(_)) => {
                let problem = "it is missing, and modules.json leaves the pooling to it".to_owned();
                return Err(Error::Malformed { file: POOLING, problem });
            }
        };
        Ok(Pooling { kind, normalize: modules.is_some_and(|modules| modules.normalize) })
    }
}

/// The folder whose config.json says how to pool, by modules.json.
///
/// # Errors
/// Malformed text, a module that is not supported, or no pooling among the modules.
pub fn pooling_folder(modules: &str) -> Result<String> {
    Ok(parse_modules(modules)?.pooling_folder)
}

fn parse_kind(text: &str, hidden: usize) -> Result<pool::Kind> {
    let malformed = |problem: String| Error::Malformed { file: POOLING, problem };
    let object: Map<String, Value> =
        serde_json::from_str(text).map_err(|error| malformed(error.to_string()))?;
    for key in ["word_embedding_dimension", "embedding_dimension"] {
        if let Some(width) = object.get(key)
            && width.as_u64() != Some(hidden as u64)
        {
            return Err(malformed(format!("{key} is {width}, the model's hidden_size is {hidden}")));
        }
    }
    if object.get("include_prompt").is_some_and(|value| value != &Value::Bool(true)) {
        return Err(unsupported("include_prompt", "false", "true"));
    }
    let mut modes = Vec::new();
    match object.get("pooling_mode") {
        Some(Value::String(mode)) => modes.push(mode.clone()),
        Some(Value::Array(list)) => {
            modes.extend(list.iter().map(|mode| mode.as_str().unwrap_or("?").to_owned()))
        }
        Some(other) => return Err(unsupported("pooling_mode", &other.to_string(), SUPPORTED)),
        None => {}
    }
    for (key, value) in &object {
        if let Some(mode) = key.strip_prefix("pooling_mode_") {
            match value {
                Value::Bool(true) => {
                    modes.push(mode.trim_end_matches("_tokens").trim_end_matches("_token").to_owned())
                }
                Value::Bool(false) => {}
                other => return Err(unsupported(key, &other.to_string(), "true or false")),
            }
        }
    }
    match modes.as_slice() {
        [mode] => kind_named(mode),
        [] => Err(unsupported("pooling_mode", "absent", SUPPORTED)),
        several => Err(unsupported("pooling_mode", &several.join(" + "), SUPPORTED)),
    }
}

fn kind_named(mode: &str) -> Result<pool::Kind> {
    match mode {
        "cls" => Ok(pool::Kind::Cls),
        "mean" => Ok(pool::Kind::Mean),
        "max" => Ok(pool::Kind::Max),
        "mean_sqrt_len" | "mean_sqrt_len_tokens" => Ok(pool::Kind::MeanSqrtLength),
        "weightedmean" => Ok(pool::Kind::WeightedMean),
        "lasttoken" => Ok(pool::Kind::LastToken),
        other => Err(unsupported("pooling_mode", other, SUPPORTED)),
    }
}

struct Modules {
    pooling_folder: String,
    normalize: bool,
}

/// Where the pooling is, and whether a normalisation follows it.
fn parse_modules(text: &str) -> Result<Modules> {
    let malformed = |problem: String| Error::Malformed { file: MODULES, problem };
    let modules: Vec<Map<String, Value>> =
        serde_json::from_str(text).map_err(|error| malformed(error.to_string()))?;
    let (mut pooling_folder, mut normalize) = (None, false);
    for module in &modules {
        let kind = module.get("type").and_then(Value::as_str);
        let kind = kind.ok_or_else(|| malformed("a module has no type".to_owned()))?;
        match kind.rsplit('.').next().unwrap_or(kind) {
            "Transformer" => {}
            "Pooling" => {
                let path = module.get("path").and_then(Value::as_str);
                let path = path.ok_or_else(|| malformed("the pooling has no path".to_owned()))?;
                if pooling_folder.replace(path.to_owned()).is_some() {
                    return Err(malformed("there are two poolings".to_owned()));
                }
            }
            "Normalize" => normalize = true,
            other => {
                return Err(Error::UnsupportedSetting {
                    file: MODULES,
                    setting: "type".to_owned(),
                    found: other.to_owned(),
                    supported: "Transformer, Pooling, Normalize",
                });
            }
        }
    }
    let pooling_folder = pooling_folder.ok_or_else(|| malformed("no module is a pooling".to_owned()))?;
    Ok(Modules { pooling_folder, normalize })
}

/// Longest text of sentence_bert_config.json, if it says one (the newer schema does not).
///
/// # Errors
/// Malformed text.
pub fn max_sequence_length(text: &str) -> Result<Option<usize>> {
    let malformed = |problem: String| Error::Malformed { file: "sentence_bert_config.json", problem };
    let object: Map<String, Value> =
        serde_json::from_str(text).map_err(|error| malformed(error.to_string()))?;
    match object.get("max_seq_length") {
        None | Some(Value::Null) => Ok(None),
        Some(value) => {
            let length = value.as_u64().filter(|length| *length > 0);
            let length = length.ok_or_else(|| malformed(format!("max_seq_length is {value}")))?;
            Ok(Some(length as usize))
        }
    }
}

fn unsupported(setting: &str, found: &str, supported: &'static str) -> Error {
    Error::UnsupportedSetting {
        file: POOLING,
        setting: setting.to_owned(),
        found: found.to_owned(),
        supported,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLS: &str = r#"{"pooling_mode":"cls"}"#;

    fn model() -> ModelConfig {
        let text = r#"{"model_type":"bert","hidden_size":8,"num_hidden_layers":1,"num_attention_heads":2,
            "intermediate_size":16,"vocab_size":30}"#;
        ModelConfig::parse(text).unwrap()
    }

    #[test]
    fn both_schemas_name_the_same_poolings() {
        let cases = [
            (r#"{"pooling_mode_cls_token":true,"pooling_mode_mean_tokens":false}"#, pool::Kind::Cls),
            (r#"{"word_embedding_dimension":8,"pooling_mode_mean_tokens":true}"#, pool::Kind::Mean),
            (r#"{"pooling_mode_max_tokens":true}"#, pool::Kind::Max),
            (r#"{"pooling_mode_mean_sqrt_len_tokens":true}"#, pool::Kind::MeanSqrtLength),
            (r#"{"pooling_mode_weightedmean_tokens":true}"#, pool::Kind::WeightedMean),
            (r#"{"pooling_mode_lasttoken":true}"#, pool::Kind::LastToken),
            (r#"{"embedding_dimension":8,"pooling_mode":"mean","include_prompt":true}"#, pool::Kind::Mean),
            (r#"{"pooling_mode":["lasttoken"]}"#, pool::Kind::LastToken),
            (r#"{"pooling_mode":"mean_sqrt_len_tokens"}"#, pool::Kind::MeanSqrtLength),
        ];
        for (text, kind) in cases {
            assert_eq!(
                Pooling::parse(Some(text), None, &model()).unwrap(),
                Pooling { kind, normalize: false },
                "{text}"
            );
        }
    }

    #[test]
    fn unknown_and_mixed_poolings_are_refused() {
        for text in [
            "{}",
            r#"{"pooling_mode":"attention"}"#,
            r#"{"pooling_mode":["mean","cls"]}"#,
            r#"{"pooling_mode_mean_tokens":true,"pooling_mode_cls_token":true}"#,
            r#"{"pooling_mode_new_tokens":true}"#,
            r#"{"pooling_mode":"mean","embedding_dimension":9}"#,
            r#"{"pooling_mode":"mean","include_prompt":false}"#,
            "[",
        ] {
            assert!(Pooling::parse(Some(text), None, &model()).is_err(), "{text}");
        }
    }

    #[test]
    fn modules_of_both_dialects_say_whether_to_normalise() {
        let old = r#"[{"type":"sentence_transformers.models.Transformer","path":""},
            {"type":"sentence_transformers.models.Pooling","path":"1_Pooling"},
            {"type":"sentence_transformers.models.Normalize","path":"2_Normalize"}]"#;
        let new = r#"[{"type":"sentence_transformers.base.modules.transformer.Transformer","path":""},
            {"type":"sentence_transformers.sentence_transformer.modules.pooling.Pooling","path":"pool"},
            {"type":"sentence_transformers.base.modules.normalize.Normalize","path":"2_Normalize"}]"#;
        for (text, folder) in [(old, "1_Pooling"), (new, "pool")] {
            assert!(Pooling::parse(Some(CLS), Some(text), &model()).unwrap().normalize);
            assert_eq!(pooling_folder(text).unwrap(), folder);
        }
    }

    #[test]
    fn a_pooling_that_modules_json_asks_for_is_never_made_up() {
        let listed = r#"[{"type":"a.Transformer","path":""},{"type":"a.Pooling","path":"1_Pooling"}]"#;
        let error = Pooling::parse(None, Some(listed), &model()).unwrap_err().to_string();
        assert!(error.contains("missing"), "{error}");
        let mean = Pooling { kind: pool::Kind::Mean, normalize: false };
        assert_eq!(Pooling::parse(None, None, &model()).unwrap(), mean);
        let text = r#"{"model_type":"mistral","hidden_size":8,"num_hidden_layers":1,"num_attention_heads":2,
            "num_key_value_heads":1,"intermediate_size":16,"vocab_size":30}"#;
        let decoder = ModelConfig::parse(text).unwrap();
        assert_eq!(Pooling::parse(None, None, &decoder).unwrap().kind, pool::Kind::LastToken);
    }

    #[test]
    fn other_modules_are_refused() {
        let pooling = r#"{"type":"a.Pooling","path":"1_Pooling"}"#;
        for (text, word) in [
            (format!(r#"[{pooling},{{"type":"sentence_transformers.models.Dense","path":"2"}}]"#), "Dense"),
            (format!("[{pooling},{pooling}]"), "two poolings"),
            (r#"[{"type":"a.Transformer","path":""}]"#.to_owned(), "no module is a pooling"),
            (r#"[{"type":"a.Pooling"}]"#.to_owned(), "no path"),
            (r#"[{"path":"1_Pooling"}]"#.to_owned(), "no type"),
        ] {
            let error = Pooling::parse(Some(CLS), Some(&text), &model()).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn longest_text_is_read_where_it_is_said() {
        assert_eq!(max_sequence_length(r#"{"max_seq_length":256}"#).unwrap(), Some(256));
        assert_eq!(max_sequence_length(r#"{"transformer_task":"feature-extraction"}"#).unwrap(), None);
        assert!(max_sequence_length(r#"{"max_seq_length":0}"#).is_err());
    }
}
