//! Decoders as encoders of text, from the text of their config.json: Qwen3, Qwen2, Mistral, Llama.
//!
//! They differ from each other in three places alone: Qwen3 normalises each query and key head, Qwen2 adds biases to
//! query, key and value, and defaults of missing keys are each family's own. Sliding windows are not computed; a
//! model that has them takes texts of at most one window, within which they change nothing.

use motley_kernels::gelu;
use serde::Deserialize;
use serde_json::Value;

use super::config::{FILE, ModelConfig};
use crate::{Error, Result};

/// Longest text: the angles of so many positions are 64 MiB at the usual width of a head, and no embedder today was
/// trained on longer ones.
const POSITIONS_MAX: usize = 131_072;

/// What decoders have beside what all models have.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoder {
    /// θ of the rotary position embedding.
    pub rotation_base: f64,
    /// A token sees itself and what stands before it; otherwise the whole text.
    pub is_causal: bool,
    /// Query and key heads are normalised before the rotation.
    pub head_norms: bool,
    /// Query, key and value add biases.
    pub query_bias: bool,
    pub attention_output_bias: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Qwen3,
    Qwen2,
    Mistral,
    Llama,
}

impl Family {
    pub(super) fn of(model_type: &str) -> Option<Family> {
        match model_type {
            "qwen3" => Some(Family::Qwen3),
            "qwen2" => Some(Family::Qwen2),
            "mistral" => Some(Family::Mistral),
            "llama" => Some(Family::Llama),
            _ => None,
        }
    }
}

#[derive(Deserialize)]
struct Raw {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    intermediate_size: usize,
    vocab_size: usize,
    max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f64>,
    rope_theta: Option<f64>,
    rope_scaling: Option<Value>,
    /// Newer files hold the two before in here.
    rope_parameters: Option<Value>,
    partial_rotary_factor: Option<f64>,
    hidden_act: Option<String>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    sliding_window: Option<usize>,
    #[serde(default)]
    use_sliding_window: bool,
    is_causal: Option<bool>,
    use_bidirectional_attention: Option<bool>,
    attention_dropout: Option<f32>,
}

/// Reads the text of config.json. Sizes are not checked yet.
///
/// # Errors
/// Malformed text, or a setting that is not computed here.
pub(super) fn parse(text: &str, family: Family, model_type: String) -> Result<ModelConfig> {
    let raw: Raw = serde_json::from_str(text)
        .map_err(|error| Error::Malformed { file: FILE, problem: error.to_string() })?;
    let rotation_base = rotation_base(&raw)?;
    match raw.hidden_act.as_deref() {
        None | Some("silu" | "swish") => {}
        Some(other) => return Err(unsupported("hidden_act", other, "silu")),
    }
    if raw.mlp_bias {
        return Err(unsupported("mlp_bias", "true", "false"));
    }
    let qwen2 = family == Family::Qwen2;
    let kv_heads = raw.num_key_value_heads.unwrap_or(match family {
        Family::Llama => raw.num_attention_heads,
        Family::Mistral => 8,
        Family::Qwen2 | Family::Qwen3 => 32,
    });
    let head_dim = match (raw.head_dim, family) {
        (Some(head_dim), _) => head_dim,
        (None, Family::Qwen3) => 128,
        (None, _) => raw.hidden_size / raw.num_attention_heads.max(1),
    };
    Ok(ModelConfig {
        model_type,
        hidden: raw.hidden_size,
        layers: raw.num_hidden_layers,
        heads: raw.num_attention_heads,
        kv_heads,
        head_dim,
        intermediate: raw.intermediate_size,
        vocabulary: raw.vocab_size,
        position_rows: positions(&raw, family),
        position_first: 0,
        token_types: 1,
        layer_norm_epsilon: raw.rms_norm_eps.unwrap_or(1e-6) as f32,
        activation: gelu::Kind::Exact,
        hidden_dropout: 0.0,
        attention_dropout: raw.attention_dropout.unwrap_or(0.0),
        decoder: Some(Decoder {
            rotation_base,
            is_causal: raw.is_causal.unwrap_or(true) && !raw.use_bidirectional_attention.unwrap_or(false),
            head_norms: family == Family::Qwen3,
            query_bias: qwen2 || raw.attention_bias,
            attention_output_bias: !qwen2 && raw.attention_bias,
        }),
    })
}

/// Positions that can be computed: within one window where there are windows.
fn positions(raw: &Raw, family: Family) -> usize {
    let window = match family {
        Family::Mistral => raw.sliding_window,
        Family::Qwen2 | Family::Qwen3 => raw.sliding_window.filter(|_| raw.use_sliding_window),
        Family::Llama => None,
    };
    let default = match family {
        Family::Mistral => 131_072,
        Family::Qwen2 | Family::Qwen3 => 32_768,
        Family::Llama => 2048,
    };
    let positions = raw.max_position_embeddings.unwrap_or(default);
    positions.min(window.unwrap_or(positions)).min(POSITIONS_MAX)
}

/// θ, from either place, of a rotation that is not scaled.
fn rotation_base(raw: &Raw) -> Result<f64> {
    for (setting, value) in [("rope_scaling", &raw.rope_scaling), ("rope_parameters", &raw.rope_parameters)] {
        let Some(value) = value else { continue };
        let kind = value.get("rope_type").or_else(|| value.get("type"));
        match kind.map_or(Some("default"), Value::as_str) {
            Some("default") => {}
            other => return Err(unsupported(setting, other.unwrap_or("unreadable"), "absent or default")),
        }
    }
    let parameter = |key: &str| raw.rope_parameters.as_ref().and_then(|all| all.get(key)?.as_f64());
    let share = raw.partial_rotary_factor.or_else(|| parameter("partial_rotary_factor")).unwrap_or(1.0);
    if share != 1.0 {
        return Err(unsupported("partial_rotary_factor", &share.to_string(), "1"));
    }
    let base = raw.rope_theta.or_else(|| parameter("rope_theta")).unwrap_or(1e4);
    if !(base.is_finite() && base >= 1.0) {
        return Err(unsupported("rope_theta", &base.to_string(), "a number of at least 1"));
    }
    Ok(base)
}

fn unsupported(setting: &str, found: &str, supported: &'static str) -> Error {
    Error::UnsupportedSetting { file: FILE, setting: setting.to_owned(), found: found.to_owned(), supported }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QWEN3: &str = r#"{"model_type":"qwen3","hidden_size":1024,"num_hidden_layers":28,
        "num_attention_heads":16,"num_key_value_heads":8,"head_dim":128,"intermediate_size":3072,
        "vocab_size":151669,"max_position_embeddings":32768,"rms_norm_eps":1e-6,"rope_theta":1000000,
        "rope_scaling":null,"attention_bias":false,"hidden_act":"silu","sliding_window":null,
        "use_sliding_window":false,"tie_word_embeddings":true}"#;

    fn parse(text: &str) -> Result<ModelConfig> {
        ModelConfig::parse(text)
    }

    #[test]
    fn families_differ_where_they_do() {
        let config = parse(QWEN3).unwrap();
        let decoder = config.decoder.clone().unwrap();
        assert_eq!((config.kv_heads, config.head_dim, config.max_positions()), (8, 128, 32_768));
        assert_eq!((decoder.rotation_base, decoder.is_causal, decoder.head_norms), (1e6, true, true));
        assert_eq!((decoder.query_bias, decoder.attention_output_bias), (false, false));
        let without = QWEN3.replace("\"head_dim\":128,", "");
        assert_eq!(parse(&without).unwrap().head_dim, 128);
        let qwen2 = parse(&without.replace("qwen3", "qwen2")).unwrap();
        let decoder = qwen2.decoder.unwrap();
        assert_eq!((qwen2.head_dim, decoder.head_norms), (64, false));
        assert_eq!((decoder.query_bias, decoder.attention_output_bias), (true, false));
        let biased = QWEN3.replace("qwen3", "llama").replace("_bias\":false", "_bias\":true");
        let decoder = parse(&biased).unwrap().decoder.unwrap();
        assert_eq!((decoder.query_bias, decoder.attention_output_bias), (true, true));
        let all = parse(&QWEN3.replace("qwen3", "llama").replace("\"num_key_value_heads\":8,", "")).unwrap();
        assert_eq!(all.kv_heads, 16);
    }

    #[test]
    fn both_ways_to_see_the_whole_text_and_both_places_of_theta_are_read() {
        for key in ["\"is_causal\":false", "\"use_bidirectional_attention\":true"] {
            let text = QWEN3.replace("\"rope_scaling\":null", key);
            assert!(!parse(&text).unwrap().decoder.unwrap().is_causal, "{key}");
        }
        let newer = "\"rope_parameters\":{\"rope_theta\":500000.0,\"rope_type\":\"default\"}";
        let text = QWEN3.replace("\"rope_theta\":1000000", newer);
        assert_eq!(parse(&text).unwrap().decoder.unwrap().rotation_base, 5e5);
    }

    #[test]
    fn a_window_bounds_the_longest_text() {
        let windowed = QWEN3.replace("\"sliding_window\":null", "\"sliding_window\":4096");
        assert_eq!(parse(&windowed).unwrap().max_positions(), 32_768);
        assert_eq!(parse(&windowed.replace("qwen3", "mistral")).unwrap().max_positions(), 4096);
        let used = windowed.replace("\"use_sliding_window\":false", "\"use_sliding_window\":true");
        assert_eq!(parse(&used).unwrap().max_positions(), 4096);
        let endless = QWEN3.replace("embeddings\":32768", "embeddings\":10000000");
        assert_eq!(parse(&endless).unwrap().max_positions(), POSITIONS_MAX);
    }

    #[test]
    fn what_is_not_computed_is_refused_by_name() {
        let scaling = r#""rope_scaling":{"rope_type":"yarn","factor":4.0}"#;
        let older = r#""rope_scaling":{"type":"linear","factor":4.0}"#;
        let newer = r#""rope_parameters":{"rope_type":"llama3","rope_theta":500000.0}"#;
        for (from, to, wanted) in [
            ("\"rope_scaling\":null", scaling, "rope_scaling = yarn"),
            ("\"rope_scaling\":null", older, "rope_scaling = linear"),
            ("\"rope_scaling\":null", newer, "rope_parameters = llama3"),
            ("\"rope_scaling\":null", "\"partial_rotary_factor\":0.5", "partial_rotary_factor = 0.5"),
            ("\"rope_scaling\":null", "\"mlp_bias\":true", "mlp_bias = true"),
            ("silu", "gelu", "hidden_act = gelu"),
            ("1000000", "0", "rope_theta = 0"),
            ("\"num_key_value_heads\":8", "\"num_key_value_heads\":3", "num_attention_heads is 16"),
            ("\"num_key_value_heads\":8", "\"num_key_value_heads\":0", "num_key_value_heads is 0"),
            ("\"head_dim\":128", "\"head_dim\":127", "head_dim is 127, an even number"),
            ("\"head_dim\":128", "\"head_dim\":99999999", "head_dim is 99999999"),
            ("\"intermediate_size\":3072", "\"intermediate_size\":4000000", "intermediate_size is 4000000"),
            ("\"rms_norm_eps\":1e-6", "\"rms_norm_eps\":-1", "rms_norm_eps -1"),
        ] {
            let text = QWEN3.replace(from, to);
            assert_ne!(text, QWEN3, "{from}");
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.contains(wanted), "{wanted}: {error}");
        }
    }
}
