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
//! interrupted if it wants to be. By the time it has woken up, there is more for it to take.
//!
//! * With event indices a driver asks for an interrupt again when it has taken all. If requests are done
//!   faster than it takes them, it is awake: telling it of each group keeps it so, and costs little. If they
//!   take longer, such as those that copy from the page cache, it falls asleep after each group, and each
//!   wake-up costs both sides more than a request: then interrupts lie as far apart as is worth one.
//! * Without event indices there is one early interrupt a kick, after the first request, and one at its end.
//!
//! The invariant: at the end of a kick, or of the turn of the loop in which a request ends later, the device
//! looks whether the driver wants to hear of anything published since it last looked. Leaving an early
//! look out delays an interrupt, and loses none.

use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use coblk_aio::{AioContext, trace_event};
use vm_memory::{Bytes, GuestAddress};

use crate::interrupt::Interrupt;
use crate::kind::BlkStatus;
use crate::queue::DeviceQueue;
use crate::request::CompletedRequest;

/// Requests that are published together during a kick, after the first.
const GROUP: u16 = 4;

impl DeviceQueue {
    #[inline]
    pub(crate) fn write_status(&self, place: GuestAddress, status: BlkStatus) {
        // The place was looked up when the request was parsed, and the map does not change.
        if let Ok(byte) = self.mem.slice(place, 1) {
            let _ = byte.store(status as u8, 0, Ordering::Relaxed);
        }
        self.mem.wrote(place, 1);
    }

    /// Puts requests on the used ring. During a kick the driver sees them in groups, else at once.
    #[inline]
    pub(crate) fn finish(&self, requests: impl Iterator<Item = CompletedRequest>) {
        let mut left = self.in_flight.get();
        let answers = requests.map(|request| {
            left -= 1;
            trace_event!(
                "virtio_blk_req_complete",
                queue = self.index(),
                req = request.head,
                status = ?request.status
            );
            (request.head, request.written_bytes)
        });
        let pushed = self.ring.borrow_mut().push_all(&self.mem, answers);
        self.in_flight.set(left);
        // The ring was accessible when the queue started, so this does not happen.
        let unpublished = pushed.unwrap_or_else(|error| {
            self.fail(error);
            0
        });
        if !self.in_kick.get() {
            self.publish();
            self.completion_bh.schedule();
        } else if unpublished >= self.early_at.get() {
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
        self.early_at.set(if is_elsewhere { 1 } else { u16::MAX });
    }

    #[cold]
    fn publish_early(&self) {
        self.publish();
        let mut ring = self.ring.borrow_mut();
        let next_at = if ring.has_event_idx() { GROUP } else { u16::MAX };
        let is_due = if self.early_at.replace(next_at) == 1 {
            self.pace.begin();
            true
        } else {
            self.pace.is_due(Instant::now())
        };
        // An error is found again at the end of the kick.
        if is_due
            && ring.needs_interrupt(&self.mem).unwrap_or(false)
            && let Interrupt::Notifier(notifier) = &**self.interrupt.borrow()
        {
            trace_event!("virtio_notify", queue = self.index());
            Interrupt::notify(notifier);
        }
    }

    /// Shows the driver the requests that are done.
    pub(crate) fn publish(&self) {
        let published = self.ring.borrow_mut().publish(&self.mem);
        if let Err(error) = published {
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
