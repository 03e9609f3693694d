//! `--object tls-creds-x509`: who the NBD server is, and whom it lets in.

use std::path::PathBuf;

use serde::Deserialize;
use serde::de::{Error, MapAccess};

/// Certificates and a key in a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsCredsX509Options {
    /// `dir`: has `ca-cert.pem`, `server-cert.pem` and `server-key.pem`, and may have `ca-crl.pem`.
    pub dir: Option<PathBuf>,
    /// `endpoint`.
    pub endpoint: TlsEndpoint,
    /// `sanity-check`: whether the server's own certificate must be valid; on by default.
    pub sanity_check: Option<bool>,
    /// `verify-peer`: whether clients need a certificate; on by default.
    pub verify_peer: Option<bool>,
}

/// Whose credentials they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TlsEndpoint {
    /// A client's; QEMU's default.
    #[default]
    Client,
    /// A server's.
    Server,
}

impl TlsCredsX509Options {
    /// Its properties.
    pub const PROPERTIES: [&'static str; 4] = ["dir", "endpoint", "sanity-check", "verify-peer"];

    /// Takes the value of a property, if it is one of these.
    pub(super) fn take<'de, M: MapAccess<'de>>(
        &mut self,
        property: &str,
        map: &mut M,
    ) -> Result<bool, M::Error> {
        match property {
            "dir" => self.dir = Some(map.next_value()?),
            "endpoint" => self.endpoint = map.next_value()?,
            "verify-peer" => self.verify_peer = Some(map.next_value()?),
            "sanity-check" => self.sanity_check = Some(map.next_value()?),
            "passwordid" | "priority" => {
                let text = format!("Parameter '{property}' is not supported");
                return Err(M::Error::custom(text));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}
