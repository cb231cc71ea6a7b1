//! Shapes of well-known models, for measuring without a download.

use crate::{ModelConfig, Result};

/// Names that [`shape`] knows.
pub const SHAPES: [&str; 4] = ["minilm", "bge-small", "bge-base", "bge-large"];

/// The architecture of that name, without weights.
pub fn shape(name: &str) -> Option<Result<ModelConfig>> {
    // hidden, layers, heads, intermediate
    let sizes = match name {
        "minilm" => [384, 6, 12, 1536],
        "bge-small" => [384, 12, 12, 1536],
        "bge-base" => [768, 12, 12, 3072],
        "bge-large" => [1024, 24, 16, 4096],
        _ => return None,
    };
    let [hidden, layers, heads, intermediate] = sizes;
    Some(ModelConfig::parse(&format!(
        "{{\"model_type\": \"bert\", \"hidden_size\": {hidden}, \"num_hidden_layers\": {layers}, \
         \"num_attention_heads\": {heads}, \"intermediate_size\": {intermediate}, \"vocab_size\": 30522, \
         \"max_position_embeddings\": 512}}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_shape_and_no_other() {
        for name in SHAPES {
            assert!(shape(name).unwrap().unwrap().layers >= 6);
        }
        assert!(shape("bge").is_none());
    }
}
