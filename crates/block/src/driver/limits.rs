//! [`BlockLimits`]: how long a request to a driver may be, and what it is aligned to.

use crate::driver::flags::{ReadFlags, WriteFlags};

/// The limits of one request to a driver. The request path makes every request fit.
///
/// Alignments are powers of two, and lengths at least as long as one aligned unit. A driver that
/// passes requests on to a child asks for no alignment: the child pads them, and knows where its
/// last block ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockLimits {
    /// Offsets and lengths of reads and writes, also those of the ranges in a vector, are multiples
    /// of this many bytes, "blocks".
    pub request_alignment: u32,
    /// Memory addresses are multiples of this many bytes.
    pub memory_alignment: u32,
    /// Longest read or write in bytes.
    pub max_transfer: u64,
    /// Most ranges in one vector.
    pub max_iov: usize,
    /// Longest write-zeroes in bytes.
    pub max_pwrite_zeroes: u64,
    /// Offsets and lengths of write-zeroes are multiples of this many bytes, and of
    /// `request_alignment`.
    pub pwrite_zeroes_alignment: u32,
    /// Longest discard in bytes.
    pub max_pdiscard: u64,
    /// Offsets and lengths of discards are multiples of this many bytes, and of
    /// `request_alignment`.
    pub pdiscard_alignment: u32,
    /// The flags of reads that the driver takes; it never sees others. The layer does what they ask
    /// for, drops them where they change nothing, or refuses the request with ENOTSUP.
    pub read_flags: ReadFlags,
    /// The flags of writes that the driver takes. With [`WriteFlags::FUA`] the driver makes a
    /// single write durable for less than a flush costs, and gets [`FUA`](crate::ZeroFlags::FUA), too. Without
    /// it a flush follows the write, and requests that come together share it.
    pub write_flags: WriteFlags,
}

impl Default for BlockLimits {
    /// No alignment, as much as a Linux system call transfers, and IOV_MAX ranges.
    fn default() -> BlockLimits {
        BlockLimits {
            request_alignment: 1,
            memory_alignment: 1,
            // 2 GiB less a page is where the kernel stops; stay aligned below it.
            max_transfer: 1 << 30,
            max_iov: coblk_aio::sys::IOV_MAX,
            max_pwrite_zeroes: u64::MAX,
            pwrite_zeroes_alignment: 1,
            max_pdiscard: u64::MAX,
            pdiscard_alignment: 1,
            read_flags: ReadFlags::empty(),
            write_flags: WriteFlags::empty(),
        }
    }
}

impl BlockLimits {
    /// Limits of a driver that passes requests on: anything is taken, as the child pads, cuts, and
    /// refuses flags.
    pub fn passing_on() -> BlockLimits {
        BlockLimits {
            read_flags: ReadFlags::all(),
            write_flags: WriteFlags::all(),
            ..BlockLimits::default()
        }
    }

    /// Whether requests, or their memory, must be aligned.
    pub(crate) fn is_aligned(&self) -> bool {
        self.request_alignment | self.memory_alignment != 1
    }

    /// Whether they do not contradict themselves.
    pub(crate) fn are_possible(&self) -> bool {
        let block = self.request_alignment;
        let longest = [
            (block, self.max_transfer),
            (block.max(self.pwrite_zeroes_alignment), self.max_pwrite_zeroes),
            (block.max(self.pdiscard_alignment), self.max_pdiscard),
        ];
        let fit = longest.iter().all(|(unit, most)| {
            unit.is_power_of_two() && block.is_power_of_two() && *most >= u64::from(*unit)
        });
        fit && self.memory_alignment.is_power_of_two() && self.max_iov > 0
    }
}
