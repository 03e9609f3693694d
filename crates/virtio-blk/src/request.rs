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

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use vm_memory::GuestAddress;

use crate::chain::{Chain, Segment, total_bytes};
use crate::config::SECTOR_BYTES;
use crate::memory::GuestMap;
use crate::queue::DeviceQueue;
use crate::run::RunKind;
use crate::virtqueue::VirtqueueError;

/// Bytes of the answer to GET_ID.
pub(crate) const ID_BYTES: usize = VIRTIO_BLK_ID_BYTES as usize;
/// Longest read or write; a longer one is refused.
const MAX_REQUEST_BYTES: u64 = i32::MAX as u64 / SECTOR_BYTES * SECTOR_BYTES;

/// The answer to a request, as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum BlkStatus {
    /// Done.
    Ok = VIRTIO_BLK_S_OK as u8,
    /// Failed, or malformed.
    IoErr = VIRTIO_BLK_S_IOERR as u8,
    /// The device does not know such a request.
    Unsupported = VIRTIO_BLK_S_UNSUPP as u8,
}

impl BlkStatus {
    /// The status behind a status byte; `None` if it is no known one.
    pub fn from_byte(byte: u8) -> Option<BlkStatus> {
        [BlkStatus::Ok, BlkStatus::IoErr, BlkStatus::Unsupported]
            .into_iter()
            .find(|status| *status as u8 == byte)
    }
}

/// What a request asks for. The data is in the [`Chain`] that it was parsed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Read {
        offset_bytes: u64,
        len_bytes: u64,
    },
    Write {
        offset_bytes: u64,
        len_bytes: u64,
    },
    Flush,
    GetId,
    Discard,
    WriteZeroes,
    /// A read or write, or so, that cannot be: it fails, and is counted as invalid.
    Invalid(RunKind),
    /// It is answered without looking any further.
    Refuse(BlkStatus),
}

/// A request that was understood, and for which there is a place to put the answer.
#[derive(Debug)]
pub(crate) struct ParsedRequest {
    pub(crate) head: u16,
    pub(crate) operation: Operation,
    status: GuestAddress,
}

/// What parsing needs to know of the device.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) capacity_bytes: u64,
    pub(crate) read_only: bool,
    pub(crate) discard: bool,
    pub(crate) write_zeroes: bool,
}

impl ParsedRequest {
    /// Understands the request in `chain`, and leaves only its data in there.
    ///
    /// # Errors
    /// If there is nowhere to put the status. Anything else that is wrong with the request becomes
    /// its answer.
    #[inline]
    pub(crate) fn parse(
        mem: &GuestMap,
        head: u16,
        chain: &mut Chain,
        limits: &Limits,
    ) -> Result<ParsedRequest, VirtqueueError> {
        let status = chain
            .take_status()
            .filter(|status| mem.contains(*status))
            .ok_or(VirtqueueError::NoStatus { head })?;
        let operation = if chain.is_ordered() {
            parse_operation(mem, chain, limits)
        } else {
            refuse("a readable descriptor follows a writable one")
        };
        Ok(ParsedRequest { head, operation, status })
    }

    /// The request is on its way.
    #[inline]
    pub(crate) fn start(self, queue: &Rc<DeviceQueue>) -> PendingRequest {
        queue.request_started();
        PendingRequest { queue: Some(Rc::clone(queue)), head: self.head, status: self.status }
    }
}

fn invalid(kind: RunKind, reason: &'static str) -> Operation {
    tracing::debug!(reason, "request refused");
    Operation::Invalid(kind)
}

fn refuse(reason: &'static str) -> Operation {
    tracing::debug!(reason, "request refused");
    Operation::Refuse(BlkStatus::IoErr)
}

#[inline]
fn parse_operation(mem: &GuestMap, chain: &mut Chain, limits: &Limits) -> Operation {
    let Some((first, sector)) = chain.take_words(mem) else {
        return refuse("the header is too short, or outside guest memory");
    };
    // The type; above it `ioprio`, which is reserved.
    let kind = first as u32;
    const READ_ONLY: &str = "a write to a read-only device";
    match kind {
        VIRTIO_BLK_T_IN => match parse_range(sector, chain.writable(), limits) {
            Ok((offset_bytes, len_bytes)) => Operation::Read { offset_bytes, len_bytes },
            Err(reason) => invalid(RunKind::Read, reason),
        },
        VIRTIO_BLK_T_OUT if limits.read_only => invalid(RunKind::Write, READ_ONLY),
        VIRTIO_BLK_T_OUT => match parse_range(sector, chain.readable(), limits) {
            Ok((offset_bytes, len_bytes)) => Operation::Write { offset_bytes, len_bytes },
            Err(reason) => invalid(RunKind::Write, reason),
        },
        VIRTIO_BLK_T_FLUSH => Operation::Flush,
        VIRTIO_BLK_T_GET_ID => Operation::GetId,
        VIRTIO_BLK_T_DISCARD if limits.read_only => invalid(RunKind::Discard, READ_ONLY),
        VIRTIO_BLK_T_WRITE_ZEROES if limits.read_only => invalid(RunKind::WriteZeroes, READ_ONLY),
        VIRTIO_BLK_T_DISCARD if limits.discard => Operation::Discard,
        VIRTIO_BLK_T_WRITE_ZEROES if limits.write_zeroes => Operation::WriteZeroes,
        _ => Operation::Refuse(BlkStatus::Unsupported),
    }
}

#[inline]
fn parse_range(sector: u64, data: &[Segment], limits: &Limits) -> Result<(u64, u64), &'static str> {
    let len_bytes = total_bytes(data);
    if !len_bytes.is_multiple_of(SECTOR_BYTES) {
        return Err("the data is not a multiple of 512 bytes");
    }
    if len_bytes > MAX_REQUEST_BYTES {
        return Err("the data is longer than 2 GiB");
    }
    let within = |offset: &u64| *offset <= limits.capacity_bytes.saturating_sub(len_bytes);
    match sector.checked_mul(SECTOR_BYTES).filter(within) {
        Some(offset_bytes) if len_bytes <= limits.capacity_bytes => Ok((offset_bytes, len_bytes)),
        _ => Err("the range is beyond the end of the device"),
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
