//! The ranges that a discard or write-zeroes request carries as its data.

use virtio_bindings::virtio_blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;

use crate::chain::{Chain, total_bytes};
use crate::config::SECTOR_BYTES;
use crate::queue::DeviceQueue;
use crate::request::{BlkStatus, Limits};
use crate::run::{ByteRange, RunKind};

/// `struct virtio_blk_discard_write_zeroes`: sector, sectors, flags.
const RANGE_BYTES: usize = 16;

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
    let count = len_bytes / RANGE_BYTES as u64;
    if !len_bytes.is_multiple_of(RANGE_BYTES as u64) || count == 0 {
        return refuse("the ranges are not a multiple of 16 bytes");
    }
    if count > u64::from(config.max_ranges) {
        return refuse("there are too many ranges");
    }
    for _ in 0..count {
        let mut bytes = [0; RANGE_BYTES];
        if !chain.take_front(&queue.mem, &mut bytes) {
            return refuse("a range is outside guest memory");
        }
        let raw = RawRange::from_bytes(&bytes);
        let known = match kind {
            RunKind::WriteZeroes => VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
            _ => 0,
        };
        if raw.flags & !known != 0 {
            return Err(BlkStatus::Unsupported);
        }
        if raw.sectors > config.max_range_sectors() {
            return refuse("a range is longer than the device allows");
        }
        let len_bytes = u64::from(raw.sectors) * SECTOR_BYTES;
        let end = raw.sector.checked_mul(SECTOR_BYTES).and_then(|it| it.checked_add(len_bytes));
        match end {
            Some(end) if end <= limits.capacity_bytes => ranges.push(ByteRange {
                offset_bytes: end - len_bytes,
                len_bytes,
                unmap: raw.flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0,
            }),
            _ => return refuse("a range is beyond the end of the device"),
        }
    }
    Ok(())
}

struct RawRange {
    sector: u64,
    sectors: u32,
    flags: u32,
}

impl RawRange {
    fn from_bytes(bytes: &[u8; RANGE_BYTES]) -> RawRange {
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, f0, f1, f2, f3] = *bytes;
        RawRange {
            sector: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
            sectors: u32::from_le_bytes([n0, n1, n2, n3]),
            flags: u32::from_le_bytes([f0, f1, f2, f3]),
        }
    }
}

fn refuse(reason: &'static str) -> Result<(), BlkStatus> {
    tracing::debug!(reason, "request refused");
    Err(BlkStatus::IoErr)
}
