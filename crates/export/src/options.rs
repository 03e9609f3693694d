//! [`ExportOptions`]: QAPI's `BlockExportOptions`, as far as they are those of all types.

use coblk_block::{ErrorPolicies, ErrorPolicy};
use coblk_qapi::{Deferred, FromParts, OneOrMany, Parts};
use serde::de::MapAccess;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A node, for others to use.
///
/// ```
/// use coblk_export::ExportOptions;
///
/// let line = "nbd,id=e0,node-name=disk,writable=on,name=one";
/// let options: ExportOptions = coblk_qapi::from_argument(line, "type")?;
/// assert_eq!((options.kind.as_str(), options.node_name.as_str()), ("nbd", "disk"));
/// let error = coblk_qapi::from_argument::<ExportOptions>("nbd,id=e0", "type").unwrap_err();
/// assert_eq!(error.to_string(), "Parameter 'node-name' is missing");
/// # Ok::<(), coblk_qapi::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExportOptions {
    /// `type`: the name of an [`ExportType`](crate::ExportType).
    pub kind: String,
    /// `id`: unique among exports.
    pub id: String,
    /// `node-name`.
    pub node_name: String,
    /// `writable`: off by default.
    pub writable: bool,
    /// `writethrough`: every write is durable before it is answered. Off by default.
    pub writethrough: bool,
    /// `iothread`: the threads that serve it; the main one if there is none.
    pub iothreads: Vec<String>,
    /// `fixed-iothread`: it is an error if `iothread` cannot serve it. Off by default.
    pub fixed_iothread: bool,
    /// `allow-inactive`: the node may be inactive, and become so: requests fail meanwhile. Off by default: an
    /// inactive node is made active for the export.
    pub allow_inactive: bool,
    /// `rerror`: what happens when a read fails; not among QEMU's.
    pub rerror: OnError,
    /// `werror`: what happens when anything else fails; not among QEMU's.
    pub werror: OnError,
    /// Those of its type, which reads them.
    pub others: Deferred,
}

impl ExportOptions {
    /// What its backends do when a request fails.
    pub fn error_policies(&self) -> ErrorPolicies {
        ErrorPolicies { read: self.rerror.into(), write: self.werror.into() }
    }
}

/// What happens when a request fails, in the words of QEMU's devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum OnError {
    /// The client is told. The default.
    #[default]
    Report,
    /// The client is told that all is well.
    Ignore,
    /// The request is held until the export is resumed.
    Stop,
    /// `stop` if there is no space left, else `report`.
    Enospc,
    /// The default of the export: `report`.
    Auto,
}

impl From<OnError> for ErrorPolicy {
    fn from(on_error: OnError) -> ErrorPolicy {
        match on_error {
            OnError::Report | OnError::Auto => ErrorPolicy::Report,
            OnError::Ignore => ErrorPolicy::Ignore,
            OnError::Stop => ErrorPolicy::Stop,
            OnError::Enospc => ErrorPolicy::Enospc,
        }
    }
}

/// The members of all types.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Common {
    id: String,
    #[serde(default)]
    fixed_iothread: bool,
    #[serde(default)]
    iothread: Option<OneOrMany>,
    node_name: String,
    #[serde(default)]
    writable: bool,
    #[serde(default)]
    writethrough: bool,
    #[serde(default)]
    allow_inactive: bool,
    #[serde(default, alias = "on-read-error")]
    rerror: OnError,
    #[serde(default, alias = "on-write-error")]
    werror: OnError,
}

/// The member that names the type.
pub(crate) const TAG: &str = "type";

#[derive(Deserialize)]
struct Type {
    r#type: String,
}

impl FromParts for ExportOptions {
    fn from_parts<'de, M: MapAccess<'de>>(parts: &mut Parts<M>) -> Result<ExportOptions, M::Error> {
        let Type { r#type: kind } = parts.take()?;
        let common: Common = parts.take()?;
        Ok(ExportOptions {
            kind,
            id: common.id,
            node_name: common.node_name,
            writable: common.writable,
            writethrough: common.writethrough,
            iothreads: common.iothread.unwrap_or_default().0,
            fixed_iothread: common.fixed_iothread,
            allow_inactive: common.allow_inactive,
            rerror: common.rerror,
            werror: common.werror,
            others: parts.take()?,
        })
    }
}

impl<'de> Deserialize<'de> for ExportOptions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ExportOptions, D::Error> {
        coblk_qapi::parts(deserializer)
    }
}

impl Serialize for ExportOptions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let iothread = Some(OneOrMany(self.iothreads.clone()));
        let common = Common {
            id: self.id.clone(),
            fixed_iothread: self.fixed_iothread,
            iothread: iothread.filter(|threads| !threads.0.is_empty()),
            node_name: self.node_name.clone(),
            writable: self.writable,
            writethrough: self.writethrough,
            allow_inactive: self.allow_inactive,
            rerror: self.rerror,
            werror: self.werror,
        };
        let kind = serde_json::json!({ self.kind.as_str(): self.others });
        coblk_qapi::write_variant(serializer, TAG, &kind, &common)
    }
}
