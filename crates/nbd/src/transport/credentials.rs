//! [`TlsCredentials`]: the identity of a server, and the clients that it lets in, from PEM files.

use std::fmt;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pkcs8::der::pem::PemLabel;
use pkcs8::{EncryptedPrivateKeyInfoRef, SecretDocument};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime,
};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, Error, RootCertStore, ServerConfig, ServerConnection};

use zeroize::Zeroizing;

use crate::transport::tls::Session;

/// What may be encrypted ahead of the socket, in bytes.
pub(super) const MAX_UNSENT: usize = 256 << 10;

/// The identity of a server, and the clients that it lets in: x509 certificates in PEM files.
///
/// With these in [`NbdOptions::tls`](crate::NbdOptions::tls()) a client can do nothing before it has
/// begun TLS, unless they are [`optional`](Self::optional).
///
/// The files are read once. A server goes on with what it was given, whatever becomes of them.
#[derive(Clone)]
pub struct TlsCredentials {
    config: Arc<ServerConfig>,
    required: bool,
    verifies_clients: bool,
}

impl TlsCredentials {
    /// Reads a directory laid out as QEMU's `tls-creds-x509` has it for a server:
    ///
    /// | file | what |
    /// |---|---|
    /// | `ca-cert.pem` | whose certificates are trusted |
    /// | `ca-crl.pem` | certificates that are not any more; may be missing |
    /// | `server-cert.pem` | the server's certificate, and those between it and the authority |
    /// | `server-key.pem` | its private key |
    ///
    /// If `verify_peer`, only clients with a certificate of the authority are let in.
    ///
    /// # Errors
    /// If a file cannot be read, or is not what its name says; or if the server's certificate is not
    /// one of the authority's, or not valid at this time. Only the list of revoked certificates may
    /// be missing: one that cannot be reached, or has no list in it, is an error.
    pub fn from_dir(dir: &Path, verify_peer: bool) -> Result<TlsCredentials, TlsError> {
        Self::from_files(&TlsFiles::new(dir), verify_peer, true)
    }

    /// The same without a look at whether the server's certificate is the authority's, and valid:
    /// for one of another authority than that of the clients. Clients see for themselves.
    ///
    /// # Errors
    /// Those of [`from_dir`](Self::from_dir) but for that.
    pub fn from_dir_unchecked(dir: &Path, verify_peer: bool) -> Result<TlsCredentials, TlsError> {
        Self::from_files(&TlsFiles::new(dir), verify_peer, false)
    }

    /// The same, of files whose key may be encrypted; `check` is whether the server's own certificate must be the
    /// authority's, and valid.
    ///
    /// # Errors
    /// As [`from_dir`](Self::from_dir); also if the key cannot be decrypted.
    pub fn from_files(
        files: &TlsFiles<'_>,
        verify_peer: bool,
        check: bool,
    ) -> Result<TlsCredentials, TlsError> {
        let dir = files.dir;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let roots = authorities(dir)?;
        let own = own_certificate(files, "server", &provider)?;
        if check {
            check_own(&own, &roots, &provider, &dir.join("server-cert.pem"))?;
        }
        // Made in any case: it says whether the lists are good.
        let verifier = verifier(dir, &roots, &provider)?;
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| refused(dir, error))?;
        let config = match verify_peer {
            true => config.with_client_cert_verifier(verifier),
            false => config.with_no_client_auth(),
        };
        let mut config = config.with_cert_resolver(Arc::new(SingleCertAndKey::from(own)));
        // Connections are few and long: nothing is kept for the next one.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        let verifies_clients = verify_peer;
        Ok(TlsCredentials { config: Arc::new(config), required: true, verifies_clients })
    }

    /// Lets clients in that do not ask for TLS, too.
    #[must_use]
    pub fn optional(self) -> TlsCredentials {
        TlsCredentials { required: false, ..self }
    }

    pub(crate) fn are_required(&self) -> bool {
        self.required
    }

    pub(crate) fn verifies_clients(&self) -> bool {
        self.verifies_clients
    }

    pub(crate) fn session(&self) -> io::Result<Session> {
        let connection = ServerConnection::new(Arc::clone(&self.config));
        let mut connection = connection.map_err(|error| io::Error::other(error.to_string()))?;
        connection.set_buffer_limit(Some(MAX_UNSENT));
        Ok(Session::new(connection))
    }
}

impl fmt::Debug for TlsCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Nothing of the key.
        f.debug_struct("TlsCredentials").field("required", &self.required).finish_non_exhaustive()
    }
}

/// A directory with certificates and a key, and the password of the key if it is encrypted.
#[derive(Clone, Copy)]
pub struct TlsFiles<'a> {
    pub(super) dir: &'a Path,
    password: Option<&'a str>,
}

impl<'a> TlsFiles<'a> {
    /// Files whose key is not encrypted.
    pub fn new(dir: &'a Path) -> TlsFiles<'a> {
        TlsFiles { dir, password: None }
    }

    /// The same, with a key that this password decrypts: PKCS #8, as `openssl pkcs8 -topk8` writes it.
    #[must_use]
    pub fn password(self, password: &'a str) -> TlsFiles<'a> {
        TlsFiles { password: Some(password), ..self }
    }
}

impl fmt::Debug for TlsFiles<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsFiles").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// Why credentials are of no use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("Unable to access credentials {}: {}", .0.display(), .1)]
    Unreadable(PathBuf, #[source] io::Error),
    /// A file is not PEM, or has not in it what it should.
    #[error("Unable to import {}: {}", .0.display(), .1)]
    Malformed(PathBuf, String),
    /// The contents of a file are not accepted, or do not belong to those of the others.
    #[error(transparent)]
    Refused(RefusedFile),
}

/// A file of credentials whose contents are not accepted.
#[derive(Debug, thiserror::Error)]
#[error("Unable to use {}: {reason}", .path.display())]
pub struct RefusedFile {
    path: PathBuf,
    reason: String,
}

pub(super) fn refused(path: &Path, reason: impl fmt::Display) -> TlsError {
    TlsError::Refused(RefusedFile { path: path.to_owned(), reason: reason.to_string() })
}

fn malformed(path: &Path, reason: impl fmt::Display) -> TlsError {
    TlsError::Malformed(path.to_owned(), reason.to_string())
}

fn contents(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|error| TlsError::Unreadable(path.to_owned(), error))
}

/// What else may be in a file.
#[derive(Clone, Copy, PartialEq)]
enum Others {
    /// A key beside its certificate.
    Ignored,
    /// Nothing. A list with a part that is passed over trusts, or revokes, less than it seems to.
    Refused,
}

/// All of one kind that are in a file, which are one at least.
fn list<T: PemObject>(path: &Path, others: Others) -> Result<Vec<T>, TlsError> {
    let bytes = contents(path)?;
    let found = T::pem_slice_iter(&bytes).collect::<Result<Vec<T>, _>>();
    let found = found.map_err(|error| match error {
        pem::Error::MissingSectionEnd { .. } => malformed(path, "it is cut off"),
        error => malformed(path, error),
    })?;
    if found.is_empty() {
        return Err(malformed(path, "there is nothing in it that its name promises, in PEM"));
    }
    let sections =
        bytes.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"-----BEGIN"));
    if others == Others::Refused && sections.count() != found.len() {
        return Err(malformed(path, "there is something in it that its name does not promise"));
    }
    Ok(found)
}

/// Whose certificates are trusted.
pub(super) fn authorities(dir: &Path) -> Result<Arc<RootCertStore>, TlsError> {
    let authorities = dir.join("ca-cert.pem");
    let mut roots = RootCertStore::empty();
    for authority in list::<CertificateDer<'static>>(&authorities, Others::Refused)? {
        roots.add(authority).map_err(|error| refused(&authorities, error))?;
    }
    Ok(Arc::new(roots))
}

/// Certificates that are not trusted any more.
pub(super) fn revoked(dir: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let path = dir.join("ca-crl.pem");
    match std::fs::symlink_metadata(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        // There is one, even if its contents are elsewhere and cannot be reached.
        _ => list::<CertificateRevocationListDer<'static>>(&path, Others::Refused),
    }
}

/// The certificate of the `server` or the `client`, with its key.
pub(super) fn own_certificate(
    files: &TlsFiles<'_>,
    whose: &str,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, TlsError> {
    let [certificate, key] =
        ["cert", "key"].map(|what| files.dir.join(format!("{whose}-{what}.pem")));
    let chain = list::<CertificateDer<'static>>(&certificate, Others::Ignored)?;
    let private = private_key(&key, files.password)?;
    let private = provider.key_provider.load_private_key(private);
    let own = CertifiedKey::new(chain, private.map_err(|error| refused(&key, error))?);
    match own.keys_match() {
        // It cannot be read, as one of X.509 version 1 cannot be: clients may be able to.
        Err(Error::InvalidCertificate(_)) if has_key_of(&own) => {
            tracing::warn!(path = %certificate.display(), "a certificate that cannot be checked");
        }
        Err(Error::InconsistentKeys(_)) => {
            return Err(refused(&key, format_args!("it is not the key of {whose}-cert.pem")));
        }
        Err(error) => return Err(refused(&certificate, error)),
        Ok(()) => {}
    }
    Ok(own)
}

/// The key in a file. A password is for one that is encrypted, and ignored otherwise.
fn private_key(path: &Path, password: Option<&str>) -> Result<PrivateKeyDer<'static>, TlsError> {
    let bytes = Zeroizing::new(contents(path)?);
    let is_encrypted = bytes.windows(9).any(|word| word == b"ENCRYPTED");
    if !is_encrypted {
        return PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| malformed(path, error));
    }
    let password = password.ok_or_else(|| malformed(path, "the key is encrypted"))?;
    let text = std::str::from_utf8(&bytes).map_err(|error| malformed(path, error))?;
    let (label, sealed) = SecretDocument::from_pem(text).map_err(|error| malformed(path, error))?;
    if label != EncryptedPrivateKeyInfoRef::PEM_LABEL {
        return Err(malformed(path, "the key is encrypted in other than the way of PKCS #8"));
    }
    let sealed = EncryptedPrivateKeyInfoRef::try_from(sealed.as_bytes());
    let sealed = sealed.map_err(|error| malformed(path, error))?;
    let opened = sealed.decrypt(password);
    let opened = opened.map_err(|_| refused(path, "the password does not open it"))?;
    Ok(PrivatePkcs8KeyDer::from(opened.as_bytes().to_vec()).into())
}

/// Whether the bytes of the public key are somewhere in the certificate, if those are readable.
fn has_key_of(own: &CertifiedKey) -> bool {
    own.key.public_key().zip(own.cert.first()).is_some_and(|(key, certificate)| {
        certificate.windows(key.len()).any(|bytes| bytes == key.as_ref())
    })
}

/// Whether the server's certificate is the authority's, and valid at this time.
fn check_own(
    own: &CertifiedKey,
    roots: &RootCertStore,
    provider: &CryptoProvider,
    path: &Path,
) -> Result<(), TlsError> {
    let Some((certificate, intermediates)) = own.cert.split_first() else { return Ok(()) };
    // One that cannot be parsed is taken, as in `own_certificate`.
    let Ok(certificate) = ParsedCertificate::try_from(certificate) else { return Ok(()) };
    let checked = verify_server_cert_signed_by_trust_anchor(
        &certificate,
        roots,
        intermediates,
        UnixTime::now(),
        provider.signature_verification_algorithms.all,
    );
    match checked {
        Err(Error::InvalidCertificate(
            error @ (CertificateError::InvalidPurpose
            | CertificateError::InvalidPurposeContext { .. }),
        )) => {
            tracing::warn!(path = %path.display(), %error, "clients may not trust a certificate");
            Ok(())
        }
        Err(Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        )) => Err(refused(path, "no authority in ca-cert.pem has issued it")),
        Err(Error::InvalidCertificate(error)) => Err(refused(path, error)),
        checked => checked.map_err(|error| refused(path, error)),
    }
}

/// What clients are verified by.
fn verifier(
    dir: &Path,
    roots: &Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let revoked = revoked(dir)?;
    WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider))
        .with_crls(revoked)
        .allow_unknown_revocation_status()
        .build()
        .map_err(|error| refused(&dir.join("ca-crl.pem"), error))
}
