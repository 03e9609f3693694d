//! `--nbd-server`: QAPI's `NbdServerOptions`.

use coblk::aio::net::SocketAddress;
use serde::{Deserialize, Deserializer, de};

use super::address::AddressOptions;

/// Where the NBD server listens, and its limits.
#[derive(Clone, Debug, PartialEq, Eq)]
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
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Flat {
    addr: AddressOptions,
    max_connections: Option<u32>,
    handshake_max_seconds: Option<u32>,
    tls_creds: Option<String>,
    tls_authz: Option<String>,
}

impl<'de> Deserialize<'de> for NbdServerOptions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<NbdServerOptions, D::Error> {
        let Flat { addr, max_connections, handshake_max_seconds, tls_creds, tls_authz } =
            Flat::deserialize(deserializer)?;
        if tls_authz.is_some() {
            return Err(de::Error::custom(
                "Parameter 'tls-authz' is not supported: whoever has a certificate is let in",
            ));
        }
        Ok(NbdServerOptions { addr: addr.0, max_connections, handshake_max_seconds, tls_creds })
    }
}
