//! What the daemon can be told, as serde structs with QEMU's names, which [`coblk::qapi`] reads from a
//! command line or from JSON.
//!
//! ```
//! use coblk_storage_daemon::options::{ExportOptions, from_argument};
//!
//! let line = "nbd,id=e0,node-name=disk,writable=on";
//! let json = r#"{"type": "nbd", "id": "e0", "node-name": "disk", "writable": true}"#;
//! let export: ExportOptions = from_argument(line, "type")?;
//! assert_eq!(export, from_argument(json, "type")?);
//! let error = from_argument::<ExportOptions>("nbd,id=e0", "type").unwrap_err();
//! assert_eq!(error.to_string(), "Parameter 'node-name' is missing");
//! # Ok::<(), coblk_storage_daemon::options::OptionError>(())
//! ```

mod chardev;
mod metrics;
mod nbd_server;
mod object;

pub(crate) use chardev::BACKENDS as CHARDEV_BACKENDS;
pub use chardev::{ChardevBackend, ChardevOptions, MonitorMode, MonitorOptions, SocketChardev};
pub use coblk::aio::net::{InetAddress, SocketAddress, UnixAddress, VsockAddress};
pub use coblk::export::{ExportOptions, OnError};
pub use coblk::fuse::{AllowOther, FuseExportOptions};
pub use coblk::nbd::NbdExportOptions;
pub(crate) use coblk::qapi::is_identifier;
pub use coblk::qapi::{Error as OptionError, Size, from_argument};
pub use coblk::vhost_user_blk::VhostUserBlkExportOptions;
pub use metrics::MetricsOptions;
pub use nbd_server::NbdServerOptions;
pub use object::ObjectOptions;
pub(crate) use object::{Common as ObjectCommon, TAG as OBJECT_TAG};

#[cfg(test)]
mod tests;
