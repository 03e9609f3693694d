//! TLS by rustls: the credentials of a server, and the session of a client.

use std::fmt;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coblk_aio::net::Stream;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig, ServerConnection};

/// What may be encrypted ahead of the socket, in bytes.
const MAX_UNSENT: usize = 256 << 10;

/// Who a server is, and whom it lets in: x509 certificates in PEM files.
///
/// With these in [`NbdOptions::tls`](crate::NbdOptions::tls()) a client can do nothing before it has
/// begun TLS, unless they are [`optional`](Self::optional).
#[derive(Clone)]
pub struct TlsCredentials {
    config: Arc<ServerConfig>,
    required: bool,
}

impl TlsCredentials {
    /// Reads a directory laid out as QEMU's `tls-creds-x509` has it for a server:
    ///
    /// | file | what |
    /// |---|---|
    /// | `ca-cert.pem` | whose certificates are trusted |
    /// | `ca-crl.pem` | certificates that are not any more; may be missing |
    /// | `server-cert.pem` | the server's certificate, and those between it and the authority |
    /// | `server-key.pem` | its private key, not encrypted |
    ///
    /// If `verify_peer`, only clients with a certificate of the authority are let in.
    ///
    /// # Errors
    /// If a file cannot be read, or is not what its name says.
    pub fn from_dir(dir: &Path, verify_peer: bool) -> Result<TlsCredentials, TlsError> {
        let authorities = certificates(dir.join("ca-cert.pem"))?;
        let revoked = dir.join("ca-crl.pem");
        let revoked = if revoked.exists() { revocations(revoked)? } else { Vec::new() };
        let chain = certificates(dir.join("server-cert.pem"))?;
        let path = dir.join("server-key.pem");
        let key = PrivateKeyDer::from_pem_slice(&contents(&path)?);
        let key = key.map_err(|error| TlsError::Malformed(path, error))?;

        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add(authority).map_err(TlsError::Refused)?;
        }
        Self::new(roots, revoked, chain, key, verify_peer)
    }

    fn new(
        roots: RootCertStore,
        revoked: Vec<CertificateRevocationListDer<'static>>,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        verify_peer: bool,
    ) -> Result<TlsCredentials, TlsError> {
        let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Refused)?;
        let config = if verify_peer {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .with_crls(revoked)
                .allow_unknown_revocation_status()
                .build()
                .map_err(TlsError::Authorities)?;
            config.with_client_cert_verifier(verifier)
        } else {
            config.with_no_client_auth()
        };
        let mut config = config.with_single_cert(chain, key).map_err(TlsError::Refused)?;
        // Connections are few and long: nothing is kept for the next one.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(TlsCredentials { config: Arc::new(config), required: true })
    }

    /// Lets clients in that do not ask for TLS, too.
    #[must_use]
    pub fn optional(self) -> TlsCredentials {
        TlsCredentials { required: false, ..self }
    }

    pub(crate) fn are_required(&self) -> bool {
        self.required
    }

    pub(crate) fn session(&self) -> io::Result<Session> {
        let connection = ServerConnection::new(Arc::clone(&self.config));
        let mut connection = connection.map_err(|error| io::Error::other(error.to_string()))?;
        connection.set_buffer_limit(Some(MAX_UNSENT));
        Ok(Session(Box::new(connection)))
    }
}

impl fmt::Debug for TlsCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Nothing of the key.
        f.debug_struct("TlsCredentials").field("required", &self.required).finish_non_exhaustive()
    }
}

/// Why credentials are of no use.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("Unable to access credentials {}: {}", .0.display(), .1)]
    Unreadable(PathBuf, #[source] io::Error),
    /// A file is not PEM, or has not in it what it should.
    #[error("Unable to import {}: {}", .0.display(), .1)]
    Malformed(PathBuf, #[source] pem::Error),
    /// A certificate or the key is not accepted, or they do not belong together.
    #[error("Unable to use the TLS credentials: {0}")]
    Refused(#[source] rustls::Error),
    /// Clients cannot be verified by this authority.
    #[error("Unable to verify TLS clients: {0}")]
    Authorities(#[source] VerifierBuilderError),
}

fn contents(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|error| TlsError::Unreadable(path.to_owned(), error))
}

fn certificates(path: PathBuf) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = contents(&path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if found.is_empty() => Err(TlsError::Malformed(path, pem::Error::NoItemsFound)),
        Ok(found) => Ok(found),
        Err(error) => Err(TlsError::Malformed(path, error)),
    }
}

fn revocations(path: PathBuf) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let bytes = contents(&path)?;
    let found: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&bytes).collect();
    found.map_err(|error| TlsError::Malformed(path, error))
}

/// TLS on the socket of one client. Never blocks.
pub struct Session(Box<ServerConnection>);

impl Session {
    pub fn read(&mut self, socket: &Stream, target: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.0.reader().read(target) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.receive(socket)?,
                result => return result,
            }
        }
    }

    /// Encrypts what there is room for, and sends what the socket takes of it.
    pub fn write(&mut self, socket: &Stream, source: &[IoSlice<'_>]) -> io::Result<usize> {
        // Or there might be no room.
        self.push(socket)?;
        let taken = self.0.writer().write_vectored(source)?;
        match self.push(socket) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(taken),
        }
    }

    pub fn has_unsent(&self) -> bool {
        self.0.wants_write()
    }

    pub fn push(&mut self, socket: &Stream) -> io::Result<()> {
        while self.0.wants_write() {
            self.0.write_tls(&mut Plain(socket))?;
        }
        Ok(())
    }

    pub fn shake_hands(&mut self, socket: &Stream) -> io::Result<bool> {
        if self.0.is_handshaking() {
            self.receive(socket)?;
        }
        Ok(!self.0.is_handshaking())
    }

    fn receive(&mut self, socket: &Stream) -> io::Result<()> {
        if self.0.read_tls(&mut Plain(socket))? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if let Err(error) = self.0.process_new_packets() {
            // The client is told why, if it listens.
            let _ = self.push(socket);
            return Err(io::Error::new(ErrorKind::InvalidData, error));
        }
        Ok(())
    }
}

/// The socket itself, as rustls wants it.
struct Plain<'a>(&'a Stream);

impl Read for Plain<'_> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        self.0.read(target)
    }
}

impl Write for Plain<'_> {
    fn write(&mut self, source: &[u8]) -> io::Result<usize> {
        self.0.write(&[IoSlice::new(source)])
    }

    fn write_vectored(&mut self, source: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.write(source)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
