//! [`Target`]: which export of which server a node stands for.

#[cfg(feature = "tls")]
use std::io;

use coblk_aio::net::SocketAddress;

use crate::client::uri;
use crate::transport::TlsClientCredentials;

/// What every connection is made with.
#[derive(Clone, Debug)]
pub struct Target {
    pub server: SocketAddress,
    pub export: String,
    /// The metadata context that describes extents, in the place of `base:allocation`.
    pub bitmap: Option<String>,
    /// With the name that the server's certificate must have.
    pub tls: Option<(TlsClientCredentials, String)>,
}

impl Target {
    pub fn wants_tls(&self) -> bool {
        self.tls.is_some()
    }

    pub fn uri(&self) -> Option<String> {
        uri::of(&self.server, &self.export, self.wants_tls())
    }

    /// TLS for a new connection, if it is to be secure.
    #[cfg(feature = "tls")]
    pub fn tls_session(&self) -> io::Result<Option<crate::transport::Session>> {
        let tls = self.tls.as_ref();
        tls.map(|(credentials, host)| credentials.session(host)).transpose()
    }
}
