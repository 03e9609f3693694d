//! [`NbdNodeOptions`]: QAPI's `BlockdevOptionsNbd`.

use coblk_aio::net::SocketAddress;
use coblk_block::options::{DriverConfig, DriverOptions};
use serde::{Deserialize, Serialize};

use crate::client::uri;

/// Options of `nbd`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct NbdNodeOptions {
    /// `server`: where it listens.
    pub server: SocketAddress,
    /// `export`: its name there; empty by default.
    pub export: Option<String>,
    /// `tls-creds`: an object with the certificate of this client, and of the servers that it trusts. The connection is
    /// secure then.
    pub tls_creds: Option<String>,
    /// `tls-hostname`: the name that the server's certificate must have; by default the host of a TCP
    /// address.
    pub tls_hostname: Option<String>,
    /// `x-dirty-bitmap`: the metadata context that block status shows in the place of `base:allocation`, such
    /// as `qemu:dirty-bitmap:b`: what is dirty there is no data.
    pub x_dirty_bitmap: Option<String>,
    /// `reconnect-delay`: for how many seconds requests wait when the connection is lost, before they fail;
    /// 0 by default: they fail at once.
    pub reconnect_delay: Option<u32>,
    /// `open-timeout`: for how many seconds the server is tried to reach when the node is opened; 0 by
    /// default: once.
    pub open_timeout: Option<u32>,
    /// `x-coblk-connections`: connections at once, for as many contexts, from 1 to 16, if the server shows the
    /// same bytes on all; 4 by default.
    pub x_coblk_connections: Option<u32>,
}

impl NbdNodeOptions {
    /// Options of the export `export` of a server, with every option as it is by default.
    pub fn new(server: impl Into<SocketAddress>, export: impl Into<String>) -> NbdNodeOptions {
        NbdNodeOptions {
            server: server.into(),
            export: Some(export.into()),
            tls_creds: None,
            tls_hostname: None,
            x_dirty_bitmap: None,
            reconnect_delay: None,
            open_timeout: None,
            x_coblk_connections: None,
        }
    }
}

impl NbdNodeOptions {
    /// Reads a file name of NBD, as QEMU does: a URI, such as `nbd://host:10809/disk` or
    /// `nbd+unix:///disk?socket=/run/nbd.sock`, or `nbd:HOST:PORT` or `nbd:unix:PATH`, with `:exportname=NAME`
    /// behind. `None` if the name is of another protocol, or of none.
    ///
    /// # Errors
    /// What is wrong with it; also TLS, for which a name has no credentials.
    ///
    /// ```
    /// use coblk_nbd::{NbdNodeOptions, SocketAddress};
    ///
    /// let options = NbdNodeOptions::from_filename("nbd+unix:///disk?socket=/run/nbd.sock").unwrap()?;
    /// assert_eq!(options, NbdNodeOptions::new(SocketAddress::unix("/run/nbd.sock"), "disk"));
    /// assert!(NbdNodeOptions::from_filename("disk.img").is_none());
    /// # Ok::<(), String>(())
    /// ```
    pub fn from_filename(name: &str) -> Option<Result<NbdNodeOptions, String>> {
        uri::parse(name)
    }
}

impl DriverOptions for NbdNodeOptions {}

impl From<NbdNodeOptions> for DriverConfig {
    fn from(options: NbdNodeOptions) -> DriverConfig {
        DriverConfig::new("nbd", options)
    }
}
