//! The certificate and key of the server.

use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, version};

use crate::config::TlsSection;
use crate::error::{Error, ErrorKind, Result};

/// Reads certificate and key.
///
/// # Errors
/// `Configuration` when one of them is missing or unreadable, or the two do not belong together.
pub(super) fn load(section: &TlsSection) -> Result<Arc<ServerConfig>> {
    let wrong = |message: String| Error::new(ErrorKind::Configuration, message);
    let unreadable =
        |what: &str, file: &Path| wrong(format!("cannot read the {what} in {}", file.display()));
    let chain: Vec<_> = CertificateDer::pem_file_iter(&section.cert)
        .and_then(Iterator::collect)
        .map_err(|error| unreadable("certificates", &section.cert).because(error))?;
    if chain.is_empty() {
        return Err(wrong(format!("{} holds no certificate", section.cert.display()))
            .hint("`server.tls.cert` is a PEM file with the certificate chain"));
    }
    let key = PrivateKeyDer::from_pem_file(&section.key)
        .map_err(|error| unreadable("private key", &section.key).because(error))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&version::TLS13, &version::TLS12])
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| wrong("the certificate cannot be used".to_owned()).because(error))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
