//! `--object tls-creds-x509`: who the NBD server is, and whom it lets in.

use std::path::PathBuf;

use coblk::qapi::{Unsupported, path};
use serde::{Deserialize, Serialize};

/// Certificates and a key in a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(from = "Fields", rename_all = "kebab-case")]
pub struct TlsCredsX509Options {
    /// `dir`: has `ca-cert.pem`, `server-cert.pem` and `server-key.pem`, and may have `ca-crl.pem`.
    #[serde(serialize_with = "path::option::serialize")]
    pub dir: Option<PathBuf>,
    /// `endpoint`.
    pub endpoint: TlsEndpoint,
    /// `sanity-check`: whether the server's own certificate must be valid; on by default.
    pub sanity_check: Option<bool>,
    /// `verify-peer`: whether clients need a certificate; on by default.
    pub verify_peer: Option<bool>,
}

/// Whose credentials they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
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
}

/// With what is known, and ignored or not supported.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Fields {
    #[serde(default, deserialize_with = "path::option::deserialize")]
    dir: Option<PathBuf>,
    #[serde(default)]
    endpoint: TlsEndpoint,
    sanity_check: Option<bool>,
    verify_peer: Option<bool>,
    #[serde(rename = "passwordid")]
    _passwordid: Option<Unsupported>,
    #[serde(rename = "priority")]
    _priority: Option<Unsupported>,
}

impl From<Fields> for TlsCredsX509Options {
    fn from(fields: Fields) -> TlsCredsX509Options {
        let Fields { dir, endpoint, sanity_check, verify_peer, .. } = fields;
        TlsCredsX509Options { dir, endpoint, sanity_check, verify_peer }
    }
}
