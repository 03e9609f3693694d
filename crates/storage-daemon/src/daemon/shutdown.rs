//! The end, in order: clients get their replies and go, then exports and jobs, nodes and threads.
//!
//! What does not depend on each other ends side by side, so that a disk that does not answer keeps
//! nothing but its own requests and its own node from ending. What is in the way for a second is told
//! ([`in_the_way`](super::in_the_way)).

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use coblk::Co;
use coblk::aio::PoolShare;
use coblk::block::{BlockdevError, GraphError};

use super::nbd_server::is_nbd;
use super::{Daemon, Event, ShutdownCause};
use crate::objects::throttle_group;

/// For how long calls are waited for that hold nothing that could be lost: commands, threads.
const PATIENCE: Duration = Duration::from_secs(1);

impl Daemon {
    /// Ends in order (contract: C85): exports close, what is in flight completes, nodes are flushed
    /// and closed, threads end. Nothing can be added any more.
    ///
    /// It takes as long as requests in flight, and flushes of nodes that were written to, take.
    /// Commands that are being carried out get a second, and are left behind then.
    pub fn co_shutdown(self: &Rc<Self>, co: &Co<'_>) {
        self.quit(ShutdownCause::Quit);
        if let Some(cause) = self.quit.get() {
            self.emit(co.context(), &Event::Shutdown(cause));
        }
        let told = self.tell_what_is_in_the_way(co.context());
        // No request is to wait for its turn at the end.
        throttle_group::lift_limits(&self.objects);
        drop(self.metrics.take());
        self.checks.give_up();
        self.close_exports(co);
        self.end_jobs(co);
        // What waits for a server to come back would wait for ever.
        self.blockdevs.nodes().iter().for_each(|node| node.cancel_in_flight());
        self.co_close_nodes(co);
        self.co_wait_for_commands(co);
        drop(told);
        self.co_end_objects(co);
        self.co_close_monitors(co);
    }

    /// Begins to close them all. Clients of the NBD server get their replies first.
    fn close_exports(self: &Rc<Self>, co: &Co<'_>) {
        let daemon = Rc::clone(self);
        self.ending.set(self.ending.get() + 1);
        co.context().spawn("stop NBD server", move |co| {
            // Fails if there is none.
            let _ = daemon.nbd_server_end(co);
            daemon.ending.set(daemon.ending.get() - 1);
            daemon.wake_waiters();
        });
        let others = self.exports.all().into_iter().filter(|export| !is_nbd(export));
        others.for_each(|export| self.exports.close(co.context(), &export));
    }

    /// Closes nodes as they become free, each by itself: from the top down, as those that others stand
    /// on have to wait for their turn.
    fn co_close_nodes(self: &Rc<Self>, co: &Co<'_>) {
        loop {
            for node in self.blockdevs.nodes() {
                self.begin_to_close_node(co, node.name().to_owned());
            }
            if self.ending.get() == 0 && self.exports.all().is_empty() {
                break;
            }
            self.co_wait(co, "the end of exports and nodes");
        }
    }

    /// Without effect as long as the node has users.
    fn begin_to_close_node(self: &Rc<Self>, co: &Co<'_>, name: String) {
        let daemon = Rc::clone(self);
        co.context().spawn("close node", move |co| {
            daemon.ending.set(daemon.ending.get() + 1);
            let closed = daemon.blockdevs.co_close(co, &name);
            daemon.ending.set(daemon.ending.get() - 1);
            // The end may wait for that, and for others that can be closed now.
            match closed {
                Ok(()) => daemon.wake_waiters(),
                Err(BlockdevError::Graph(error @ GraphError::Close { .. })) => {
                    tracing::error!(%error, "a node is not closed at the end");
                }
                // Its turn comes.
                Err(_) => {}
            }
        });
    }

    fn co_wait_for_commands(self: &Rc<Self>, co: &Co<'_>) {
        let waiting = self.wait_within(co.context(), PATIENCE);
        while !self.running_commands().is_empty() && !waiting.is_over(co) {
            self.co_wait(co, "commands that are being carried out");
        }
        for command in self.running_commands() {
            tracing::warn!(command, "is not waited for any longer");
        }
        // Commands that had a node for themselves have given it back.
        self.co_close_nodes(co);
        for node in self.blockdevs.nodes() {
            tracing::error!(node = node.name(), "is in use at the end");
        }
    }

    fn co_end_objects(&self, co: &Co<'_>) {
        let objects = self.objects.take();
        let ended = Rc::new(Cell::new(false));
        let told = Rc::clone(&ended);
        let waited = co.timeout(PATIENCE, "end objects", move |co| {
            // Threads are waited for: elsewhere, so that the loop goes on.
            PoolShare::once(co, move || drop(objects));
            told.set(true);
        });
        if waited.is_err() && !ended.get() {
            tracing::warn!("threads of iothreads are not waited for any longer");
        }
    }
}
