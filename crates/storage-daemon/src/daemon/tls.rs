//! Credentials for the NBD server. Without the feature `tls` there are none.

use coblk::Co;
#[cfg(feature = "tls")]
use coblk::aio::PoolShare;
use coblk::nbd::NbdOptions;

use super::objects::Object;
use super::{Daemon, DaemonError};
use crate::options::TlsCredsX509Options;

#[cfg(feature = "tls")]
pub(super) use coblk::nbd::TlsCredentials;

/// There are none.
#[cfg(not(feature = "tls"))]
pub(super) enum TlsCredentials {}

/// Reads credentials from their directory.
#[cfg(feature = "tls")]
pub(super) fn load(
    co: &Co<'_>,
    options: &TlsCredsX509Options,
) -> Result<TlsCredentials, DaemonError> {
    use crate::options::TlsEndpoint;

    if options.endpoint != TlsEndpoint::Server {
        return Err(DaemonError::Unsupported("Expecting TLS credentials with a server endpoint"));
    }
    let dir = options.dir.as_deref();
    let dir = dir.ok_or(DaemonError::Unsupported("Missing 'dir' property value"))?;
    let verify_peer = options.verify_peer.unwrap_or(true);
    let read = match options.sanity_check.unwrap_or(true) {
        true => TlsCredentials::from_dir,
        false => TlsCredentials::from_dir_unchecked,
    };
    let credentials = PoolShare::once(co, || read(dir, verify_peer));
    credentials.map_err(|error| DaemonError::Tls(Box::new(error)))
}

/// Refuses: there is nobody who could use them.
#[cfg(not(feature = "tls"))]
pub(super) fn load(_: &Co<'_>, _: &TlsCredsX509Options) -> Result<TlsCredentials, DaemonError> {
    Err(DaemonError::Unsupported("'tls-creds-x509' is not supported: built without TLS"))
}

impl Daemon {
    /// The limits of a server, with the credentials of this name.
    pub(super) fn with_tls(
        &self,
        limits: NbdOptions,
        id: Option<&str>,
    ) -> Result<NbdOptions, DaemonError> {
        let Some(id) = id else { return Ok(limits) };
        match self.objects.borrow().get(id) {
            #[cfg(feature = "tls")]
            Some(Object::TlsCreds(credentials)) => Ok(limits.tls(credentials.clone())),
            #[cfg(not(feature = "tls"))]
            Some(Object::TlsCreds(credentials)) => match *credentials {},
            Some(_) => Err(DaemonError::NotTlsCredentials(id.to_owned())),
            None => Err(DaemonError::NoTlsCredentials(id.to_owned())),
        }
    }
}
