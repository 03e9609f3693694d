//! The end, in order: clients get their replies and go, then exports, nodes and threads.

use std::rc::Rc;

use coblk::Co;

use super::{Daemon, Event, ShutdownCause};
use crate::exports::Export;

impl Daemon {
    /// Ends in order (contract: C85): exports close, what is in flight completes, nodes are flushed
    /// and closed, threads end. Nothing can be added any more.
    pub fn co_shutdown(self: &Rc<Self>, co: &Co<'_>) {
        self.quit(ShutdownCause::Quit);
        if let Some(cause) = self.quit.get() {
            self.emit(co.context(), &Event::Shutdown(cause));
        }
        // Nobody is to wait for its turn at the end.
        self.lift_limits();
        drop(self.metrics.take());
        // Fails if there is none.
        let _ = self.nbd_server_stop(co);
        let exports: Vec<Rc<Export>> = self.exports.borrow().values().cloned().collect();
        exports.into_iter().for_each(|export| self.close_export(co.context(), export));
        self.co_wait_for_exports(co, |_| true);
        self.co_close_nodes(co);
        self.objects.borrow_mut().clear();
        self.co_close_monitors(co);
    }

    /// Closes nodes from the top down: those that others stand on have to wait for their turn.
    fn co_close_nodes(&self, co: &Co<'_>) {
        let mut closed_one = true;
        while closed_one {
            closed_one = false;
            let names: Vec<String> =
                self.blockdevs.nodes().iter().map(|node| node.name().to_owned()).collect();
            for name in names {
                closed_one |= self.blockdevs.co_close(co, &name).is_ok();
            }
        }
        for node in self.blockdevs.nodes() {
            tracing::error!(node = node.name(), "is in use at the end");
        }
    }
}
