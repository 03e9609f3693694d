//! `--nbd-server`: QAPI's `NbdServerOptions`.

use coblk::aio::net::SocketAddress;
use serde::{Deserialize, Serialize};

/// Where the NBD server listens, and its limits.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
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
    /// `tls-authz`: an object that says which clients are let in, by the names of their certificates.
    pub tls_authz: Option<String>,
}
