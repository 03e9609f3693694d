//! [`Background`]: the home and the gate of work that a driver does by itself.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use coblk_aio::AioHandle;

type Node = dyn Any + Send + Sync;

/// The home of a driver's background work, and its place at the gate of the driver's node. Any thread.
///
/// A driver with timers, reconnects or coroutines of its own holds one of these and returns it from
/// [`BlockDriver::background`](crate::BlockDriver::background). Work that begins by itself counts
/// itself in ([`co_begin_own`](Self::co_begin_own)), and runs in the context that is its
/// [home](Self::home).
///
/// The home is the context with which it was made, until a backend comes to the node or to an
/// ancestor: the background work moves to the context of the oldest such backend, and back when the
/// last has gone. A context with background work cannot be removed ([`is_home`](crate::is_home)).
pub struct Background {
    node: OnceLock<Weak<Node>>,
    /// Where it is while there are no backends.
    first: AioHandle,
    home: Mutex<AioHandle>,
    is_fixed: bool,
}

impl Background {
    /// Makes one whose home is `home` until the first backend comes.
    pub fn new(home: AioHandle) -> Background {
        let (node, first) = (OnceLock::new(), home.clone());
        Background { node, first, home: Mutex::new(home), is_fixed: false }
    }

    /// Makes one whose home is always `home`, as an option names it.
    pub fn fixed(home: AioHandle) -> Background {
        Background { is_fixed: true, ..Background::new(home) }
    }

    /// The context in which background work runs now.
    pub fn home(&self) -> AioHandle {
        self.home.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The node that has the driver; the seam knows no nodes.
    pub(crate) fn node(&self) -> Option<Arc<Node>> {
        self.node.get()?.upgrade()
    }

    /// The driver is this node's.
    pub(crate) fn set_node(&self, node: Weak<Node>) {
        // A driver has one node for its life.
        let _ = self.node.set(node);
    }

    pub(crate) fn set_home(&self, home: AioHandle) {
        *self.home.lock().unwrap_or_else(PoisonError::into_inner) = home;
    }

    /// Where it has to go, if it is not there, while `oldest` is the context of the oldest backend.
    pub(crate) fn home_to_be(&self, oldest: Option<AioHandle>) -> Option<AioHandle> {
        let wanted = oldest.unwrap_or_else(|| self.first.clone());
        (!self.is_fixed && !wanted.is_closed() && wanted != self.home()).then_some(wanted)
    }
}

impl fmt::Debug for Background {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (home, is_fixed) = (self.home(), self.is_fixed);
        f.debug_struct("Background").field("home", &home).field("is_fixed", &is_fixed).finish()
    }
}
