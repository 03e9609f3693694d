//! `tls-creds-x509`: identity of the NBD server, and the clients it lets in. Without the feature `tls` its
//! options can be read, and no object is made of them.

use std::path::PathBuf;

#[cfg(feature = "tls")]
use coblk::aio::PoolShare;
#[cfg(feature = "tls")]
pub use coblk::nbd::TlsCredentials;
use coblk::qapi::{Unsupported, path};
use serde::{Deserialize, Serialize};

use super::object_type::{ObjectPlace, ObjectType, Property};
use crate::error::DaemonError;

/// The type `tls-creds-x509`. Its object is a [`TlsCredentials`], of which a server takes what it needs when
/// it starts.
#[derive(Clone, Copy, Debug, Default)]
pub struct TlsCredsX509Type;

/// There are none.
#[cfg(not(feature = "tls"))]
#[derive(Debug)]
pub enum TlsCredentials {}

/// Certificates and a key in a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(from = "Fields", rename_all = "kebab-case")]
#[non_exhaustive]
pub struct TlsCredsX509Options {
    /// `dir`: has `ca-cert.pem`, `server-cert.pem` and `server-key.pem`, and may have `ca-crl.pem`.
    #[serde(serialize_with = "path::option::serialize")]
    pub dir: Option<PathBuf>,
    /// `endpoint`.
    pub endpoint: TlsEndpoint,
    /// `sanity-check`: whether the server's own certificate must be valid; on by default.
    pub sanity_check: Option<bool>,
    /// `verify-peer`: whether clients need a certificate; on by default.
    pub verify_peer: Option<bool>,
}

/// Whose credentials they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum TlsEndpoint {
    /// A client's; QEMU's default.
    #[default]
    Client,
    /// A server's.
    Server,
}

impl ObjectType for TlsCredsX509Type {
    const NAME: &'static str = "tls-creds-x509";
    type Options = TlsCredsX509Options;
    type Object = TlsCredentials;

    /// Reads credentials from their directory.
    #[cfg(feature = "tls")]
    fn co_make(
        &self,
        place: &ObjectPlace<'_, '_>,
        options: &TlsCredsX509Options,
    ) -> Result<TlsCredentials, DaemonError> {
        if options.endpoint != TlsEndpoint::Server {
            let text = "Expecting TLS credentials with a server endpoint";
            return Err(DaemonError::Unsupported(text));
        }
        let dir = options.dir.as_deref();
        let dir = dir.ok_or(DaemonError::Unsupported("Missing 'dir' property value"))?;
        let verify_peer = options.verify_peer.unwrap_or(true);
        let read = match options.sanity_check.unwrap_or(true) {
            true => TlsCredentials::from_dir,
            false => TlsCredentials::from_dir_unchecked,
        };
        let credentials = PoolShare::once(place.co, || read(dir, verify_peer));
        credentials.map_err(DaemonError::of_object)
    }

    /// Refuses: no server could use them.
    #[cfg(not(feature = "tls"))]
    fn co_make(
        &self,
        _: &ObjectPlace<'_, '_>,
        _: &TlsCredsX509Options,
    ) -> Result<TlsCredentials, DaemonError> {
        Err(DaemonError::Unsupported("'tls-creds-x509' is not supported: built without TLS"))
    }

    fn properties(&self) -> Vec<Property> {
        vec![
            Property::new("dir", "string"),
            Property::new("endpoint", "QCryptoTLSCredsEndpoint"),
            Property::new("sanity-check", "bool"),
            Property::new("verify-peer", "bool"),
        ]
    }
}

/// With what is known, and ignored or not supported.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Fields {
    #[serde(default, deserialize_with = "path::option::deserialize")]
    dir: Option<PathBuf>,
    #[serde(default)]
    endpoint: TlsEndpoint,
    sanity_check: Option<bool>,
    verify_peer: Option<bool>,
    #[serde(rename = "passwordid")]
    _passwordid: Option<Unsupported>,
    #[serde(rename = "priority")]
    _priority: Option<Unsupported>,
}

impl From<Fields> for TlsCredsX509Options {
    fn from(fields: Fields) -> TlsCredsX509Options {
        let Fields { dir, endpoint, sanity_check, verify_peer, .. } = fields;
        TlsCredsX509Options { dir, endpoint, sanity_check, verify_peer }
    }
}
