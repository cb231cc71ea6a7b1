//! What weight files call a model's tensors, and their shapes.

use crate::tape::NormAt;
use crate::{ModelConfig, Role};

/// The tensor that tells the prefix of all others.
pub(super) fn landmark(config: &ModelConfig) -> &'static str {
    if config.decoder.is_some() { "embed_tokens.weight" } else { "embeddings.word_embeddings.weight" }
}

pub(super) const POSITIONS: &str = "embeddings.position_embeddings.weight";
pub(super) const TOKEN_TYPES: &str = "embeddings.token_type_embeddings.weight";

/// Names of a norm's factor and, in the BERT family, of what it adds.
pub(super) fn norm(config: &ModelConfig, at: NormAt) -> (String, Option<String>) {
    if config.decoder.is_some() {
        let path = match at {
            NormAt::Frame => "norm".to_owned(),
            NormAt::Attention(layer) => format!("layers.{layer}.input_layernorm"),
            NormAt::Output(layer) => format!("layers.{layer}.post_attention_layernorm"),
        };
        return (format!("{path}.weight"), None);
    }
    let path = match at {
        NormAt::Frame => "embeddings".to_owned(),
        NormAt::Attention(layer) => format!("encoder.layer.{layer}.attention.output"),
        NormAt::Output(layer) => format!("encoder.layer.{layer}.output"),
    };
    (format!("{path}.LayerNorm.weight"), Some(format!("{path}.LayerNorm.bias")))
}

/// Names of the factors of query and key heads.
pub(super) fn head_norms(layer: usize) -> [String; 2] {
    ["q_norm", "k_norm"].map(|norm| format!("layers.{layer}.self_attn.{norm}.weight"))
}

pub(super) fn weight(config: &ModelConfig, layer: usize, role: Role) -> String {
    format!("{}.weight", config.module_path(layer, role))
}

pub(super) fn bias(config: &ModelConfig, layer: usize, role: Role) -> String {
    format!("{}.bias", config.module_path(layer, role))
}

/// Every tensor that a model is loaded from, with its shape.
pub(super) fn all(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let hidden = config.hidden;
    let mut all = vec![(landmark(config).to_owned(), vec![config.vocabulary, hidden])];
    if config.decoder.is_none() {
        all.push((POSITIONS.to_owned(), vec![config.position_rows, hidden]));
        all.push((TOKEN_TYPES.to_owned(), vec![config.token_types, hidden]));
    }
    let mut norms = vec![NormAt::Frame];
    for layer in 0..config.layers {
        for role in config.roles() {
            let [inputs, outputs] = role.widths(config);
            all.push((weight(config, layer, *role), vec![outputs, inputs]));
            if config.has_bias(*role) {
                all.push((bias(config, layer, *role), vec![outputs]));
            }
        }
        if config.decoder.as_ref().is_some_and(|decoder| decoder.head_norms) {
            all.extend(head_norms(layer).map(|name| (name, vec![config.head_dim])));
        }
        norms.extend([NormAt::Attention(layer), NormAt::Output(layer)]);
    }
    for at in norms {
        let (gamma, beta) = norm(config, at);
        all.extend([Some(gamma), beta].into_iter().flatten().map(|name| (name, vec![hidden])));
    }
    all
}
