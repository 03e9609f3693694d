//! `--nbd-server`: QAPI's `NbdServerOptions`.

use coblk::aio::net::SocketAddress;
use coblk::qapi::Unsupported;
use serde::{Deserialize, Serialize};

/// Where the NBD server listens, and its limits.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(from = "Fields", rename_all = "kebab-case")]
#[non_exhaustive]
pub struct NbdServerOptions {
    /// `addr`.
    pub addr: SocketAddress,
    /// `max-connections`: clients at once, 0 for any number; 100 by default.
    pub max_connections: Option<u32>,
    /// `handshake-max-seconds`: how long a client may take until it has chosen an export, 0 for any
    /// time; 10 by default.
    pub handshake_max_seconds: Option<u32>,
    /// `tls-creds`: an object that says who the server is; clients must use TLS then.
    pub tls_creds: Option<String>,
}

/// With what is known and not supported.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Fields {
    addr: SocketAddress,
    max_connections: Option<u32>,
    handshake_max_seconds: Option<u32>,
    tls_creds: Option<String>,
    /// Any client with a certificate is let in.
    #[serde(rename = "tls-authz")]
    _tls_authz: Option<Unsupported>,
}

impl From<Fields> for NbdServerOptions {
    fn from(fields: Fields) -> NbdServerOptions {
        let Fields { addr, max_connections, handshake_max_seconds, tls_creds, .. } = fields;
        NbdServerOptions { addr, max_connections, handshake_max_seconds, tls_creds }
    }
}
