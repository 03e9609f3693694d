//! Options of exports that only the daemon has; those of all types are [`coblk::export`]'s.

use coblk::aio::net::SocketAddress;
use coblk::qapi::Size;
use serde::{Deserialize, Serialize};

use super::address;

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
