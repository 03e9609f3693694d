//! One guest request, whose life is in its types:
//!
//! ```text
//!   Chain --parse--> ParsedRequest --start--> PendingRequest --complete--> CompletedRequest
//!                    (what it asks)           (counted in flight)          (goes on the used ring)
//! ```
//!
//! Each conversion consumes what it starts from, so a request is answered once. Pending requests lie in
//! an [`OwnedRun`](crate::run::OwnedRun), which answers those that are left when it is dropped: a guest
//! must never wait for ever.

use vm_memory::GuestAddress;

use crate::kind::BlkStatus;
use crate::parse::ParsedRequest;
use crate::queue::DeviceQueue;

impl ParsedRequest {
    /// The request is on its way.
    #[inline]
    pub(crate) fn start(self, queue: &DeviceQueue) -> PendingRequest {
        queue.request_started();
        PendingRequest { head: self.head, status: self.status }
    }
}

/// A request that must be answered.
#[must_use = "a request must be completed"]
pub(crate) struct PendingRequest {
    head: u16,
    status: GuestAddress,
}

impl PendingRequest {
    /// Writes the status byte. `data_bytes` is how much the device wrote before it.
    #[inline]
    pub(crate) fn complete(
        self,
        queue: &DeviceQueue,
        status: BlkStatus,
        data_bytes: u64,
    ) -> CompletedRequest {
        queue.write_status(self.status, status);
        // One more for the status byte. Saturating: a count that large is a guest's own nonsense.
        let written_bytes = u32::try_from(data_bytes + 1).unwrap_or(u32::MAX);
        CompletedRequest { head: self.head, written_bytes, status }
    }

    /// It gets no answer from this device: its head.
    pub(crate) fn put_back(self) -> u16 {
        self.head
    }
}

/// A request whose status is written. It goes on the used ring.
#[must_use = "a completed request goes on the used ring"]
pub(crate) struct CompletedRequest {
    pub(crate) head: u16,
    pub(crate) written_bytes: u32,
    pub(crate) status: BlkStatus,
}
