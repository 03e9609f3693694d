//! What requests are made of, for all other files: kinds, answers, limits. Imports none of them.

use coblk_block::RequestKind;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
};

/// Bytes in a sector, the unit of every offset and length at the virtio edge, whatever the block
/// size is.
pub const SECTOR_BYTES: u64 = 512;

/// Bytes of the answer to GET_ID.
pub(crate) const ID_BYTES: usize = VIRTIO_BLK_ID_BYTES as usize;
/// Data segments in one request to the block layer: what one system call takes.
pub(crate) const MAX_SEGMENTS: usize = 1024;
/// What a run asks of the block layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum RunKind {
    #[default]
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes,
}

impl RunKind {
    /// What accounting calls it.
    pub(crate) fn request_kind(self) -> RequestKind {
        match self {
            RunKind::Read => RequestKind::Read,
            RunKind::Write => RequestKind::Write,
            RunKind::Flush => RequestKind::Flush,
            RunKind::Discard => RequestKind::Discard,
            RunKind::WriteZeroes => RequestKind::WriteZeroes,
        }
    }
}

/// A range of a discard or write-zeroes request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ByteRange {
    pub(crate) offset_bytes: u64,
    pub(crate) len_bytes: u64,
    pub(crate) unmap: bool,
}

/// What parsing needs to know of the device.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) capacity_bytes: u64,
    pub(crate) read_only: bool,
    pub(crate) discard: bool,
    pub(crate) write_zeroes: bool,
}

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
