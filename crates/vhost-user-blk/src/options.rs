//! [`VhostUserBlkOptions`].

use std::fmt;
use std::sync::Arc;

use coblk_aio::AioHandle;
use coblk_block::ErrorEvent;
use coblk_virtio_blk::VirtioBlkConfig;

/// How an export is made: [`new`](Self::new), and then what differs from the default.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct VhostUserBlkOptions {
    /// The disk, as the front end sees it; its name is that of the export. Queues may be up to
    /// `num_queues`; a front end may use fewer.
    pub device: VirtioBlkConfig,
    /// Whether to refuse writes even if the node allows them.
    pub read_only: bool,
    /// Whether the node may be inactive, and become so: requests fail meanwhile; see
    /// [`BackendOptions::allow_inactive`](coblk_block::BackendOptions::allow_inactive).
    pub allow_inactive: bool,
    /// Contexts that serve the queues: queue `i` is served by the one at `i` modulo their number.
    /// If empty, the context of the listener serves all of them.
    pub contexts: Vec<AioHandle>,
    /// Front ends wait to be accepted until [`VhostUserBlk::begin`](crate::VhostUserBlk::begin): for
    /// a daemon that has more to do before it serves.
    pub paused: bool,
    /// Who is told of requests that fail, on the context of their queue; see
    /// [`BlockBackend::set_error_listener`](coblk_block::BlockBackend::set_error_listener).
    pub error_listener: Option<ErrorListener>,
}

impl VhostUserBlkOptions {
    /// A disk that can be written, served by the context of the listener.
    pub fn new(device: VirtioBlkConfig) -> VhostUserBlkOptions {
        VhostUserBlkOptions { device, ..VhostUserBlkOptions::default() }
    }
}

impl fmt::Debug for VhostUserBlkOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VhostUserBlkOptions")
            .field("device", &self.device)
            .field("read_only", &self.read_only)
            .field("allow_inactive", &self.allow_inactive)
            .field("contexts", &self.contexts.len())
            .field("paused", &self.paused)
            .finish_non_exhaustive()
    }
}

/// Is told of requests that fail.
pub type ErrorListener = Arc<dyn Fn(ErrorEvent) + Send + Sync>;
