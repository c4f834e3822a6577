//! Verifies peers' certificates under the fleet's CA, and remembers whose mesh key a refused one was minted from.

use std::sync::{Arc, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identity::fleet_ca::fingerprint_of_common_name;

/// The fingerprint in the issuer name of a certificate that did not verify.
pub(super) type SeenIssuer = Arc<OnceLock<String>>;

/// Verifies as the inner verifier does, and remembers the issuer of a refused certificate, so that a wrong mesh key is named.
#[derive(Debug)]
pub(super) struct NamingVerifier<V: ?Sized> {
    pub(super) issuer: SeenIssuer,
    pub(super) inner: Arc<V>,
}

impl<V: ?Sized> NamingVerifier<V> {
    fn note_issuer(&self, certificate: &[u8]) {
        let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return };
        let name = parsed.issuer().iter_common_name().next().and_then(|name| name.as_str().ok());
        if let Some(fingerprint) = name.and_then(fingerprint_of_common_name) {
            self.issuer.get_or_init(|| fingerprint.to_owned());
        }
    }
}

/// What both kinds of verifier must answer about signatures: as the inner one does.
macro_rules! signatures_by_inner {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            self.inner.verify_tls12_signature(message, cert, dss)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            self.inner.verify_tls13_signature(message, cert, dss)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.inner.supported_verify_schemes()
        }
    };
}

impl ServerCertVerifier for NamingVerifier<WebPkiServerVerifier> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.inner
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            .inspect_err(|_| self.note_issuer(end_entity))
    }

    signatures_by_inner!();
}

impl ClientCertVerifier for NamingVerifier<dyn ClientCertVerifier> {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // No hints: a client with one certificate has nothing to choose, and hints would make it send none on a mismatch.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.inner.verify_client_cert(end_entity, intermediates, now).inspect_err(|_| self.note_issuer(end_entity))
    }

    signatures_by_inner!();
}
