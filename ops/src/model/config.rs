//! A model's architecture, from the text of its config.json.
//!
//! Supported are the BERT family: `bert` itself (MiniLM, bge, e5, gte, arctic, mxbai) and `roberta`, `xlm-roberta`,
//! `camembert`, which differ in where positions start; and the decoders of [`super::decoder`]. Defaults of missing
//! keys are those of Hugging Face's configs.

use motley_kernels::gelu;
use serde::Deserialize;

use super::decoder::{self, Decoder};
use crate::device::ELEMENTS_MAX;
use crate::{Error, Result};

pub(super) const FILE: &str = "config.json";
/// Largest width, vocabulary and number of positions. Token indices are 24 bits of the key of a random draw, and the
/// largest vocabulary of a text encoder today is some 2¹⁸.
const SIZE_MAX: usize = 1 << 24;
/// The stacked matrix of query, key and value has three times the square of it.
const HIDDEN_MAX: usize = 37_837;
const _: () = assert!(3 * HIDDEN_MAX * HIDDEN_MAX <= ELEMENTS_MAX);
/// Twice that of the widest head today.
const HEAD_DIM_MAX: usize = 512;
/// Ten times the deepest encoder today.
const LAYERS_MAX: usize = 1024;
const SUPPORTED: &str = "bert, roberta, xlm-roberta, camembert, qwen3, qwen2, mistral, llama";

/// Architecture of a model. Every value is checked: heads divide what they share, counts are not zero.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    pub model_type: String,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    /// Heads of keys and values: `heads`, or fewer, each for as many query heads.
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Width between the two products of a feed-forward block.
    pub intermediate: usize,
    /// Rows of the word embeddings.
    pub vocabulary: usize,
    /// Rows of the position embeddings, or positions that are rotated.
    pub position_rows: usize,
    /// Position of a text's first token: 0, or pad_token_id + 1 in the RoBERTa family.
    pub position_first: usize,
    pub token_types: usize,
    /// Of LayerNorm, in decoders of the norm by the root mean square.
    pub layer_norm_epsilon: f32,
    /// Of the BERT family's feed-forward blocks.
    pub activation: gelu::Kind,
    /// Dropout behind embeddings and blocks; used only if asked for at loading.
    pub hidden_dropout: f32,
    /// Dropout of attention probabilities; used only if asked for at loading.
    pub attention_dropout: f32,
    /// Absent in the BERT family.
    pub decoder: Option<Decoder>,
}

#[derive(Deserialize)]
struct Raw {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    vocab_size: usize,
    #[serde(default = "default_positions")]
    max_position_embeddings: usize,
    #[serde(default = "default_types")]
    type_vocab_size: usize,
    #[serde(default = "default_epsilon")]
    layer_norm_eps: f64,
    hidden_act: Option<String>,
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
    pad_token_id: Option<usize>,
    #[serde(default = "default_dropout")]
    hidden_dropout_prob: f32,
    #[serde(default = "default_dropout")]
    attention_probs_dropout_prob: f32,
}

fn default_positions() -> usize {
    512
}

fn default_types() -> usize {
    2
}

fn default_epsilon() -> f64 {
    1e-12
}

fn default_dropout() -> f32 {
    0.1
}

impl ModelConfig {
    /// Reads the text of config.json.
    ///
    /// # Errors
    /// Malformed text, an architecture that is not supported (naming those that are), or sizes that do not fit.
    pub fn parse(text: &str) -> Result<Self> {
        let malformed = |problem: String| Error::Malformed { file: FILE, problem };
        // The family first: other families lack keys, and that message would mislead.
        #[derive(Deserialize)]
        struct Family {
            model_type: Option<String>,
        }
        let family: Family = serde_json::from_str(text).map_err(|error| malformed(error.to_string()))?;
        let model_type = family.model_type.unwrap_or_else(|| "bert".to_owned());
        let config = match (model_type.as_str(), decoder::Family::of(&model_type)) {
            (_, Some(family)) => decoder::parse(text, family, model_type)?,
            ("bert", _) => Self::parse_bert(text, model_type, false)?,
            ("roberta" | "xlm-roberta" | "camembert", _) => Self::parse_bert(text, model_type, true)?,
            _ => return Err(Error::UnsupportedModel { found: model_type, supported: SUPPORTED }),
        };
        config.check()?;
        Ok(config)
    }

    fn parse_bert(text: &str, model_type: String, is_roberta: bool) -> Result<Self> {
        let raw: Raw = serde_json::from_str(text)
            .map_err(|error| Error::Malformed { file: FILE, problem: error.to_string() })?;
        refuse_variants(&raw)?;
        let (hidden, heads) = (raw.hidden_size, raw.num_attention_heads);
        if heads > 0 && !hidden.is_multiple_of(heads) {
            let expected = format!("a multiple of num_attention_heads = {heads}");
            return Err(Error::ModelSize { key: "hidden_size", value: hidden, expected });
        }
        Ok(ModelConfig {
            activation: activation(raw.hidden_act.as_deref().unwrap_or("gelu"))?,
            model_type,
            hidden,
            layers: raw.num_hidden_layers,
            heads,
            kv_heads: heads,
            head_dim: hidden / heads.max(1),
            intermediate: raw.intermediate_size,
            vocabulary: raw.vocab_size,
            position_rows: raw.max_position_embeddings,
            position_first: if is_roberta { raw.pad_token_id.unwrap_or(1).saturating_add(1) } else { 0 },
            token_types: raw.type_vocab_size,
            layer_norm_epsilon: raw.layer_norm_eps as f32,
            hidden_dropout: raw.hidden_dropout_prob,
            attention_dropout: raw.attention_probs_dropout_prob,
            decoder: None,
        })
    }

    /// Longest text in tokens.
    pub fn max_positions(&self) -> usize {
        self.position_rows - self.position_first
    }

    fn check(&self) -> Result<()> {
        self.check_sizes()?;
        let problem = if self.layer_norm_epsilon.is_nan() || self.layer_norm_epsilon <= 0.0 {
            let key = if self.decoder.is_some() { "rms_norm_eps" } else { "layer_norm_eps" };
            format!("{key} {} is not positive", self.layer_norm_epsilon)
        } else if !(0.0..1.0).contains(&self.hidden_dropout) || !(0.0..1.0).contains(&self.attention_dropout)
        {
            "a dropout probability is not within 0..1".to_owned()
        } else {
            return Ok(());
        };
        Err(Error::Malformed { file: FILE, problem })
    }

    /// Every matrix can be counted, and no file can make the program ask for absurd memory.
    fn check_sizes(&self) -> Result<()> {
        let wrong = |key, value, expected: String| Err(Error::ModelSize { key, value, expected });
        let width = self.hidden.max(1);
        // Gate and up are stacked in one matrix.
        let stacked = if self.decoder.is_some() { 2 } else { 1 };
        let sizes = [
            ("hidden_size", self.hidden, HIDDEN_MAX),
            ("num_hidden_layers", self.layers, LAYERS_MAX),
            ("num_attention_heads", self.heads, SIZE_MAX),
            ("intermediate_size", self.intermediate, (ELEMENTS_MAX / stacked / width).min(SIZE_MAX)),
            ("vocab_size", self.vocabulary, (ELEMENTS_MAX / width).min(SIZE_MAX)),
            ("max_position_embeddings", self.position_rows, (ELEMENTS_MAX / width).min(SIZE_MAX)),
            ("type_vocab_size", self.token_types, (ELEMENTS_MAX / width).min(SIZE_MAX)),
        ];
        if let Some((key, value, most)) =
            sizes.into_iter().find(|(_, value, most)| !(1..=*most).contains(value))
        {
            return wrong(key, value, format!("1 to {most}"));
        }
        self.check_heads()?;
        if self.position_rows <= self.position_first {
            let expected = format!("more than the first position {}", self.position_first);
            return wrong("max_position_embeddings", self.position_rows, expected);
        }
        Ok(())
    }

    /// Key-value heads divide heads, heads have halves, and the stacked matrix of query, key and value can be counted.
    fn check_heads(&self) -> Result<()> {
        if self.decoder.is_none() {
            return Ok(());
        }
        let wrong = |key, value, expected: String| Err(Error::ModelSize { key, value, expected });
        if !(1..=self.heads).contains(&self.kv_heads) {
            return wrong("num_key_value_heads", self.kv_heads, format!("1 to {}", self.heads));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            let expected = format!("a multiple of num_key_value_heads = {}", self.kv_heads);
            return wrong("num_attention_heads", self.heads, expected);
        }
        if !self.head_dim.is_multiple_of(2) || !(2..=HEAD_DIM_MAX).contains(&self.head_dim) {
            return wrong("head_dim", self.head_dim, format!("an even number up to {HEAD_DIM_MAX}"));
        }
        let most = ELEMENTS_MAX / self.hidden / self.head_dim / 3;
        if self.heads > most {
            return wrong("num_attention_heads", self.heads, format!("1 to {most}"));
        }
        Ok(())
    }
}

fn refuse_variants(raw: &Raw) -> Result<()> {
    let unsupported = |setting: &str, found: String, supported| {
        Err(Error::UnsupportedSetting { file: FILE, setting: setting.to_owned(), found, supported })
    };
    match raw.position_embedding_type.as_deref() {
        None | Some("absolute") => {}
        Some(other) => return unsupported("position_embedding_type", other.to_owned(), "absolute"),
    }
    if raw.is_decoder {
        return unsupported("is_decoder", "true".to_owned(), "false");
    }
    Ok(())
}

fn activation(name: &str) -> Result<gelu::Kind> {
    match name {
        "gelu" | "gelu_python" => Ok(gelu::Kind::Exact),
        "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Ok(gelu::Kind::Tanh),
        "relu" => Ok(gelu::Kind::Relu),
        other => Err(Error::UnsupportedSetting {
            file: FILE,
            setting: "hidden_act".to_owned(),
            found: other.to_owned(),
            supported: "gelu, gelu_new, gelu_fast, gelu_pytorch_tanh or relu",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"{"model_type":"bert","hidden_size":8,"num_hidden_layers":2,"num_attention_heads":2,
        "intermediate_size":16,"vocab_size":30,"max_position_embeddings":12}"#;

    #[test]
    fn missing_keys_get_the_defaults_of_the_family() {
        let config = ModelConfig::parse(SMALL).unwrap();
        assert_eq!((config.layer_norm_epsilon, config.token_types), (1e-12, 2));
        assert_eq!((config.position_first, config.max_positions()), (0, 12));
        assert_eq!(config.activation, gelu::Kind::Exact);
        let roberta = ModelConfig::parse(&SMALL.replace("bert", "xlm-roberta")).unwrap();
        assert_eq!((roberta.position_first, roberta.max_positions()), (2, 10));
    }

    #[test]
    fn what_cannot_be_computed_is_refused_by_name() {
        let cases = [
            (SMALL.replace("bert", "t5"), "supported are bert"),
            (
                SMALL.replace("\"vocab_size\":30", "\"vocab_size\":30,\"hidden_act\":\"silu\""),
                "hidden_act = silu",
            ),
            (
                SMALL.replace("\"num_attention_heads\":2", "\"num_attention_heads\":3"),
                "hidden_size is 8, a multiple of",
            ),
            (
                SMALL.replace("\"num_hidden_layers\":2", "\"num_hidden_layers\":0"),
                "num_hidden_layers is 0, 1 to",
            ),
            (
                SMALL.replace(
                    "\"vocab_size\":30",
                    "\"vocab_size\":30,\"position_embedding_type\":\"relative_key\"",
                ),
                "relative_key",
            ),
            ("[]".to_owned(), "config.json is malformed"),
        ];
        for (text, wanted) in cases {
            let error = ModelConfig::parse(&text).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn sizes_that_no_device_could_count_are_refused_by_key_value_and_limit() {
        let cases = [
            (
                "\"vocab_size\":30",
                "\"vocab_size\":1000000000000",
                "vocab_size is 1000000000000, 1 to 16777216",
            ),
            (
                "\"intermediate_size\":16",
                "\"intermediate_size\":4611686018427387904",
                "intermediate_size is 4611",
            ),
            ("\"intermediate_size\":16", "\"intermediate_size\":0", "intermediate_size is 0, 1 to"),
            ("\"hidden_size\":8", "\"hidden_size\":0", "hidden_size is 0, 1 to"),
            ("\"hidden_size\":8", "\"hidden_size\":65536", "hidden_size is 65536, 1 to 37837"),
            (
                "\"hidden_size\":8",
                "\"hidden_size\":18446744073709551615",
                "hidden_size is 18446744073709551615",
            ),
            (
                "\"num_hidden_layers\":2",
                "\"num_hidden_layers\":1000000",
                "num_hidden_layers is 1000000, 1 to 1024",
            ),
            ("\"num_attention_heads\":2", "\"num_attention_heads\":0", "num_attention_heads is 0, 1 to"),
            ("position_embeddings\":12", "position_embeddings\":0", "max_position_embeddings is 0, 1 to"),
            ("\"vocab_size\":30", "\"vocab_size\":30,\"type_vocab_size\":0", "type_vocab_size is 0, 1 to"),
        ];
        for (from, to, wanted) in cases {
            assert!(SMALL.contains(from), "{from}");
            let error = ModelConfig::parse(&SMALL.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(wanted) && error.contains("hint:"), "{error}");
        }
        let text = SMALL.replace("\"bert\"", "\"roberta\"");
        let text = text.replace("\"vocab_size\"", "\"pad_token_id\":18446744073709551615,\"vocab_size\"");
        let error = ModelConfig::parse(&text).unwrap_err().to_string();
        assert!(error.contains("max_position_embeddings is 12"), "{error}");
    }
}
