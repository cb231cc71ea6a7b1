//! A member's key and certificate, kept in a folder of its own: `key.pem` (0600), `certificate.pem`,
//! `authority.pem` and, for `ctl`, `scheduler.txt` (the address to dial).
//!
//! The key is made where it is used and never leaves that machine; a renewal makes a new one.

use std::path::Path;
use std::time::SystemTime;

use motley_scheduler_core::wire::join::Principal;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::{LinkError, certificate, files};

const KEY_FILE: &str = "key.pem";
const NEXT_KEY_FILE: &str = "key-next.pem";
const CERTIFICATE_FILE: &str = "certificate.pem";
const AUTHORITY_FILE: &str = "authority.pem";
const SCHEDULER_FILE: &str = "scheduler.txt";
const ADVERTISED_FILE: &str = "advertised.txt";

const REJOIN: &str = "join again with a new token (`ctl token create` on the scheduler prints one)";

/// Key, certificate, and the authority that signed it.
#[derive(Debug, Clone)]
pub struct Identity {
    key: std::sync::Arc<KeyPair>,
    certificate: CertificateDer<'static>,
    authority: CertificateDer<'static>,
    principal: Principal,
    begins: SystemTime,
    expires: SystemTime,
}

/// A key that waits for its certificate.
#[derive(Debug)]
pub struct PendingIdentity {
    key: KeyPair,
    request: Vec<u8>,
}

impl Identity {
    /// Makes a key and the request to have it certified.
    ///
    /// # Errors
    /// The system has no entropy.
    pub fn request() -> Result<PendingIdentity, LinkError> {
        let key = KeyPair::generate().map_err(LinkError::certificate)?;
        let request = CertificateParams::default().serialize_request(&key).map_err(LinkError::certificate)?;
        Ok(PendingIdentity { request: request.der().to_vec(), key })
    }

    /// Reads an identity.
    ///
    /// # Errors
    /// A file is missing or unreadable, or key and certificate do not belong together.
    pub fn load(folder: &Path) -> Result<Identity, LinkError> {
        if !folder.join(CERTIFICATE_FILE).exists() {
            return Err(missing(folder));
        }
        let certificate = read_certificate(&folder.join(CERTIFICATE_FILE))?;
        let authority = read_certificate(&folder.join(AUTHORITY_FILE))?;
        let with = |name: &str| {
            let key = read_key(&folder.join(name))?;
            PendingIdentity { key, request: Vec::new() }
                .finish(&certificate, &authority)
                .map_err(|error| broken(folder, error))
        };
        match with(KEY_FILE) {
            Err(LinkError::Identity { .. }) if folder.join(NEXT_KEY_FILE).exists() => with(NEXT_KEY_FILE),
            other => other,
        }
    }

    /// Writes an identity. Whatever moment a crash picks, [`Identity::load`] finds a pair that belongs together:
    /// the new key waits beside the old one until the new certificate is there.
    ///
    /// # Errors
    /// The folder cannot be made or written.
    pub fn save(&self, folder: &Path) -> Result<(), LinkError> {
        files::create_private_folder(folder)?;
        let write = |name: &str, text: String| files::write_private(&folder.join(name), text.as_bytes());
        write(AUTHORITY_FILE, certificate_pem(&self.authority))?;
        write(NEXT_KEY_FILE, self.key.serialize_pem())?;
        write(CERTIFICATE_FILE, certificate_pem(&self.certificate))?;
        let (next, path) = (folder.join(NEXT_KEY_FILE), folder.join(KEY_FILE));
        std::fs::rename(next, &path).map_err(|error| LinkError::file(&path, error))
    }

    pub fn principal(&self) -> &Principal {
        &self.principal
    }

    pub fn expires(&self) -> SystemTime {
        self.expires
    }

    /// Two thirds through its life.
    pub fn renew_at(&self) -> SystemTime {
        let life = self.expires.duration_since(self.begins).unwrap_or_default();
        self.begins + life * 2 / 3
    }

    /// The authority's certificate (DER).
    pub fn authority(&self) -> &[u8] {
        &self.authority
    }

    pub(crate) fn chain_and_key(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (vec![self.certificate.clone()], PrivateKeyDer::Pkcs8(self.key.serialize_der().into()))
    }
}

impl PendingIdentity {
    /// PKCS #10, DER.
    pub fn request_der(&self) -> &[u8] {
        &self.request
    }

    /// Joins the key and its certificate (both DER).
    ///
    /// # Errors
    /// The certificate names no principal, or belongs to another key.
    pub fn finish(self, certificate: &[u8], authority: &[u8]) -> Result<Identity, LinkError> {
        let facts = certificate::read(certificate)?;
        let principal =
            facts.principal.ok_or_else(|| LinkError::certificate("it names neither a node nor a user"))?;
        if !certificate::holds_key(certificate, self.key.public_key_raw())? {
            return Err(LinkError::certificate("it belongs to another key"));
        }
        certificate::read(authority)?;
        Ok(Identity {
            key: std::sync::Arc::new(self.key),
            certificate: CertificateDer::from(certificate.to_vec()),
            authority: CertificateDer::from(authority.to_vec()),
            principal,
            begins: facts.begins,
            expires: facts.expires,
        })
    }
}

/// The address of the scheduler that an identity belongs to.
///
/// # Errors
/// `scheduler.txt` is missing or unreadable.
pub fn scheduler_address(folder: &Path) -> Result<String, LinkError> {
    let path = folder.join(SCHEDULER_FILE);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(missing(folder)),
        Err(error) => Err(LinkError::file(&path, error)),
    }
}

/// Writes `scheduler.txt` beside an identity.
///
/// # Errors
/// The folder cannot be written.
pub fn save_scheduler_address(folder: &Path, address: &str) -> Result<(), LinkError> {
    files::write_private(&folder.join(SCHEDULER_FILE), format!("{address}\n").as_bytes())
}

/// What other machines dial to reach the scheduler of an identity, where the scheduler itself has written it there.
pub fn advertised_address(folder: &Path) -> Option<String> {
    let text = std::fs::read_to_string(folder.join(ADVERTISED_FILE)).ok()?;
    Some(text.trim().to_owned())
}

/// Writes `advertised.txt` beside an identity.
///
/// # Errors
/// The folder cannot be written.
pub fn save_advertised_address(folder: &Path, address: &str) -> Result<(), LinkError> {
    files::write_private(&folder.join(ADVERTISED_FILE), format!("{address}\n").as_bytes())
}

/// A certificate as text.
pub(crate) fn certificate_pem(certificate: &CertificateDer<'_>) -> String {
    pem::encode(&pem::Pem::new("CERTIFICATE", certificate.to_vec()))
}

pub(crate) fn read_certificate(path: &Path) -> Result<CertificateDer<'static>, LinkError> {
    let text = std::fs::read(path).map_err(|error| LinkError::file(path, error))?;
    CertificateDer::from_pem_slice(&text).map_err(|error| broken(path, error))
}

pub(crate) fn read_key(path: &Path) -> Result<KeyPair, LinkError> {
    let text = std::fs::read_to_string(path).map_err(|error| LinkError::file(path, error))?;
    KeyPair::from_pem(&text).map_err(|error| broken(path, error))
}

fn missing(folder: &Path) -> LinkError {
    LinkError::Identity {
        path: folder.to_owned(),
        reason: "no identity is here".to_owned(),
        hint: "start `ctl scheduler` on this machine, or `ctl login` with a token of `ctl token create`",
    }
}

fn broken(path: &Path, error: impl std::fmt::Display) -> LinkError {
    LinkError::Identity { path: path.to_owned(), reason: error.to_string(), hint: REJOIN }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::Authority;
    use crate::authority::Validity;
    use motley_scheduler_core::id::NodeId;

    fn identity(authority: &Authority) -> Identity {
        let validity = Validity::starting(SystemTime::now(), Duration::from_secs(86_400));
        authority.issue(&Principal::Node { node: NodeId(3) }, validity).unwrap()
    }

    #[test]
    fn identity_survives_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let identity = identity(&Authority::create().unwrap());
        identity.save(folder.path()).unwrap();
        save_scheduler_address(folder.path(), "10.0.0.5:7443").unwrap();
        let loaded = Identity::load(folder.path()).unwrap();
        assert_eq!(loaded.principal(), identity.principal());
        assert_eq!(loaded.certificate, identity.certificate);
        assert_eq!(loaded.authority, identity.authority);
        assert_eq!(scheduler_address(folder.path()).unwrap(), "10.0.0.5:7443");
        assert!(loaded.renew_at() > SystemTime::now() && loaded.renew_at() < loaded.expires());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = std::fs::metadata(folder.path().join(KEY_FILE)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn mixed_or_broken_identities_are_refused_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create().unwrap();
        identity(&authority).save(folder.path()).unwrap();
        let key = std::fs::read(folder.path().join(KEY_FILE)).unwrap();
        identity(&authority).save(folder.path()).unwrap();
        std::fs::write(folder.path().join(KEY_FILE), key).unwrap();
        let error = Identity::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("another key") && error.contains("hint:"), "{error}");
        std::fs::write(folder.path().join(KEY_FILE), "nonsense").unwrap();
        assert!(Identity::load(folder.path()).unwrap_err().to_string().contains("hint:"));
        std::fs::remove_file(folder.path().join(KEY_FILE)).unwrap();
        assert!(matches!(Identity::load(folder.path()), Err(LinkError::File { .. })));
        let error = Identity::load(&folder.path().join("nowhere")).unwrap_err().to_string();
        assert!(error.contains("no identity is here") && error.contains("ctl login"), "{error}");
    }
}
