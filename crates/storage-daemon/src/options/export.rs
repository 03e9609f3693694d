//! `--export`: QAPI's `BlockExportOptions`.

use coblk::aio::net::SocketAddress;
use coblk::block::ErrorPolicy;
use coblk::qapi::{FromParts, OneOrMany, Only, Parts, Size, Unsupported};
use serde::de::MapAccess;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::address;

/// A node, for others to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportOptions {
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
    /// `rerror`: what happens when a read fails; ours.
    pub rerror: OnError,
    /// `werror`: what happens when anything else fails; ours.
    pub werror: OnError,
    /// `type`, and what belongs to it.
    pub kind: ExportKind,
}

/// A kind of export.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExportKind {
    /// `nbd`.
    Nbd(NbdExportOptions),
    /// `vhost-user-blk`.
    VhostUserBlk(VhostUserBlkExportOptions),
}

/// What clients of the NBD server find.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(from = "NbdFields")]
pub struct NbdExportOptions {
    /// `name`; the node's by default.
    pub name: Option<String>,
    /// `description`: a text for people.
    pub description: Option<String>,
}

/// A disk for a virtual machine in another process.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct VhostUserBlkExportOptions {
    /// `addr`: where front ends connect; `unix` or `fd`.
    #[serde(with = "address")]
    pub addr: SocketAddress,
    /// `logical-block-size` in bytes; 512 by default.
    pub logical_block_size: Option<Size>,
    /// `num-queues`; 1 by default.
    pub num_queues: Option<u16>,
}

/// What happens when a request fails, in the words of QEMU's devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnError {
    /// The client is told. The default.
    #[default]
    Report,
    /// The client is told that all is well.
    Ignore,
    /// The request is held until somebody resumes the export.
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

/// What all exports have.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Common {
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
    /// Nodes are active.
    #[serde(rename = "allow-inactive", skip_serializing)]
    _allow_inactive: Option<Only<false>>,
    #[serde(default, alias = "on-read-error")]
    rerror: OnError,
    #[serde(default, alias = "on-write-error")]
    werror: OnError,
}

/// `nbd`, with what is known and not supported.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct NbdFields {
    name: Option<String>,
    description: Option<String>,
    #[serde(rename = "bitmaps")]
    _bitmaps: Option<Unsupported>,
    /// Nodes have no backing files.
    #[serde(rename = "allocation-depth")]
    _allocation_depth: Option<Only<false>>,
}

impl From<NbdFields> for NbdExportOptions {
    fn from(NbdFields { name, description, .. }: NbdFields) -> NbdExportOptions {
        NbdExportOptions { name, description }
    }
}

impl FromParts for ExportOptions {
    fn from_parts<'de, M: MapAccess<'de>>(parts: &mut Parts<M>) -> Result<ExportOptions, M::Error> {
        let (kind, common): (_, Common) = (parts.variant("type")?, parts.take()?);
        Ok(ExportOptions {
            id: common.id,
            node_name: common.node_name,
            writable: common.writable,
            writethrough: common.writethrough,
            iothreads: common.iothread.unwrap_or_default().0,
            fixed_iothread: common.fixed_iothread,
            rerror: common.rerror,
            werror: common.werror,
            kind,
        })
    }
}

impl<'de> Deserialize<'de> for ExportOptions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ExportOptions, D::Error> {
        coblk::qapi::parts(deserializer)
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
            _allow_inactive: None,
            rerror: self.rerror,
            werror: self.werror,
        };
        coblk::qapi::write_variant(serializer, "type", &self.kind, &common)
    }
}
