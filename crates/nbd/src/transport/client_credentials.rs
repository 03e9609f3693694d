//! [`TlsClientCredentials`]: the servers that a client trusts, and its own identity, from PEM files.

use std::fmt;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::Arc;

use coblk_block::NamedObject;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ClientConnection};

use super::credentials::{
    MAX_UNSENT, TlsError, TlsFiles, authorities, own_certificate, refused, revoked,
};
use crate::transport::tls::Session;

/// The servers that a client trusts, and its own identity: x509 certificates in PEM files. An object that the
/// option `tls-creds` of a node names.
///
/// The files are read once.
#[derive(Clone)]
pub struct TlsClientCredentials {
    config: Arc<ClientConfig>,
}

impl TlsClientCredentials {
    /// Reads a directory laid out as QEMU's `tls-creds-x509` has it for a client:
    ///
    /// | file | what |
    /// |---|---|
    /// | `ca-cert.pem` | whose certificates are trusted |
    /// | `ca-crl.pem` | certificates that are not any more; may be missing |
    /// | `client-cert.pem` | the client's certificate; may be missing, with its key |
    /// | `client-key.pem` | its private key |
    ///
    /// # Errors
    /// If a file cannot be read, or is not what its name says.
    pub fn from_dir(dir: &Path) -> Result<TlsClientCredentials, TlsError> {
        Self::from_files(&TlsFiles::new(dir))
    }

    /// The same, of files whose key may be encrypted.
    ///
    /// # Errors
    /// As [`from_dir`](Self::from_dir); also if the key cannot be decrypted.
    pub fn from_files(files: &TlsFiles<'_>) -> Result<TlsClientCredentials, TlsError> {
        let dir = files.dir;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let roots = authorities(dir)?;
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .with_crls(revoked(dir)?)
            .allow_unknown_revocation_status()
            .build()
            .map_err(|error| refused(&dir.join("ca-crl.pem"), error))?;
        let certificate = dir.join("client-cert.pem");
        let is_missing = std::fs::symlink_metadata(&certificate)
            .is_err_and(|error| error.kind() == ErrorKind::NotFound);
        let own = match is_missing {
            true => None,
            false => Some(own_certificate(files, "client", &provider)?),
        };
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| refused(dir, error))?
            .with_webpki_verifier(verifier);
        let mut config = match own {
            Some(own) => config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own))),
            None => config.with_no_client_auth(),
        };
        // Connections are few and long: nothing is kept for the next one.
        config.resumption = Resumption::disabled();
        Ok(TlsClientCredentials { config: Arc::new(config) })
    }

    /// A session with the server whose certificate has the name `host`.
    pub(crate) fn session(&self, host: &str) -> io::Result<Session> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let connection = ClientConnection::new(Arc::clone(&self.config), name);
        let mut connection = connection.map_err(io::Error::other)?;
        connection.set_buffer_limit(Some(MAX_UNSENT));
        Ok(Session::new(connection))
    }
}

impl NamedObject for TlsClientCredentials {
    const KIND: &'static str = "TLS client credentials";

    /// A node takes what it needs when it is opened.
    fn is_in_use(&self) -> bool {
        false
    }
}

impl fmt::Debug for TlsClientCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Nothing of the key.
        f.debug_struct("TlsClientCredentials").finish_non_exhaustive()
    }
}
