//! Join tokens: `motley1.<CA fingerprint, 64 hexadecimal digits>.<secret, 64 hexadecimal digits>`.
//!
//! The fingerprint tells the joiner whom it may show the secret to. The scheduler keeps the secret's hash alone.

use std::fmt;
use std::str::FromStr;

use motley_scheduler_core::id::ContentHash;
use sha2::{Digest, Sha256};

use crate::LinkError;

const PREFIX: &str = "motley1";

/// A secret that admits its bearer once.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    fingerprint: ContentHash,
    secret: String,
}

impl Token {
    /// A new secret of 256 bits for members of the authority with this fingerprint.
    ///
    /// # Errors
    /// The system has no entropy.
    pub fn generate(fingerprint: &ContentHash) -> Result<Token, LinkError> {
        let mut bytes = [0_u8; 32];
        getrandom::fill(&mut bytes).map_err(|error| LinkError::Entropy { reason: error.to_string() })?;
        Ok(Token { fingerprint: *fingerprint, secret: ContentHash(bytes).to_string() })
    }

    /// SHA-256 of the authority's certificate (DER).
    pub fn fingerprint(&self) -> ContentHash {
        self.fingerprint
    }

    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// What the scheduler stores.
    pub fn secret_hash(&self) -> ContentHash {
        Self::hash_secret(&self.secret)
    }

    /// The same, of a secret that came in a join request.
    pub fn hash_secret(secret: &str) -> ContentHash {
        ContentHash(Sha256::digest(secret.as_bytes()).into())
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}.{}.{}", self.fingerprint, self.secret)
    }
}

/// Without the secret: tokens end up in logs by way of `{:?}`.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", self.fingerprint)
    }
}

impl FromStr for Token {
    type Err = LinkError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || LinkError::Token { text: text.chars().take(20).chain("...".chars()).collect() };
        let mut parts = text.trim().split('.');
        let (Some(PREFIX), Some(fingerprint), Some(secret), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(error());
        };
        let secret: ContentHash = secret.parse().map_err(|_| error())?;
        Ok(Token { fingerprint: fingerprint.parse().map_err(|_| error())?, secret: secret.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_survives_its_text_and_hides_its_secret_from_debug() {
        let token = Token::generate(&ContentHash([7; 32])).unwrap();
        let read: Token = format!(" {token}\n").parse().unwrap();
        assert_eq!(read, token);
        assert_eq!(read.secret_hash(), Token::hash_secret(token.secret()));
        assert!(!format!("{token:?}").contains(token.secret()));
        assert_ne!(Token::generate(&ContentHash([7; 32])).unwrap(), token);
    }

    #[test]
    fn anything_else_is_no_token_and_is_not_repeated_in_full() {
        let token = Token::generate(&ContentHash([7; 32])).unwrap().to_string();
        let cases = [
            "",
            "motley1",
            "motley1..",
            &token[..token.len() - 1],
            &format!("{token}.x"),
            &token.replace("1.", "2."),
        ];
        for text in cases {
            let error = text.parse::<Token>().unwrap_err().to_string();
            assert!(error.contains("hint:"), "{error}");
            assert!(!error.contains(&token[75..]), "{error}");
        }
    }
}
