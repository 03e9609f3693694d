//! What the daemon can be told, as serde structs with QEMU's names; and how such a struct is read
//! from a command line or from JSON.
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

mod address;
mod chardev;
mod error;
mod export;
mod metrics;
mod nbd_server;
mod object;
mod throttle;
mod tls;
mod tree;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use address::AddressOptions;
pub(crate) use chardev::BACKENDS as CHARDEV_BACKENDS;
pub use chardev::{ChardevBackend, ChardevOptions, MonitorMode, MonitorOptions, SocketChardev};
pub use coblk::aio::net::{InetAddress, SocketAddress, UnixAddress, VsockAddress};
pub use error::OptionError;
pub use export::{ExportKind, ExportOptions, NbdExportOptions, OnError, VhostUserBlkExportOptions};
pub use metrics::MetricsOptions;
pub use nbd_server::NbdServerOptions;
pub use object::{IothreadOptions, ObjectKind, ObjectOptions};
pub use throttle::ThrottleGroupOptions;
pub use tls::{TlsCredsX509Options, TlsEndpoint};
use tree::{Notation, Tree};

/// A number of bytes. On a command line it may have a suffix, as `4k`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Size(pub u64);

/// Reads what stands after an option on a command line: JSON if it begins with a brace, else
/// `name=value` separated by commas, where the first may be a value alone, that of `implied`.
///
/// # Errors
/// Which parameter is wrong, in QEMU's words.
pub fn from_argument<T: DeserializeOwned>(text: &str, implied: &str) -> Result<T, OptionError> {
    if text.starts_with('{') {
        let value = serde_json::from_str(text);
        return from_value(
            value.map_err(|it| OptionError::Other(format!("JSON parse error, {it}")))?,
        );
    }
    let tree = coblk::options::parse_keyval(text, implied);
    let tree = tree.map_err(|it| OptionError::Other(it.to_string()))?;
    T::deserialize(Tree::new(Value::Object(tree), Notation::Keyval))
}

/// Reads JSON that has been parsed.
///
/// # Errors
/// Which parameter is wrong, in QEMU's words.
pub fn from_value<T: DeserializeOwned>(value: Value) -> Result<T, OptionError> {
    T::deserialize(Tree::new(value, Notation::Json))
}

/// Whether a user may give something this name: QEMU's rule for identifiers.
pub(crate) fn is_identifier(name: &str) -> bool {
    let good = |it: char| it.is_ascii_alphanumeric() || "-._".contains(it);
    name.starts_with(|it: char| it.is_ascii_alphabetic()) && name.chars().all(good)
}

/// Refuses members that do not belong to the variant that was chosen: those that are there.
fn refuse<E: serde::de::Error>(members: &[(&str, bool)]) -> Result<(), E> {
    match members.iter().find(|(_, is_there)| *is_there) {
        Some((name, _)) => Err(E::unknown_field(name, &[])),
        None => Ok(()),
    }
}
