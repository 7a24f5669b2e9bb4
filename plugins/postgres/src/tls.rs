//! Encrypted connections, by rustls: what is verified of the server's certificate.
//!
//! The modes mean what they mean to `psql`: `prefer` and `require` keep out who listens, not who
//! pretends to be the server.

use std::path::Path;
use std::sync::Arc;

use oxiflow_plugin_api::{BackendError, ErrorKind};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::config::SslMode;

/// Makes connections of this mode. `direct` connections begin with the encryption, and name the
/// protocol that it carries.
///
/// # Errors
/// `Invalid` naming `ssl_root_cert` when it cannot be used; `Unsupported` when the system has no
/// certificates to verify with.
pub(crate) fn connector(
    mode: SslMode,
    root_cert: Option<&Path>,
    direct: bool,
) -> Result<MakeRustlsConnect, BackendError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| BackendError::internal(error.to_string()))?;
    let mut config = match mode {
        SslMode::VerifyFull => builder.with_root_certificates(authorities(root_cert)?),
        SslMode::VerifyCa => builder
            .dangerous()
            .with_custom_certificate_verifier(checking(provider, Some(authorities(root_cert)?))),
        SslMode::Disable | SslMode::Prefer | SslMode::Require => {
            builder.dangerous().with_custom_certificate_verifier(checking(provider, None))
        }
    }
    .with_no_client_auth();
    if direct {
        config.alpn_protocols = vec![b"postgresql".to_vec()];
    }
    Ok(MakeRustlsConnect::new(config))
}

/// The certificates that the server's may be signed with.
fn authorities(file: Option<&Path>) -> Result<RootCertStore, BackendError> {
    let mut roots = RootCertStore::empty();
    let Some(file) = file else {
        let system = rustls_native_certs::load_native_certs();
        for error in &system.errors {
            tracing::debug!("a certificate of the system cannot be read: {error}");
        }
        roots.add_parsable_certificates(system.certs);
        if roots.is_empty() {
            let message = "the system has no certificates of authorities; set `ssl_root_cert`";
            return Err(BackendError::new(ErrorKind::Unsupported, message));
        }
        return Ok(roots);
    };
    let unusable = |reason: String| {
        BackendError::invalid(format!("option `ssl_root_cert`: {reason} {}", file.display()))
    };
    let certificates = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| {
            let path = file.display();
            BackendError::invalid(format!("option `ssl_root_cert`: cannot read {path}: {error}"))
        })?;
    for certificate in certificates {
        roots.add(certificate).map_err(|_| unusable("a certificate is damaged in".to_owned()))?;
    }
    if roots.is_empty() {
        return Err(unusable("there is no certificate in".to_owned()));
    }
    Ok(roots)
}

fn checking(
    provider: Arc<CryptoProvider>,
    authorities: Option<RootCertStore>,
) -> Arc<dyn ServerCertVerifier> {
    Arc::new(Checking { provider, authorities })
}

/// Verifies that the server has the key of its certificate, and that a known authority signed that,
/// if any are known; never the name in it.
#[derive(Debug)]
struct Checking {
    provider: Arc<CryptoProvider>,
    authorities: Option<RootCertStore>,
}

impl ServerCertVerifier for Checking {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(authorities) = &self.authorities {
            verify_server_cert_signed_by_trust_anchor(
                &ParsedCertificate::try_from(end_entity)?,
                authorities,
                intermediates,
                now,
                self.provider.signature_verification_algorithms.all,
            )?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
