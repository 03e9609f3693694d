//! Backends as the graph knows them: where they are at home, what they hold, and how they are reached.

use std::sync::Arc;

use coblk_aio::{AioContext, AioHandle};

use super::{DeviceId, Use, UserId, lock};
use crate::driver::permissions::Permissions;
use crate::graph::node::BlockNode;

/// How a backend is reached: in its context, by functions that do nothing if it has gone.
#[derive(Clone)]
pub(crate) struct BackendHome {
    pub(crate) context: AioHandle,
    /// The graph has it on this node; nothing is in flight.
    pub(crate) turn: fn(UserId, Arc<BlockNode>),
    /// Its node may be like another: read-only, or of another driver.
    pub(crate) look_at_node: fn(UserId),
    /// The length of its node may have changed.
    pub(crate) look_at_length: fn(&AioContext, UserId),
}

impl BlockNode {
    /// The length may have changed: the backends on the node and on its ancestors look, and
    /// bitmaps follow. Any thread.
    #[cold]
    pub(crate) fn tell_length(&self) {
        self.bitmaps().follow(|| self.length());
        let backends = lock().backends_above(self);
        for (user, home) in backends {
            let look = home.look_at_length;
            home.context.schedule(move |ctx| look(ctx, user));
        }
    }
}

/// The permissions that a backend holds and shares, whatever its medium is.
#[derive(Clone, Copy)]
pub(crate) struct Claim {
    pub(crate) device: DeviceId,
    /// It writes to nothing.
    pub(crate) read_only: bool,
    /// It does not keep its node active.
    pub(crate) allow_inactive: bool,
    pub(crate) read: Permissions,
    pub(crate) write: Permissions,
    pub(crate) shared: Permissions,
}

impl Claim {
    /// One that asks for nothing.
    pub(crate) fn none(read_only: bool) -> Claim {
        let device = lock().new_device();
        let (read, write, shared) =
            (Permissions::empty(), Permissions::empty(), Permissions::all());
        Claim { device, read_only, allow_inactive: false, read, write, shared }
    }

    /// On a medium that can be written or not.
    pub(crate) fn on(self, writable: bool) -> Use {
        let write = if writable && !self.read_only { self.write } else { Permissions::empty() };
        Use { held: self.read | write, shared: self.shared }
    }
}
