//! One guest request, whose life is in its types:
//!
//! ```text
//!   Chain --parse--> ParsedRequest --start--> PendingRequest --complete--> CompletedRequest
//!                    (what it asks)           (counted in flight)          (goes on the used ring)
//! ```
//!
//! Each conversion consumes what it starts from, so a request is answered once. A
//! [`PendingRequest`] that is dropped instead says so loudly, and is answered with an I/O error: a
//! guest must never wait for ever.

use std::rc::Rc;

use vm_memory::GuestAddress;

use crate::kind::BlkStatus;
use crate::parse::ParsedRequest;
use crate::queue::DeviceQueue;

impl ParsedRequest {
    /// The request is on its way.
    #[inline]
    pub(crate) fn start(self, queue: &Rc<DeviceQueue>) -> PendingRequest {
        queue.request_started();
        PendingRequest { queue: Some(Rc::clone(queue)), head: self.head, status: self.status }
    }
}

/// A request that must be answered.
#[must_use = "a request must be completed"]
pub(crate) struct PendingRequest {
    /// `None` once completed.
    queue: Option<Rc<DeviceQueue>>,
    head: u16,
    status: GuestAddress,
}

impl PendingRequest {
    /// Writes the status byte. `data_bytes` is how much the device wrote before it.
    #[inline]
    pub(crate) fn complete(mut self, status: BlkStatus, data_bytes: u64) -> CompletedRequest {
        let queue = self.queue.take();
        Self::answer(queue.as_deref(), self.head, self.status, status, data_bytes)
    }

    /// It gets no answer from this device: its head.
    pub(crate) fn put_back(mut self) -> u16 {
        self.queue = None;
        self.head
    }

    #[inline]
    fn answer(
        queue: Option<&DeviceQueue>,
        head: u16,
        place: GuestAddress,
        status: BlkStatus,
        data_bytes: u64,
    ) -> CompletedRequest {
        if let Some(queue) = queue {
            queue.write_status(place, status);
        }
        // One more for the status byte. Saturating: a count that large is a guest's own nonsense.
        let written_bytes = u32::try_from(data_bytes + 1).unwrap_or(u32::MAX);
        CompletedRequest { head, written_bytes, status }
    }
}

impl Drop for PendingRequest {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.take() {
            tracing::error!(
                device = queue.device_name(),
                queue = queue.index(),
                head = self.head,
                "request dropped without an answer; it fails"
            );
            let completed = Self::answer(Some(&queue), self.head, self.status, BlkStatus::IoErr, 0);
            queue.finish(std::iter::once(completed));
        }
    }
}

/// A request whose status is written. It goes on the used ring.
#[must_use = "a completed request goes on the used ring"]
pub(crate) struct CompletedRequest {
    pub(crate) head: u16,
    pub(crate) written_bytes: u32,
    pub(crate) status: BlkStatus,
}
