//! [`Facts`]: what a server says of its export, and how requests to it look.

use std::io::{self, ErrorKind};

use coblk_block::{BlockLimits, MAX_LENGTH, ReadFlags, WriteFlags};

use crate::protocol::reply::Style;
use crate::protocol::*;

/// The block size of a server that does not tell its own.
const USUAL_BLOCK: u32 = 512;
/// The longest block that a request can be aligned to.
const MAX_BLOCK: u32 = 64 << 10;
/// The longest request without data where lengths have 32 bits.
const MAX_COMPACT: u64 = 1 << 30;

/// What was negotiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Length in bytes.
    pub size: u64,
    /// Transmission flags.
    pub flags: u16,
    pub style: Style,
    /// Smallest and longest request in bytes.
    pub blocks: Option<(u32, u32)>,
    /// The number of the metadata context that describes extents.
    pub context: Option<u32>,
}

impl Facts {
    /// Checks what a server says.
    ///
    /// # Errors
    /// If no device is so.
    pub fn check(&self) -> io::Result<()> {
        if self.size > MAX_LENGTH {
            return Err(broken("the export is longer than a node can be"));
        }
        if let Some((min, max)) = self.blocks {
            if !min.is_power_of_two() || min > MAX_BLOCK {
                return Err(broken("the server's smallest block is no power of two up to 64 KiB"));
            }
            if max < min {
                return Err(broken("the server's longest request is shorter than its smallest"));
            }
            if !self.size.is_multiple_of(u64::from(min)) {
                return Err(broken("the export is no whole number of the server's blocks"));
            }
        }
        Ok(())
    }

    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    pub fn is_extended(&self) -> bool {
        self.style == Style::Extended
    }

    /// Alignment of requests in bytes.
    fn block(&self) -> u32 {
        let usual = if self.size.is_multiple_of(u64::from(USUAL_BLOCK)) { USUAL_BLOCK } else { 1 };
        self.blocks.map_or(usual, |(min, _)| min)
    }

    /// The longest read or write in bytes.
    fn max_transfer(&self) -> u64 {
        let max = self.blocks.map_or(MAX_PAYLOAD, |(_, max)| MAX_PAYLOAD.min(u64::from(max)));
        max / u64::from(self.block()) * u64::from(self.block())
    }

    pub fn limits(&self) -> BlockLimits {
        // A header goes with a write.
        let max_iov = BlockLimits::default().max_iov - 1;
        let longest = if self.is_extended() { MAX_LENGTH } else { MAX_COMPACT };
        let flag = |flag, then: u32| if self.has(flag) { then } else { 0 };
        BlockLimits {
            request_alignment: self.block(),
            max_transfer: self.max_transfer(),
            max_iov,
            max_pwrite_zeroes: longest,
            max_pdiscard: longest,
            read_flags: ReadFlags::from_bits_truncate(flag(
                TRANSMISSION_SEND_CACHE,
                ReadFlags::PREFETCH.bits(),
            )),
            write_flags: WriteFlags::from_bits_truncate(flag(
                TRANSMISSION_SEND_FUA,
                WriteFlags::FUA.bits(),
            )),
            ..BlockLimits::default()
        }
    }

    /// Whether requests that were made for `first` can go on here.
    ///
    /// # Errors
    /// Why they cannot.
    pub fn check_replaces(&self, first: &Facts, size: u64) -> io::Result<()> {
        // What a request relies on, now and on other connections.
        let relied_on = first.flags
            & (TRANSMISSION_SEND_FLUSH
                | TRANSMISSION_SEND_FUA
                | TRANSMISSION_SEND_TRIM
                | TRANSMISSION_SEND_WRITE_ZEROES
                | TRANSMISSION_SEND_CACHE
                | TRANSMISSION_SEND_FAST_ZERO);
        let other = |what: &str| Err(io::Error::new(ErrorKind::InvalidData, what));
        if self.size < size {
            return other("the export has become shorter");
        }
        if self.flags & relied_on != relied_on {
            return other("the export has lost abilities that it had");
        }
        if self.has(TRANSMISSION_READ_ONLY) && !first.has(TRANSMISSION_READ_ONLY) {
            return other("the export has become read-only");
        }
        if self.block() > first.block() || self.max_transfer() < first.max_transfer() {
            return other("the export takes other requests than before");
        }
        if first.is_extended() && !self.is_extended() {
            return other("the server has no extended headers any more");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        let flags = TRANSMISSION_SEND_FLUSH | TRANSMISSION_SEND_FUA;
        let style = Style::Structured;
        Facts { size: 1 << 20, flags, style, blocks: None, context: None }
    }

    #[test]
    fn limits_are_those_of_the_server_or_what_any_takes() {
        let limits = facts().limits();
        assert_eq!((limits.request_alignment, limits.max_transfer), (512, 32 << 20));
        assert_eq!(Facts { size: 1000, ..facts() }.limits().request_alignment, 1);
        let limits = Facts { blocks: Some((4096, 1 << 20)), ..facts() }.limits();
        assert_eq!((limits.request_alignment, limits.max_transfer), (4096, 1 << 20));
        assert_eq!(limits.write_flags, WriteFlags::FUA);
        let limits = Facts { blocks: Some((1, u32::MAX)), flags: 0, ..facts() }.limits();
        assert_eq!((limits.max_transfer, limits.write_flags), (32 << 20, WriteFlags::empty()));
        // The longest is no whole number of blocks.
        let limits = Facts { blocks: Some((4096, 10_000)), ..facts() }.limits();
        assert_eq!(limits.max_transfer, 8192);
    }

    #[test]
    fn impossible_exports_are_refused() {
        assert!(facts().check().is_ok());
        let sizes = [(0, 9), (3, 9), (128 << 10, 1 << 20), (4096, 512), (1 << 30, 1 << 30)];
        for blocks in sizes {
            assert!(Facts { blocks: Some(blocks), ..facts() }.check().is_err(), "{blocks:?}");
        }
        assert!(Facts { size: MAX_LENGTH + 1, ..facts() }.check().is_err());
        assert!(Facts { size: 513, blocks: Some((512, 1024)), ..facts() }.check().is_err());
    }

    #[test]
    fn another_export_takes_the_place_of_one_only_if_it_does_all_that_one_did() {
        let first = facts();
        let check = |other: Facts| other.check_replaces(&first, first.size).is_ok();
        assert!(check(first) && check(Facts { size: 2 << 20, ..first }));
        assert!(check(Facts { style: Style::Simple, ..first }));
        assert!(!check(Facts { size: 1 << 19, ..first }), "shorter");
        assert!(!check(Facts { flags: TRANSMISSION_SEND_FUA, ..first }), "no flush");
        assert!(!check(Facts { flags: first.flags | TRANSMISSION_READ_ONLY, ..first }));
        assert!(!check(Facts { blocks: Some((4096, 32 << 20)), ..first }), "larger blocks");
        assert!(!check(Facts { blocks: Some((512, 4096)), ..first }), "shorter requests");
    }
}
