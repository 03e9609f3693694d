//! [`LiveLimits`]: a node's limits, which every request reads and a reopen changes.

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::driver::BlockLimits;
use crate::driver::flags::{ReadFlags, WriteFlags};

/// [`BlockLimits`], each field by itself. They change in drained sections only, so a request finds
/// all of them as they belong together, and reads each with a plain load: the gate, through which
/// it has come, orders them.
#[derive(Debug)]
pub(crate) struct LiveLimits {
    request_alignment: AtomicU32,
    memory_alignment: AtomicU32,
    max_transfer: AtomicU64,
    max_iov: AtomicUsize,
    max_pwrite_zeroes: AtomicU64,
    pwrite_zeroes_alignment: AtomicU32,
    max_pdiscard: AtomicU64,
    pdiscard_alignment: AtomicU32,
    /// [`ReadFlags`].
    read_flags: AtomicU32,
    /// [`WriteFlags`].
    write_flags: AtomicU32,
}

impl LiveLimits {
    pub(crate) fn new(limits: BlockLimits) -> LiveLimits {
        LiveLimits {
            request_alignment: limits.request_alignment.into(),
            memory_alignment: limits.memory_alignment.into(),
            max_transfer: limits.max_transfer.into(),
            max_iov: limits.max_iov.into(),
            max_pwrite_zeroes: limits.max_pwrite_zeroes.into(),
            pwrite_zeroes_alignment: limits.pwrite_zeroes_alignment.into(),
            max_pdiscard: limits.max_pdiscard.into(),
            pdiscard_alignment: limits.pdiscard_alignment.into(),
            read_flags: limits.read_flags.bits().into(),
            write_flags: limits.write_flags.bits().into(),
        }
    }

    /// All of them.
    pub(crate) fn get(&self) -> BlockLimits {
        BlockLimits {
            request_alignment: self.request_alignment(),
            memory_alignment: self.memory_alignment(),
            max_transfer: self.max_transfer(),
            max_iov: self.max_iov(),
            max_pwrite_zeroes: self.max_pwrite_zeroes.load(Ordering::Relaxed),
            pwrite_zeroes_alignment: self.pwrite_zeroes_alignment.load(Ordering::Relaxed),
            max_pdiscard: self.max_pdiscard.load(Ordering::Relaxed),
            pdiscard_alignment: self.pdiscard_alignment.load(Ordering::Relaxed),
            read_flags: self.read_flags(),
            write_flags: self.write_flags(),
        }
    }

    /// Returns how they were. In a drained section.
    pub(crate) fn swap(&self, new: BlockLimits) -> BlockLimits {
        let old = self.get();
        self.request_alignment.store(new.request_alignment, Ordering::Relaxed);
        self.memory_alignment.store(new.memory_alignment, Ordering::Relaxed);
        self.max_transfer.store(new.max_transfer, Ordering::Relaxed);
        self.max_iov.store(new.max_iov, Ordering::Relaxed);
        self.max_pwrite_zeroes.store(new.max_pwrite_zeroes, Ordering::Relaxed);
        self.pwrite_zeroes_alignment.store(new.pwrite_zeroes_alignment, Ordering::Relaxed);
        self.max_pdiscard.store(new.max_pdiscard, Ordering::Relaxed);
        self.pdiscard_alignment.store(new.pdiscard_alignment, Ordering::Relaxed);
        self.read_flags.store(new.read_flags.bits(), Ordering::Relaxed);
        self.write_flags.store(new.write_flags.bits(), Ordering::Relaxed);
        old
    }

    #[inline]
    pub(crate) fn request_alignment(&self) -> u32 {
        self.request_alignment.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn memory_alignment(&self) -> u32 {
        self.memory_alignment.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn max_transfer(&self) -> u64 {
        self.max_transfer.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn max_iov(&self) -> usize {
        self.max_iov.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn native_fua(&self) -> bool {
        self.write_flags().contains(WriteFlags::FUA)
    }

    pub(crate) fn read_flags(&self) -> ReadFlags {
        ReadFlags::from_bits_retain(self.read_flags.load(Ordering::Relaxed))
    }

    #[inline]
    pub(crate) fn write_flags(&self) -> WriteFlags {
        WriteFlags::from_bits_retain(self.write_flags.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_fields_change_and_come_back() {
        let first = BlockLimits::default();
        let second = BlockLimits {
            request_alignment: 2,
            memory_alignment: 4,
            max_transfer: 8,
            max_iov: 16,
            max_pwrite_zeroes: 32,
            pwrite_zeroes_alignment: 64,
            max_pdiscard: 128,
            pdiscard_alignment: 256,
            read_flags: ReadFlags::PREFETCH,
            write_flags: WriteFlags::COMPRESSED,
        };
        let live = LiveLimits::new(first);
        assert_eq!((live.get(), live.swap(second)), (first, first));
        assert_eq!((live.get(), live.swap(first)), (second, second));
        assert_eq!(live.get(), first);
    }

    #[test]
    fn they_change_any_number_of_times() {
        let live = LiveLimits::new(BlockLimits::default());
        for max_iov in 1..1000 {
            live.swap(BlockLimits { max_iov, ..BlockLimits::default() });
            assert_eq!((live.max_iov(), live.get().max_iov), (max_iov, max_iov));
        }
    }
}
