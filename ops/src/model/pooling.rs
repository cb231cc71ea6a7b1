//! How token vectors become one embedding: 1_Pooling/config.json in both of its schemas, and modules.json.
//!
//! sentence-transformers changed the schema in 5.4; a reader that ignores what it does not know pools wrongly and
//! says nothing, so everything unknown is refused here.

use motley_kernels::pool;
use serde_json::{Map, Value};

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
    /// Reads 1_Pooling/config.json and modules.json; a missing pooling file means `mean`, and missing modules mean
    /// no normalisation, as in sentence-transformers. `hidden` is the model's width.
    ///
    /// # Errors
    /// Malformed text, an unknown pooling mode, several modes at once, or a module that is not supported.
    pub fn parse(pooling: Option<&str>, modules: Option<&str>, hidden: usize) -> Result<Self> {
        let kind = pooling.map_or(Ok(pool::Kind::Mean), |text| parse_kind(text, hidden))?;
        let normalize = modules.map_or(Ok(false), parse_modules)?;
        Ok(Pooling { kind, normalize })
    }
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

/// Whether the list of modules ends in a normalisation.
fn parse_modules(text: &str) -> Result<bool> {
    let malformed = |problem: String| Error::Malformed { file: MODULES, problem };
    let modules: Vec<Map<String, Value>> =
        serde_json::from_str(text).map_err(|error| malformed(error.to_string()))?;
    let mut normalize = false;
    for module in &modules {
        let path = module.get("type").and_then(Value::as_str);
        let path = path.ok_or_else(|| malformed("a module has no type".to_owned()))?;
        match path.rsplit('.').next().unwrap_or(path) {
            "Transformer" | "Pooling" => {}
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
    Ok(normalize)
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
                Pooling::parse(Some(text), None, 8).unwrap(),
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
            assert!(Pooling::parse(Some(text), None, 8).is_err(), "{text}");
        }
    }

    #[test]
    fn modules_of_both_dialects_say_whether_to_normalise() {
        let old = r#"[{"type":"sentence_transformers.models.Transformer"},
            {"type":"sentence_transformers.models.Pooling"},{"type":"sentence_transformers.models.Normalize"}]"#;
        let new = r#"[{"type":"sentence_transformers.base.modules.transformer.Transformer"},
            {"type":"sentence_transformers.base.modules.normalize.Normalize"}]"#;
        for text in [old, new] {
            assert!(Pooling::parse(None, Some(text), 8).unwrap().normalize);
        }
        let dense = r#"[{"type":"sentence_transformers.models.Dense"}]"#;
        let error = Pooling::parse(None, Some(dense), 8).unwrap_err().to_string();
        assert!(error.contains("Dense"), "{error}");
    }

    #[test]
    fn longest_text_is_read_where_it_is_said() {
        assert_eq!(max_sequence_length(r#"{"max_seq_length":256}"#).unwrap(), Some(256));
        assert_eq!(max_sequence_length(r#"{"transformer_task":"feature-extraction"}"#).unwrap(), None);
        assert!(max_sequence_length(r#"{"max_seq_length":0}"#).is_err());
    }
}
