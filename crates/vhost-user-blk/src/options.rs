//! [`VhostUserBlkOptions`].

use std::sync::Arc;

use coblk_aio::AioHandle;
use coblk_block::ErrorEvent;
use coblk_virtio_blk::VirtioBlkConfig;

/// How an export is made. Change what differs from the default.
#[derive(Clone, Default)]
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

/// Is told of requests that fail.
pub type ErrorListener = Arc<dyn Fn(ErrorEvent) + Send + Sync>;
