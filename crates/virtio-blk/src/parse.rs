//! What a guest asks for: [`ParsedRequest`], from a descriptor chain. Needs no queue.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use vm_memory::GuestAddress;

use crate::chain::{Chain, Segment, total_bytes};
use crate::kind::{BlkStatus, Limits, RunKind, SECTOR_BYTES};
use crate::memory::GuestMap;
use crate::virtqueue::VirtqueueError;

/// Longest read or write; a longer one is refused.
const MAX_REQUEST_BYTES: u64 = i32::MAX as u64 / SECTOR_BYTES * SECTOR_BYTES;

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
    /// Where the answer is put.
    pub(crate) status: GuestAddress,
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
