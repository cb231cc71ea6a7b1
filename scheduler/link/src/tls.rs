//! TLS 1.3 settings of both ends. The provider is named everywhere: nothing global is installed.
//!
//! Client certificates are optional in TLS, because a joiner has none; `server.rs` closes every other connection
//! without one. A presented certificate must be ours and in date, or the handshake fails.

use std::sync::{Arc, OnceLock};

use motley_scheduler_core::id::ContentHash;
use motley_scheduler_core::wire::{ALPN_AGENT, ALPN_BULK, ALPN_CLIENT, ALPN_JOIN};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256};

use crate::{Authority, Identity, LinkError};

/// Every scheduler's certificate carries this name: it is the authority that tells schedulers apart, and
/// addresses change.
pub(crate) const SERVER_NAME: &str = "scheduler.motley";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(authority: &CertificateDer<'static>) -> Result<Arc<RootCertStore>, LinkError> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone()).map_err(LinkError::certificate)?;
    Ok(Arc::new(roots))
}

pub(crate) fn server(authority: &Authority) -> Result<QuicServerConfig, LinkError> {
    let root = CertificateDer::from(authority.certificate().to_vec());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(&root)?, provider())
        .allow_unauthenticated()
        .build()
        .map_err(LinkError::certificate)?;
    let (chain, key) = authority.server_chain()?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(LinkError::certificate)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(LinkError::certificate)?;
    config.alpn_protocols = [ALPN_JOIN, ALPN_AGENT, ALPN_CLIENT, ALPN_BULK].map(<[u8]>::to_vec).into();
    // Early data can be replayed, and resumption would skip the look at the certificate's end.
    config.max_early_data_size = 0;
    config.send_tls13_tickets = 0;
    QuicServerConfig::try_from(config).map_err(LinkError::certificate)
}

pub(crate) fn member(identity: &Identity, alpn: &[u8]) -> Result<QuicClientConfig, LinkError> {
    let root = CertificateDer::from(identity.authority().to_vec());
    let (chain, key) = identity.chain_and_key();
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(LinkError::certificate)?
        .with_root_certificates(roots(&root)?)
        .with_client_auth_cert(chain, key)
        .map_err(LinkError::certificate)?;
    config.alpn_protocols = vec![alpn.to_vec()];
    QuicClientConfig::try_from(config).map_err(LinkError::certificate)
}

/// For a joiner: trusts the authority of this fingerprint, and nobody else.
pub(crate) fn stranger(fingerprint: ContentHash) -> Result<(QuicClientConfig, Arc<Pinned>), LinkError> {
    let pinned = Arc::new(Pinned { fingerprint, found: OnceLock::new(), provider: provider() });
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(LinkError::certificate)?
        .dangerous()
        .with_custom_certificate_verifier(pinned.clone())
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_JOIN.to_vec()];
    Ok((QuicClientConfig::try_from(config).map_err(LinkError::certificate)?, pinned))
}

/// Takes the authority from the server's chain, compares its fingerprint, then verifies as usual.
#[derive(Debug)]
pub(crate) struct Pinned {
    fingerprint: ContentHash,
    /// The authority that the server showed.
    found: OnceLock<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl Pinned {
    /// The authority that the server showed; `Err` with its fingerprint when it is another.
    pub(crate) fn authority(&self) -> Option<Result<&CertificateDer<'static>, ContentHash>> {
        self.found.get().map(|found| {
            let hash = fingerprint(found);
            if hash == self.fingerprint { Ok(found) } else { Err(hash) }
        })
    }
}

fn fingerprint(certificate: &CertificateDer<'_>) -> ContentHash {
    ContentHash(Sha256::digest(certificate).into())
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let unknown = || rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let shown = intermediates.last().ok_or_else(unknown)?.clone().into_owned();
        let authority = self.found.get_or_init(|| shown);
        if fingerprint(authority) != self.fingerprint {
            return Err(unknown());
        }
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
