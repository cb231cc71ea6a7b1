//! Shapes of well-known models by name, to be run with random weights. Each is the model's own config.json, cut to the
//! keys that are read.

/// Name and config.json.
pub const SHAPES: [(&str, &str); 8] = [
    (
        "minilm",
        r#"{"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
        "intermediate_size": 1536, "vocab_size": 30522, "max_position_embeddings": 512}"#,
    ),
    (
        "bge-small",
        r#"{"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 12,
        "intermediate_size": 1536, "vocab_size": 30522, "max_position_embeddings": 512}"#,
    ),
    (
        "bge-base",
        r#"{"model_type": "bert", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "intermediate_size": 3072, "vocab_size": 30522, "max_position_embeddings": 512}"#,
    ),
    (
        "bge-large",
        r#"{"model_type": "bert", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
        "intermediate_size": 4096, "vocab_size": 30522, "max_position_embeddings": 512}"#,
    ),
    (
        "qwen3-embedding-0.6b",
        r#"{"model_type": "qwen3", "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072, "vocab_size": 151669,
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1000000}"#,
    ),
    (
        "qwen3-embedding-4b",
        r#"{"model_type": "qwen3", "hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 9728, "vocab_size": 151665,
        "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1000000}"#,
    ),
    (
        "qwen3-embedding-8b",
        r#"{"model_type": "qwen3", "hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 12288, "vocab_size": 151665,
        "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1000000}"#,
    ),
    (
        "mistral-7b",
        r#"{"model_type": "mistral", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 32000,
        "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "rope_theta": 10000, "sliding_window": null}"#,
    ),
];

/// The names of all shapes, for a message.
pub fn names() -> String {
    SHAPES.map(|(name, _)| name).join(", ")
}

/// The config.json of a shape.
pub fn shape(name: &str) -> Option<&'static str> {
    SHAPES.iter().find(|(known, _)| *known == name).map(|(_, config)| *config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ModelConfig;

    /// Weights that a layer multiplies with, and the table of words, in millions.
    fn millions(name: &str) -> usize {
        let config = ModelConfig::parse(shape(name).unwrap()).unwrap();
        let layer: usize =
            config.roles().iter().map(|role| role.widths(&config).iter().product::<usize>()).sum();
        (config.layers * layer + config.vocabulary * config.hidden) / 1_000_000
    }

    #[test]
    fn shapes_have_the_sizes_of_their_models() {
        let wanted = [22, 32, 108, 333, 595, 4021, 7566, 7110];
        for ((name, _), wanted) in SHAPES.iter().zip(wanted) {
            assert_eq!(millions(name), wanted, "{name}");
        }
        assert!(shape("bge-huge").is_none());
    }
}
