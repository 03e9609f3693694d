//! [`Event`]: what the daemon tells of by itself, under QMP's names; and how other threads tell.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use coblk::block::{ErrorAction, RequestKind, ThresholdPassed};
use coblk::{AioContext, BottomHalf, RemoteBottomHalf};

/// Something that somebody may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// `BLOCK_EXPORT_DELETED`: an export is gone; its node can be closed.
    BlockExportDeleted {
        /// The export.
        id: String,
    },
    /// `BLOCK_IO_ERROR`: a request of an export's client failed.
    BlockIoError(IoError),
    /// `BLOCK_WRITE_THRESHOLD`: a write ended behind the threshold of a node.
    BlockWriteThreshold {
        /// The node.
        node_name: String,
        /// The threshold, and how far behind it the write ends.
        passed: ThresholdPassed,
    },
    /// `SHUTDOWN`: the daemon ends. No event of QMP: QEMU's daemon has none.
    Shutdown(ShutdownCause),
}

/// A request that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoError {
    /// The export.
    pub id: String,
    /// Its node.
    pub node_name: String,
    /// What the request was to do.
    pub kind: RequestKind,
    /// Why it failed: an errno.
    pub errno: i32,
    /// What was done about it.
    pub action: ErrorAction,
}

/// Why the daemon ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownCause {
    /// `host-signal`.
    Signal,
    /// `host-qmp-quit`.
    Quit,
}

impl ShutdownCause {
    /// Its name in QMP.
    pub fn name(self) -> &'static str {
        match self {
            ShutdownCause::Signal => "host-signal",
            ShutdownCause::Quit => "host-qmp-quit",
        }
    }
}

/// Events of other threads that wait for the main one; more are dropped. Errors come in storms.
const MOST_WAITING: usize = 256;

/// Tells the daemon of events. Any thread.
#[derive(Clone)]
pub(crate) struct EventSender {
    events: SyncSender<Event>,
    deliver: Arc<RemoteBottomHalf>,
}

impl EventSender {
    /// The way to a daemon on `ctx`, which handles events one by one. The bottom half is to be kept.
    pub(crate) fn new(
        ctx: &AioContext,
        handle: impl Fn(&AioContext, &Event) + 'static,
    ) -> (EventSender, BottomHalf) {
        let (events, waiting): (_, Receiver<Event>) = sync_channel(MOST_WAITING);
        let delivering = ctx.bottom_half("daemon events", move |ctx| {
            waiting.try_iter().for_each(|event| handle(ctx, &event));
        });
        let deliver = Arc::new(delivering.remote());
        (EventSender { events, deliver }, delivering)
    }

    pub(crate) fn send(&self, event: Event) {
        if self.events.try_send(event).is_ok() {
            self.deliver.schedule();
        }
    }
}
