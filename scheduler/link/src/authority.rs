//! The scheduler's certificate authority: made at its first start, never leaves its folder.
//!
//! Certificates of members are short-lived and carry a principal; the server's own is made anew at every start.
//! Chain: member or server, signed by the authority; nothing in between.

use std::path::Path;
use std::time::{Duration, SystemTime};

use motley_scheduler_core::id::ContentHash;
use motley_scheduler_core::wire::join::Principal;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer};
use sha2::{Digest, Sha256};

use crate::certificate::principal_uri;
use crate::identity::{read_certificate, read_key};
use crate::tls::SERVER_NAME;
use crate::{Identity, LinkError, files};

/// Lives as long as a fleet; the members' certificates are what expires.
const AUTHORITY_YEARS: u64 = 20;

/// A certificate begins so much before it is signed: clocks of nodes differ.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);

const YEAR: Duration = Duration::from_secs(365 * 86_400);

const CERTIFICATE_FILE: &str = "authority.pem";
const KEY_FILE: &str = "authority-key.pem";

/// When a certificate holds.
#[derive(Debug, Clone, Copy)]
pub struct Validity {
    pub begins: SystemTime,
    pub expires: SystemTime,
}

/// A key that signs members in, and its certificate.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Validity {
    /// From an hour before `now` (clocks differ) until `length` after it.
    pub fn starting(now: SystemTime, length: Duration) -> Self {
        Validity { begins: now - CLOCK_SKEW, expires: now + length }
    }
}

impl Authority {
    /// A new authority.
    ///
    /// # Errors
    /// The system has no entropy.
    pub fn create() -> Result<Authority, LinkError> {
        let key = KeyPair::generate().map_err(LinkError::certificate)?;
        let mut params = CertificateParams::default();
        // A name of its own: a verifier then finds a foreign certificate unknown, not wrongly signed.
        let mut number = [0_u8; 8];
        getrandom::fill(&mut number).map_err(|error| LinkError::Entropy { reason: error.to_string() })?;
        let name = format!("Motley authority {:016x}", u64::from_be_bytes(number));
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let now = SystemTime::now();
        set_validity(&mut params, Validity::starting(now, YEAR * AUTHORITY_YEARS as u32));
        let certificate = params.self_signed(&key).map_err(LinkError::certificate)?;
        Ok(Authority { certificate: certificate.der().clone(), issuer: Issuer::new(params, key) })
    }

    /// Reads the authority of a folder; none if there is none yet.
    ///
    /// # Errors
    /// One of the two files is missing or unreadable.
    pub fn load(folder: &Path) -> Result<Option<Authority>, LinkError> {
        let (certificate_path, key_path) = (folder.join(CERTIFICATE_FILE), folder.join(KEY_FILE));
        let exists = |path: &Path| path.try_exists().map_err(|error| LinkError::file(path, error));
        if !exists(&certificate_path)? && !exists(&key_path)? {
            return Ok(None);
        }
        let certificate = read_certificate(&certificate_path)?;
        let key = read_key(&key_path)?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(LinkError::certificate)?;
        Ok(Some(Authority { issuer, certificate }))
    }

    /// Writes `authority-key.pem`, then `authority.pem`, both for the owner alone.
    ///
    /// # Errors
    /// The folder cannot be made or written.
    pub fn save(&self, folder: &Path) -> Result<(), LinkError> {
        files::create_private_folder(folder)?;
        files::write_private(&folder.join(KEY_FILE), self.issuer.key().serialize_pem().as_bytes())?;
        let certificate = crate::identity::certificate_pem(&self.certificate);
        files::write_private(&folder.join(CERTIFICATE_FILE), certificate.as_bytes())
    }

    /// SHA-256 of the certificate (DER): what tokens carry.
    pub fn fingerprint(&self) -> ContentHash {
        ContentHash(Sha256::digest(&self.certificate).into())
    }

    /// The certificate (DER).
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// Makes a member of whoever holds the key of this request (PKCS #10, DER). Nothing but the key is taken
    /// from the request: the names in it are the asker's wish.
    ///
    /// # Errors
    /// The request cannot be read, or is not signed by its own key.
    pub fn sign(
        &self,
        request: &[u8],
        principal: &Principal,
        validity: Validity,
    ) -> Result<Vec<u8>, LinkError> {
        let mut request = read_request(request)?;
        request.params = member_params(principal, validity)?;
        let certificate = request.signed_by(&self.issuer).map_err(LinkError::certificate)?;
        Ok(certificate.der().to_vec())
    }

    /// Whether a request could be signed: asked before a token is spent on it.
    ///
    /// # Errors
    /// The request cannot be read, or is not signed by its own key.
    pub fn check_request(request: &[u8]) -> Result<(), LinkError> {
        read_request(request).map(|_| ())
    }

    /// Key and certificate in one go, for a member on this machine.
    ///
    /// # Errors
    /// The system has no entropy.
    pub fn issue(&self, principal: &Principal, validity: Validity) -> Result<Identity, LinkError> {
        let pending = Identity::request()?;
        let certificate = self.sign(pending.request_der(), principal, validity)?;
        pending.finish(&certificate, &self.certificate)
    }

    /// Chain (server, authority) and key of a server; the key is never stored.
    pub(crate) fn server_chain(
        &self,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), LinkError> {
        let key = KeyPair::generate().map_err(LinkError::certificate)?;
        let mut params =
            CertificateParams::new(vec![SERVER_NAME.to_owned()]).map_err(LinkError::certificate)?;
        params.distinguished_name.push(DnType::CommonName, "Motley scheduler");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        set_validity(&mut params, Validity::starting(SystemTime::now(), YEAR * 10));
        let certificate = params.signed_by(&key, &self.issuer).map_err(LinkError::certificate)?;
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Ok((vec![certificate.der().clone(), self.certificate.clone()], key))
    }
}

/// Without the key.
impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority({})", self.fingerprint())
    }
}

fn read_request(request: &[u8]) -> Result<CertificateSigningRequestParams, LinkError> {
    CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request))
        .map_err(LinkError::certificate)
}

fn member_params(principal: &Principal, validity: Validity) -> Result<CertificateParams, LinkError> {
    let mut params = CertificateParams::default();
    let name = match principal {
        Principal::Node { node } => format!("node {node}"),
        Principal::User { name, .. } => name.clone(),
    };
    params.distinguished_name.push(DnType::CommonName, name);
    let uri = principal_uri(principal).try_into().map_err(LinkError::certificate)?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    set_validity(&mut params, validity);
    Ok(params)
}

fn set_validity(params: &mut CertificateParams, validity: Validity) {
    params.not_before = validity.begins.into();
    params.not_after = validity.expires.into();
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use motley_scheduler_core::id::NodeId;

    const DAY: Duration = Duration::from_secs(86_400);

    fn node() -> Principal {
        Principal::Node { node: NodeId(7) }
    }

    #[test]
    fn authority_survives_its_folder_and_signs_the_same_way() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Authority::load(folder.path()).unwrap().is_none());
        let authority = Authority::create().unwrap();
        authority.save(folder.path()).unwrap();
        let loaded = Authority::load(folder.path()).unwrap().unwrap();
        assert_eq!(loaded.fingerprint(), authority.fingerprint());
        let validity = Validity::starting(SystemTime::now(), DAY);
        let identity = loaded.issue(&node(), validity).unwrap();
        assert_eq!(*identity.principal(), node());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = |name| fs::metadata(folder.path().join(name)).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode(KEY_FILE), 0o600);
        }
    }

    #[test]
    fn half_an_authority_is_an_error_not_a_new_one() {
        let folder = tempfile::tempdir().unwrap();
        Authority::create().unwrap().save(folder.path()).unwrap();
        fs::remove_file(folder.path().join(KEY_FILE)).unwrap();
        assert!(Authority::load(folder.path()).is_err());
    }

    #[test]
    fn requests_that_are_not_signed_by_their_key_are_refused() {
        let authority = Authority::create().unwrap();
        let validity = Validity::starting(SystemTime::now(), DAY);
        let mut request = Identity::request().unwrap().request_der().to_vec();
        assert!(authority.sign(&request, &node(), validity).is_ok());
        let last = request.len() - 1;
        request[last] ^= 1;
        assert!(authority.sign(&request, &node(), validity).is_err());
        assert!(authority.sign(b"", &node(), validity).is_err());
        assert!(authority.sign(&[0x30; 500], &node(), validity).is_err());
    }

    #[test]
    fn a_certificate_fits_its_own_key_alone() {
        let authority = Authority::create().unwrap();
        let validity = Validity::starting(SystemTime::now(), DAY);
        let (one, other) = (Identity::request().unwrap(), Identity::request().unwrap());
        let certificate = authority.sign(one.request_der(), &node(), validity).unwrap();
        assert!(other.finish(&certificate, authority.certificate()).is_err());
        assert!(one.finish(&certificate, authority.certificate()).is_ok());
    }
}
