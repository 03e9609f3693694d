//! [`NbdOptions`]: the limits of a server.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::transport::TlsCredentials;

/// Limits of a server.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NbdOptions {
    /// Clients at once; others wait to be accepted. 0: any number.
    pub max_connections: usize,
    /// How long a client may take until it has chosen an export.
    pub handshake_timeout: Duration,
    /// Clients wait to be accepted until [`NbdServer::begin`](crate::NbdServer::begin): for a daemon
    /// that has more to do before it serves.
    pub paused: bool,
    /// How clients encrypt what they say; `None`, and always without the feature `tls`: they cannot.
    pub tls: Option<TlsCredentials>,
    /// Which clients with a certificate are let in; `None`: all.
    pub authorize: Option<Authorize>,
}

/// Says of the distinguished name of a client's certificate, such as `C=GB,O=Example,CN=laptop`, whether the
/// client is let in. It is called on a worker thread, and may block.
#[derive(Clone)]
pub struct Authorize(Arc<dyn Fn(&str) -> bool + Send + Sync>);

impl Authorize {
    /// One that asks `allows`.
    pub fn new(allows: impl Fn(&str) -> bool + Send + Sync + 'static) -> Authorize {
        Authorize(Arc::new(allows))
    }

    /// Whether a client is let in.
    pub fn allows(&self, identity: &str) -> bool {
        (self.0)(identity)
    }
}

impl fmt::Debug for Authorize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authorize").finish_non_exhaustive()
    }
}

impl NbdOptions {
    /// The same with so many clients at once; 0 for any number.
    #[must_use]
    pub fn max_connections(self, max_connections: usize) -> NbdOptions {
        NbdOptions { max_connections, ..self }
    }

    /// The same with so much time for a client to choose an export.
    #[must_use]
    pub fn handshake_timeout(self, handshake_timeout: Duration) -> NbdOptions {
        NbdOptions { handshake_timeout, ..self }
    }

    /// The same, and clients wait for [`NbdServer::begin`](crate::NbdServer::begin) if `paused`.
    #[must_use]
    pub fn paused(self, paused: bool) -> NbdOptions {
        NbdOptions { paused, ..self }
    }

    /// The same with TLS: a client can do nothing before it has begun that, unless the credentials are
    /// optional.
    #[must_use]
    pub fn tls(self, credentials: TlsCredentials) -> NbdOptions {
        NbdOptions { tls: Some(credentials), ..self }
    }

    /// The same, and only clients whose certificates are of these names are let in. Without effect where clients
    /// need no certificate.
    #[must_use]
    pub fn authorize(self, authorize: Authorize) -> NbdOptions {
        NbdOptions { authorize: Some(authorize), ..self }
    }
}

impl Default for NbdOptions {
    /// 100 clients, 10 seconds, at once, no TLS.
    fn default() -> NbdOptions {
        NbdOptions {
            max_connections: 100,
            handshake_timeout: Duration::from_secs(10),
            paused: false,
            tls: None,
            authorize: None,
        }
    }
}
