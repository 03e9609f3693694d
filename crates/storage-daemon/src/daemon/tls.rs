//! Credentials for the NBD server.

use coblk::nbd::{Authorize, NbdOptions};

use super::{Daemon, DaemonError};
use crate::objects::authz::Authz;
use crate::objects::tls_creds_x509::TlsObject;
use crate::options::OptionError;

impl Daemon {
    /// The same with the object of this name, which says which clients are let in.
    pub(super) fn with_authz(
        &self,
        limits: NbdOptions,
        id: Option<&str>,
    ) -> Result<NbdOptions, DaemonError> {
        let Some(id) = id else { return Ok(limits) };
        if limits.tls.is_none() {
            let text = "'tls-authz' needs 'tls-creds': without TLS no client has a certificate";
            return Err(DaemonError::Unsupported(text));
        }
        match self.object::<Authz>(id) {
            Some(authz) => Ok(limits.authorize(Authorize::new(move |name| authz.allows(name)))),
            None => {
                let why = match self.objects.any(id) {
                    Some(_) => format!("Object with id '{id}' is not an authorization object"),
                    None => format!("No authorization object with id '{id}'"),
                };
                Err(OptionError::other(why).into())
            }
        }
    }

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
