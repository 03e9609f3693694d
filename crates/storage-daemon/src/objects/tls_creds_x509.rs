//! `tls-creds-x509`: identity of the NBD server and the clients it lets in, or that of a client and the servers it
//! trusts. Without the feature `tls` its
//! options can be read, and no object is made of them.

use std::path::PathBuf;

#[cfg(feature = "tls")]
use std::sync::Arc;

#[cfg(feature = "tls")]
use coblk::aio::PoolShare;
#[cfg(feature = "tls")]
use coblk::block::Secret;
#[cfg(feature = "tls")]
use coblk::nbd::{TlsClientCredentials, TlsCredentials, TlsFiles};
use coblk::qapi::{Unsupported, path};
use serde::{Deserialize, Serialize};

use super::object_type::{ObjectPlace, ObjectType, Property};
use crate::error::DaemonError;

/// The type `tls-creds-x509`. A server takes what it needs of its object when it starts, a node when it is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct TlsCredsX509Type;

/// Credentials of either side.
#[cfg(feature = "tls")]
#[derive(Debug)]
pub enum TlsObject {
    /// Those of a server.
    Server(TlsCredentials),
    /// Those of a client, which nodes find by the object's id.
    Client(Arc<TlsClientCredentials>),
}

/// There are none.
#[cfg(not(feature = "tls"))]
#[derive(Debug)]
pub enum TlsObject {}

/// Certificates and a key in a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(from = "Fields", rename_all = "kebab-case")]
#[non_exhaustive]
pub struct TlsCredsX509Options {
    /// `dir`: has `ca-cert.pem`, `server-cert.pem` and `server-key.pem`, or `client-cert.pem` and
    /// `client-key.pem`, and may have `ca-crl.pem`.
    #[serde(serialize_with = "path::option::serialize")]
    pub dir: Option<PathBuf>,
    /// `endpoint`.
    pub endpoint: TlsEndpoint,
    /// `passwordid`: a secret that decrypts the key.
    pub passwordid: Option<String>,
    /// `sanity-check`: whether the server's own certificate must be valid; on by default.
    pub sanity_check: Option<bool>,
    /// `verify-peer`: whether clients need a certificate; on by default. That of a server is always verified.
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
    type Object = TlsObject;

    /// Reads credentials from their directory.
    #[cfg(feature = "tls")]
    fn co_make(
        &self,
        place: &ObjectPlace<'_, '_>,
        options: &TlsCredsX509Options,
    ) -> Result<TlsObject, DaemonError> {
        let dir = options.dir.as_deref();
        let dir = dir.ok_or(DaemonError::Unsupported("Missing 'dir' property value"))?;
        let secret = options.passwordid.as_deref().map(|id| {
            let secret = place.blockdevs.object::<Secret>(id);
            secret.ok_or_else(|| refused(format!("No secret with id '{id}'")))
        });
        let secret = secret.transpose()?;
        let password = secret.as_ref().map(|secret| {
            secret.text().ok_or_else(|| refused("the secret is no password".to_owned()))
        });
        let password = password.transpose()?;
        let files = TlsFiles::new(dir);
        let files = password.map_or(files, |password| files.password(password));
        let verify_peer = options.verify_peer.unwrap_or(true);
        match options.endpoint {
            TlsEndpoint::Server => {
                let check = options.sanity_check.unwrap_or(true);
                let read = || TlsCredentials::from_files(&files, verify_peer, check);
                let credentials = PoolShare::once(place.co, read);
                Ok(TlsObject::Server(credentials.map_err(DaemonError::of_object)?))
            }
            TlsEndpoint::Client if !verify_peer => Err(DaemonError::Unsupported(
                "'verify-peer=off' is not supported for a client: any server could take the place of its own",
            )),
            TlsEndpoint::Client => {
                let credentials =
                    PoolShare::once(place.co, || TlsClientCredentials::from_files(&files));
                let credentials = Arc::new(credentials.map_err(DaemonError::of_object)?);
                place.blockdevs.add_object(place.id, Arc::clone(&credentials))?;
                Ok(TlsObject::Client(credentials))
            }
        }
    }

    #[cfg(feature = "tls")]
    fn release(&self, place: &ObjectPlace<'_, '_>, object: &TlsObject) -> Result<(), DaemonError> {
        match object {
            TlsObject::Server(_) => Ok(()),
            TlsObject::Client(_) => {
                Ok(place.blockdevs.remove_object::<TlsClientCredentials>(place.id)?)
            }
        }
    }

    /// Refuses: no server could use them.
    #[cfg(not(feature = "tls"))]
    fn co_make(
        &self,
        _: &ObjectPlace<'_, '_>,
        _: &TlsCredsX509Options,
    ) -> Result<TlsObject, DaemonError> {
        Err(DaemonError::Unsupported("'tls-creds-x509' is not supported: built without TLS"))
    }

    fn properties(&self) -> Vec<Property> {
        vec![
            Property::new("dir", "string"),
            Property::new("endpoint", "QCryptoTLSCredsEndpoint"),
            Property::new("passwordid", "string"),
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
    passwordid: Option<String>,
    sanity_check: Option<bool>,
    verify_peer: Option<bool>,
    #[serde(rename = "priority")]
    _priority: Option<Unsupported>,
}

impl From<Fields> for TlsCredsX509Options {
    fn from(fields: Fields) -> TlsCredsX509Options {
        let Fields { dir, endpoint, passwordid, sanity_check, verify_peer, .. } = fields;
        TlsCredsX509Options { dir, endpoint, passwordid, sanity_check, verify_peer }
    }
}

#[cfg(feature = "tls")]
fn refused(why: String) -> DaemonError {
    crate::options::OptionError::other(why).into()
}
