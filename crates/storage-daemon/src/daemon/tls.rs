//! Credentials for the NBD server.

use coblk::nbd::NbdOptions;

use super::{Daemon, DaemonError};
use crate::objects::tls_creds_x509::TlsObject;

impl Daemon {
    /// The limits of a server, with the credentials of this name.
    pub(super) fn with_tls(
        &self,
        limits: NbdOptions,
        id: Option<&str>,
    ) -> Result<NbdOptions, DaemonError> {
        let Some(id) = id else { return Ok(limits) };
        match self.object::<TlsObject>(id).as_deref() {
            #[cfg(feature = "tls")]
            Some(TlsObject::Server(credentials)) => Ok(limits.tls(credentials.clone())),
            #[cfg(feature = "tls")]
            Some(TlsObject::Client(_)) => {
                let text = "Expecting TLS credentials with a server endpoint";
                Err(DaemonError::Unsupported(text))
            }
            #[cfg(not(feature = "tls"))]
            Some(credentials) => match *credentials {},
            None if self.objects.any(id).is_some() => {
                Err(DaemonError::NotTlsCredentials(id.to_owned()))
            }
            None => Err(DaemonError::NoTlsCredentials(id.to_owned())),
        }
    }
}
