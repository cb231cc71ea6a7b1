//! Bearer keys: kept as SHA-256, compared in constant time.

use std::path::Path;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::ServeError;

/// Who may call; without a file everybody who reaches the port.
#[derive(Debug, Clone, Default)]
pub(crate) struct Keys {
    hashes: Option<Vec<[u8; 32]>>,
}

/// A line of the form `sha256:<64 hexadecimal digits>` is the hash of a key; any other line is a key.
const HASH_PREFIX: &str = "sha256:";

impl Keys {
    /// Reads a file of one key a line; blank lines and lines that begin with `#` are skipped.
    ///
    /// # Errors
    /// The file cannot be read, holds no key, or a hash is malformed.
    pub(crate) fn read(path: &Path, name: &str) -> Result<Keys, ServeError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| ServeError::Keys { file: name.to_owned(), message: error.to_string() })?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let hashes = lines.map(|line| hash_of_line(line, name)).collect::<Result<Vec<_>, _>>()?;
        if hashes.is_empty() {
            let message = "no key in it".to_owned();
            return Err(ServeError::Keys { file: name.to_owned(), message });
        }
        Ok(Keys { hashes: Some(hashes) })
    }

    /// Whether an `authorization` header's value lets its sender in.
    pub(crate) fn admit(&self, authorization: Option<&str>) -> bool {
        let Some(hashes) = &self.hashes else { return true };
        let Some((scheme, key)) = authorization.and_then(|value| value.split_once(' ')) else { return false };
        if !scheme.eq_ignore_ascii_case("bearer") {
            return false;
        }
        let presented: [u8; 32] = Sha256::digest(key.trim().as_bytes()).into();
        // Every key is compared, whichever matches: the time tells nothing.
        let mut found = subtle::Choice::from(0);
        for hash in hashes {
            found |= hash.ct_eq(&presented);
        }
        found.into()
    }
}

fn hash_of_line(line: &str, name: &str) -> Result<[u8; 32], ServeError> {
    let Some(digits) = line.strip_prefix(HASH_PREFIX) else {
        return Ok(Sha256::digest(line.as_bytes()).into());
    };
    let hash: Result<motley_scheduler_core::id::ContentHash, _> = digits.trim().parse();
    hash.map(|hash| hash.0)
        .map_err(|error| ServeError::Keys { file: name.to_owned(), message: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> Result<Keys, ServeError> {
        let path = std::env::temp_dir().join(format!("motley-keys-{}-{}", std::process::id(), text.len()));
        std::fs::write(&path, text).unwrap();
        let keys = Keys::read(&path, "keys.txt");
        std::fs::remove_file(&path).unwrap();
        keys
    }

    #[test]
    fn only_listed_keys_are_admitted() {
        let hashed = motley_scheduler_core::id::ContentHash(Sha256::digest(b"second").into());
        let keys = keys(&format!("# team a\nfirst\n\nsha256:{hashed}\n")).unwrap();
        for (value, admitted) in [
            (Some("Bearer first"), true),
            (Some("bearer second"), true),
            (Some("Bearer  first "), true),
            (Some("Bearer third"), false),
            (Some("Basic first"), false),
            (Some("first"), false),
            (Some("Bearer "), false),
            (None, false),
        ] {
            assert_eq!(keys.admit(value), admitted, "{value:?}");
        }
        assert!(Keys::default().admit(None));
    }

    #[test]
    fn a_file_without_a_usable_key_is_refused() {
        for text in ["", "# only a comment\n", "sha256:12\n"] {
            assert!(keys(text).unwrap_err().to_string().contains("keys.txt"), "{text:?}");
        }
        assert!(Keys::read(Path::new("/nowhere/keys"), "keys.txt").is_err());
    }
}
