//! `--export`: QAPI's `BlockExportOptions`.

use coblk::block::ErrorPolicy;
use serde::{Deserialize, Deserializer, de};

use coblk::aio::net::SocketAddress;

use super::address::AddressOptions;
use super::{Size, refuse};

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExportKind {
    /// `nbd`.
    Nbd(NbdExportOptions),
    /// `vhost-user-blk`.
    VhostUserBlk(VhostUserBlkExportOptions),
}

/// What clients of the NBD server find.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NbdExportOptions {
    /// `name`; the node's by default.
    pub name: Option<String>,
    /// `description`: a text for people.
    pub description: Option<String>,
}

/// A disk for a virtual machine in another process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VhostUserBlkExportOptions {
    /// `addr`: where front ends connect; `unix` or `fd`.
    pub addr: SocketAddress,
    /// `logical-block-size` in bytes; 512 by default.
    pub logical_block_size: Option<u64>,
    /// `num-queues`; 1 by default.
    pub num_queues: Option<u16>,
}

/// What happens when a request fails, in the words of QEMU's devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
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

/// One thread, or a list of them.
#[derive(Deserialize)]
#[serde(untagged, expecting = "Parameter 'iothread' expects a name or a list of names")]
enum Iothreads {
    One(String),
    Several(Vec<String>),
}

/// The members of all variants.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Flat {
    #[serde(rename = "type")]
    kind: Kind,
    id: String,
    node_name: String,
    #[serde(default)]
    writable: bool,
    #[serde(default)]
    writethrough: bool,
    iothread: Option<Iothreads>,
    #[serde(default)]
    fixed_iothread: bool,
    #[serde(default, alias = "on-read-error")]
    rerror: OnError,
    #[serde(default, alias = "on-write-error")]
    werror: OnError,
    name: Option<String>,
    description: Option<String>,
    bitmaps: Option<de::IgnoredAny>,
    allocation_depth: Option<bool>,
    addr: Option<AddressOptions>,
    logical_block_size: Option<Size>,
    num_queues: Option<u16>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    Nbd,
    VhostUserBlk,
}

impl Flat {
    fn nbd<E: de::Error>(&mut self) -> Result<NbdExportOptions, E> {
        refuse(&[
            ("addr", self.addr.is_some()),
            ("logical-block-size", self.logical_block_size.is_some()),
            ("num-queues", self.num_queues.is_some()),
        ])?;
        if self.bitmaps.is_some() {
            return Err(E::custom("Parameter 'bitmaps' is not supported: nodes have no bitmaps"));
        }
        if self.allocation_depth == Some(true) {
            return Err(E::custom(
                "Parameter 'allocation-depth' is not supported: nodes have no backing files",
            ));
        }
        Ok(NbdExportOptions { name: self.name.take(), description: self.description.take() })
    }

    fn vhost_user_blk<E: de::Error>(&mut self) -> Result<VhostUserBlkExportOptions, E> {
        refuse(&[
            ("name", self.name.is_some()),
            ("description", self.description.is_some()),
            ("bitmaps", self.bitmaps.is_some()),
            ("allocation-depth", self.allocation_depth.is_some()),
        ])?;
        Ok(VhostUserBlkExportOptions {
            addr: self.addr.take().ok_or_else(|| E::missing_field("addr"))?.0,
            logical_block_size: self.logical_block_size.map(|size| size.0),
            num_queues: self.num_queues,
        })
    }
}

impl<'de> Deserialize<'de> for ExportOptions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ExportOptions, D::Error> {
        let mut flat = Flat::deserialize(deserializer)?;
        let kind = match flat.kind {
            Kind::Nbd => ExportKind::Nbd(flat.nbd()?),
            Kind::VhostUserBlk => ExportKind::VhostUserBlk(flat.vhost_user_blk()?),
        };
        Ok(ExportOptions {
            id: flat.id,
            node_name: flat.node_name,
            writable: flat.writable,
            writethrough: flat.writethrough,
            iothreads: match flat.iothread {
                None => Vec::new(),
                Some(Iothreads::One(name)) => vec![name],
                Some(Iothreads::Several(names)) => names,
            },
            fixed_iothread: flat.fixed_iothread,
            rerror: flat.rerror,
            werror: flat.werror,
            kind,
        })
    }
}
