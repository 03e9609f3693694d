//! [`Notice`]: what is done when librbd tells that an image has changed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use coblk_aio::Co;
use coblk_block::Background;

/// Has the length looked at, in the home of the driver's background work. Called by threads of librbd.
pub struct Notice {
    background: Weak<Background>,
    /// A look is on its way, and has not begun: it will see this change as well.
    is_awaited: Arc<AtomicBool>,
}

impl Notice {
    pub fn new(background: &Arc<Background>) -> Notice {
        Notice { background: Arc::downgrade(background), is_awaited: Arc::default() }
    }

    /// The image has changed: its length perhaps, or its snapshots.
    pub fn image_changed(&self) {
        let Some(background) = self.background.upgrade() else { return };
        if self.is_awaited.swap(true, Ordering::AcqRel) {
            return;
        }
        let awaited = Awaited(Arc::clone(&self.is_awaited));
        background.home().schedule(move |ctx| {
            let background = Arc::downgrade(&background);
            ctx.spawn("rbd_changed", move |co| co_look(co, &background, awaited));
        });
    }
}

/// A look that has not begun. Where it never will, as its context ends, the next change has another one.
struct Awaited(Arc<AtomicBool>);

impl Drop for Awaited {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

fn co_look(co: &Co<'_>, background: &Weak<Background>, awaited: Awaited) {
    let Some(background) = background.upgrade() else { return };
    // Not while the node is being opened, or closed, or is drained: a change of length waits for that.
    let own = background.co_begin_own(co);
    drop(awaited);
    let Some(own) = own else { return };
    if let Err(error) = own.co_look_at_length(co) {
        tracing::warn!(%error, "the length of an RBD image that has changed is not known");
    }
}

#[cfg(test)]
mod tests {
    use coblk_aio::AioContext;

    use super::*;

    #[test]
    fn a_look_that_its_context_does_not_live_to_see_is_not_waited_for() {
        let ctx = AioContext::for_test().unwrap();
        let background = Arc::new(Background::new(ctx.handle()));
        let notice = Notice::new(&background);
        notice.image_changed();
        assert!(notice.is_awaited.load(Ordering::Acquire));
        drop(ctx);
        assert!(!notice.is_awaited.load(Ordering::Acquire));
    }
}
