//! Listeners for changes of the length of a backend's node.
//!
//! A change may come from anywhere: from this backend, another one, another context, a descendant
//! of the node, a node put in the place of another. So after a change of length every backend on
//! the node and on its ancestors looks at its own length
//! ([`BlockNode::tell_length`](crate::BlockNode)), each on its own thread, and a backend tells its
//! listener of a length that is new.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use coblk_aio::AioContext;

use crate::backend::BlockBackend;
use crate::backend::root::{Slot, look_at};
use crate::graph::UserId;

type Listener = Rc<dyn Fn(&AioContext, u64)>;

/// The listener of a backend. Home thread only; no borrow is held across a call of it.
#[derive(Default)]
pub(crate) struct LengthWatch {
    listener: RefCell<Option<Listener>>,
    /// The length that the listener was told last.
    told: Cell<Option<u64>>,
}

impl BlockBackend {
    /// Sets the listener for changes of the length, by whatever user and means. It is given the new
    /// length in bytes, as [`length`](Self::length) has it, in a bottom half of the backend's
    /// context, soon after the change; of changes that come together perhaps only the last. An
    /// export tells its client by it. Home thread.
    pub fn set_length_listener(&self, listener: impl Fn(&AioContext, u64) + 'static) {
        let watch = &self.slot().length;
        watch.told.set(self.length().ok());
        watch.listener.replace(Some(Rc::new(listener)));
    }
}

impl Slot {
    /// The medium is another one.
    pub(crate) fn look_at_length_soon(&self, user: UserId) {
        if self.length.listener.borrow().is_some() {
            self.home().schedule(move |ctx| look_at(user, |slot| slot.look_at_length(ctx)));
        }
    }

    /// Tells the listener if there is news.
    pub(crate) fn look_at_length(&self, ctx: &AioContext) {
        let Some(length) = self.medium().map(|medium| medium.node.length()) else { return };
        if self.length.told.replace(Some(length)) == Some(length) {
            return;
        }
        let listener = self.length.listener.borrow().clone();
        if let Some(listener) = listener {
            listener(ctx, length);
        }
    }
}
