//! Credentials for the NBD server.

use coblk::nbd::NbdOptions;

use super::{Daemon, DaemonError};
use crate::objects::tls_creds_x509::TlsCredentials;

impl Daemon {
    /// The limits of a server, with the credentials of this name.
    pub(super) fn with_tls(
        &self,
        limits: NbdOptions,
        id: Option<&str>,
    ) -> Result<NbdOptions, DaemonError> {
        let Some(id) = id else { return Ok(limits) };
        match self.object::<TlsCredentials>(id) {
            #[cfg(feature = "tls")]
            Some(credentials) => Ok(limits.tls(TlsCredentials::clone(&credentials))),
            #[cfg(not(feature = "tls"))]
            Some(credentials) => match *credentials {},
            None if self.objects.any(id).is_some() => {
                Err(DaemonError::NotTlsCredentials(id.to_owned()))
            }
            None => Err(DaemonError::NoTlsCredentials(id.to_owned())),
        }
    }
}
