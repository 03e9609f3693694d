//! The ranges that a discard or write-zeroes request carries as its data.

use virtio_bindings::virtio_blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;

use crate::chain::{Chain, total_bytes};
use crate::kind::{BlkStatus, ByteRange, Limits, RunKind, SECTOR_BYTES};
use crate::queue::DeviceQueue;

/// `struct virtio_blk_discard_write_zeroes`: sector, sectors, flags.
const RANGE_BYTES: u64 = 16;

/// Reads and checks all ranges in `chain`, before any of them is acted on.
///
/// # Errors
/// The answer to a request that is wrong.
pub(crate) fn parse_ranges(
    queue: &DeviceQueue,
    chain: &mut Chain,
    limits: &Limits,
    kind: RunKind,
    ranges: &mut Vec<ByteRange>,
) -> Result<(), BlkStatus> {
    let config = &queue.shared.config;
    let len_bytes = total_bytes(chain.readable());
    let count = len_bytes / RANGE_BYTES;
    if !len_bytes.is_multiple_of(RANGE_BYTES) || count == 0 {
        return refuse("the ranges are not a multiple of 16 bytes");
    }
    if count > u64::from(config.max_ranges) {
        return refuse("there are too many ranges");
    }
    for _ in 0..count {
        let Some((sector, rest)) = chain.take_words(&queue.mem) else {
            return refuse("a range is outside guest memory");
        };
        let (sectors, flags) = (rest as u32, (rest >> 32) as u32);
        let known = match kind {
            RunKind::WriteZeroes => VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
            _ => 0,
        };
        if flags & !known != 0 {
            return Err(BlkStatus::Unsupported);
        }
        if sectors > config.max_range_sectors() {
            return refuse("a range is longer than the device allows");
        }
        let len_bytes = u64::from(sectors) * SECTOR_BYTES;
        let end = sector.checked_mul(SECTOR_BYTES).and_then(|it| it.checked_add(len_bytes));
        match end {
            Some(end) if end <= limits.capacity_bytes => ranges.push(ByteRange {
                offset_bytes: end - len_bytes,
                len_bytes,
                unmap: flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0,
            }),
            _ => return refuse("a range is beyond the end of the device"),
        }
    }
    Ok(())
}

fn refuse(reason: &'static str) -> Result<(), BlkStatus> {
    tracing::debug!(reason, "request refused");
    Err(BlkStatus::IoErr)
}
