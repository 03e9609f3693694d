//! `--nbd-server`: QAPI's `NbdServerOptions`.

use serde::{Deserialize, Deserializer, de};

use super::address::SocketAddress;

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
}

/// With what is known and not supported.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Flat {
    addr: SocketAddress,
    max_connections: Option<u32>,
    handshake_max_seconds: Option<u32>,
    tls_creds: Option<String>,
    tls_authz: Option<String>,
}

impl<'de> Deserialize<'de> for NbdServerOptions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<NbdServerOptions, D::Error> {
        let Flat { addr, max_connections, handshake_max_seconds, tls_creds, tls_authz } =
            Flat::deserialize(deserializer)?;
        for (name, value) in [("tls-creds", tls_creds), ("tls-authz", tls_authz)] {
            if value.is_some() {
                let text = format!("Parameter '{name}' is not supported: there is no TLS");
                return Err(de::Error::custom(text));
            }
        }
        Ok(NbdServerOptions { addr, max_connections, handshake_max_seconds })
    }
}
