//! What stands in a certificate: whom it speaks for, and until when.
//!
//! The principal is a URI in the subject's alternative names, so that no path of the program ever guesses it from
//! a host name or an address:
//!
//! ```text
//! motley://node/7
//! motley://user/<name, %-escaped>?role=admin
//! ```

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use motley_scheduler_core::authorize::Role;
use motley_scheduler_core::id::NodeId;
use motley_scheduler_core::wire::join::Principal;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::LinkError;

/// Facts of a certificate.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// Absent in the authority's own certificate and in the server's.
    pub principal: Option<Principal>,
    pub begins: SystemTime,
    pub expires: SystemTime,
}

/// Reads a certificate (DER). Checks no signature: TLS does that.
pub(crate) fn read(der: &[u8]) -> Result<Facts, LinkError> {
    let (rest, certificate) = X509Certificate::from_der(der).map_err(LinkError::certificate)?;
    if !rest.is_empty() {
        return Err(LinkError::certificate("bytes behind its end"));
    }
    let names = certificate.subject_alternative_name().map_err(LinkError::certificate)?;
    let principal = names.iter().flat_map(|names| &names.value.general_names).find_map(|name| match name {
        GeneralName::URI(uri) => parse_principal(uri),
        _ => None,
    });
    let validity = certificate.validity();
    Ok(Facts {
        principal,
        begins: moment(validity.not_before.timestamp()),
        expires: moment(validity.not_after.timestamp()),
    })
}

/// Whether the certificate is of this public key (as the key's own algorithm encodes it).
pub(crate) fn holds_key(der: &[u8], public_key: &[u8]) -> Result<bool, LinkError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(LinkError::certificate)?;
    Ok(certificate.public_key().subject_public_key.data.as_ref() == public_key)
}

fn moment(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds.max(0).unsigned_abs())
}

/// The URI of a principal.
pub(crate) fn principal_uri(principal: &Principal) -> String {
    match principal {
        Principal::Node { node } => format!("motley://node/{node}"),
        Principal::User { name, role } => {
            format!("motley://user/{}?role={}", escape(name), role.name())
        }
    }
}

pub(crate) fn parse_principal(uri: &str) -> Option<Principal> {
    let rest = uri.strip_prefix("motley://")?;
    if let Some(number) = rest.strip_prefix("node/") {
        let node = NodeId(number.parse().ok()?);
        return Some(Principal::Node { node });
    }
    let (name, role) = rest.strip_prefix("user/")?.split_once("?role=")?;
    let role = Role::named(role)?;
    Some(Principal::User { name: unescape(name)?, role })
}

/// Letters, digits, `-`, `_` and `.` stay; everything else is escaped byte by byte.
fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let write = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(write).collect()
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte == b'%' {
            let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &rest[2..];
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn principal_survives_its_uri() {
        let node = Principal::Node { node: NodeId(7) };
        assert_eq!(principal_uri(&node), "motley://node/7");
        assert_eq!(parse_principal("motley://node/7"), Some(node));
        for name in ["ann", "Ännchen von Tharau", "a?role=admin", "100%", ""] {
            for role in Role::ALL {
                let user = Principal::User { name: name.to_owned(), role };
                assert_eq!(parse_principal(&principal_uri(&user)), Some(user), "{name}");
            }
        }
    }

    #[test]
    fn other_uris_speak_for_nobody() {
        let cases = [
            "",
            "motley://",
            "motley://node/",
            "motley://node/-1",
            "motley://user/ann",
            "http://node/7",
            "motley://user/ann?role=root",
            "motley://user/a%?role=admin",
            "motley://user/%FF?role=admin",
        ];
        for uri in cases {
            assert_eq!(parse_principal(uri), None, "{uri}");
        }
    }

    #[test]
    fn garbage_is_no_certificate() {
        assert!(read(b"").is_err());
        assert!(read(&[0x30; 400]).is_err());
    }
}
