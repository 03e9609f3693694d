//! How answers get out of a queue.
//!
//! ```text
//!   finish()          used entries are written and published: at once, or, during a kick, in groups
//!      |
//!      v
//!   completion_bh     one interrupt for all that completed in this iteration of the loop
//! ```
//!
//! A kick may bring many requests that are done at once. A driver in another thread need not wait for the
//! last of them: it sees the first as soon as it is done, and the others four at a time, and is
//! interrupted if it wants to be. By the time it has woken up, there is more for it to take. With event
//! indices it asks for an interrupt again when it has nothing left to do, so that early ones do not add
//! up; without them there is one early interrupt a kick.

use std::rc::Rc;
use std::sync::atomic::Ordering;

use coblk_aio::{AioContext, trace_event};
use vm_memory::{Bytes, GuestAddress};

use crate::interrupt::Interrupt;
use crate::kind::BlkStatus;
use crate::queue::DeviceQueue;
use crate::request::CompletedRequest;

/// Requests that are published together during a kick, after the first.
const GROUP: usize = 4;

impl DeviceQueue {
    #[inline]
    pub(crate) fn write_status(&self, place: GuestAddress, status: BlkStatus) {
        // The place was looked up when the request was parsed, and the map does not change.
        if let Ok(byte) = self.mem.slice(place, 1) {
            let _ = byte.store(status as u8, 0, Ordering::Relaxed);
        }
    }

    /// Puts requests on the used ring; during a kick, in groups.
    #[inline]
    pub(crate) fn finish(&self, requests: impl Iterator<Item = CompletedRequest>) {
        let (left, done) = {
            let mut done = self.done.borrow_mut();
            let before = done.len();
            done.extend(requests);
            (self.in_flight.get() - (done.len() - before), done.len())
        };
        self.in_flight.set(left);
        if !self.in_kick.get() {
            self.publish_done();
            self.completion_bh.schedule();
        } else if done >= self.early_at.get() {
            self.publish_early();
        }
        if left == 0 {
            self.is_idle();
        }
    }

    /// A kick begins: whether its requests are published before its end. A callback is not called while
    /// requests are being taken; a driver that polls costs nothing more.
    pub(crate) fn begin_groups(&self) {
        let is_elsewhere = matches!(&**self.interrupt.borrow(), Interrupt::Notifier(_));
        self.early_at.set(if is_elsewhere { 1 } else { usize::MAX });
    }

    #[cold]
    fn publish_early(&self) {
        self.publish_done();
        let mut ring = self.ring.borrow_mut();
        self.early_at.set(if ring.has_event_idx() { GROUP } else { usize::MAX });
        // An error is found again at the end of the kick.
        if ring.needs_interrupt(&self.mem).unwrap_or(false)
            && let Interrupt::Notifier(notifier) = &**self.interrupt.borrow()
        {
            trace_event!("virtio_notify", queue = self.index());
            Interrupt::notify(notifier);
        }
    }

    /// Shows the driver the requests that are done.
    pub(crate) fn publish_done(&self) {
        let mut done = self.done.borrow_mut();
        if done.is_empty() {
            return;
        }
        let mut ring = self.ring.borrow_mut();
        let pushed = ring.map_used(&self.mem).and_then(|used| {
            for request in done.iter() {
                trace_event!(
                    "virtio_blk_req_complete",
                    queue = self.index(),
                    req = request.head,
                    status = ?request.status
                );
                ring.push_used(&used, request.head, request.written_bytes)?;
            }
            ring.publish_used(&used)
        });
        done.clear();
        drop((ring, done));
        if let Err(error) = pushed {
            self.fail(error);
        }
    }

    /// Interrupts the driver if something is new and it wants to know. No borrow is held while it
    /// runs: it may submit requests, and it may poll.
    pub(crate) fn raise_interrupt(&self, ctx: &AioContext) {
        self.shared.raise_config_interrupt(ctx);
        let wanted = self.ring.borrow_mut().needs_interrupt(&self.mem);
        match wanted {
            Ok(true) => {
                trace_event!("virtio_notify", queue = self.index());
                let interrupt = Rc::clone(&self.interrupt.borrow());
                interrupt.raise(ctx);
            }
            Ok(false) => {}
            // It was accessible when the queue started, so this does not happen.
            Err(error) => tracing::error!(queue = self.index(), %error, "cannot interrupt"),
        }
    }
}
