//! Answers, as bytes.

use crate::abi::{MAJOR, MAX_PAGES, MAX_TRANSFER, MINOR, SMALL_TRANSFER, init};
use crate::request::{Init, Time};

/// What every answer begins with.
pub const HEADER_BYTES: usize = 16;
/// Bytes of the longest answer that is no data.
const MAX_BYTES: usize = 128;

/// The beginning of an answer to the request of that number, with `bytes` bytes behind it.
pub fn header(unique: u64, error: i32, bytes: usize) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(&((HEADER_BYTES + bytes) as u32).to_ne_bytes());
    header[4..8].copy_from_slice(&error.to_ne_bytes());
    header[8..].copy_from_slice(&unique.to_ne_bytes());
    header
}

/// A short answer, without its header.
#[derive(Clone, Copy, Debug)]
pub struct Reply {
    bytes: [u8; MAX_BYTES],
    len: usize,
}

impl Reply {
    /// Nothing but success.
    pub fn empty() -> Reply {
        Reply { bytes: [0; MAX_BYTES], len: 0 }
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn put(mut self, field: &[u8]) -> Reply {
        self.bytes[self.len..self.len + field.len()].copy_from_slice(field);
        self.len += field.len();
        self
    }

    fn u16(self, field: u16) -> Reply {
        self.put(&field.to_ne_bytes())
    }

    fn u32(self, field: u32) -> Reply {
        self.put(&field.to_ne_bytes())
    }

    fn u64(self, field: u64) -> Reply {
        self.put(&field.to_ne_bytes())
    }

    fn zeroes(self, bytes: usize) -> Reply {
        Reply { len: self.len + bytes, ..self }
    }

    /// The file is open.
    pub fn open(flags: u32) -> Reply {
        Reply::empty().u64(0).u32(flags).u32(0)
    }

    /// So many bytes were written.
    pub fn written(bytes: u32) -> Reply {
        Reply::empty().u32(bytes).u32(0)
    }

    /// What was looked for is at that offset.
    pub fn found(offset: u64) -> Reply {
        Reply::empty().u64(offset)
    }

    /// The answer to INIT.
    pub fn init(offer: &Init, max_background: u16, has_rings: bool) -> Reply {
        let rings = if has_rings { init::OVER_IO_URING } else { 0 };
        let wanted = rings
            | init::ASYNC_READ
            | init::ATOMIC_O_TRUNC
            | init::BIG_WRITES
            | init::AUTO_INVAL_DATA
            | init::ASYNC_DIO
            | init::MAX_PAGES
            | init::INIT_EXT
            | init::DIRECT_IO_ALLOW_MMAP;
        let mut flags = offer.flags & wanted;
        if flags & init::INIT_EXT == 0 {
            flags &= u64::from(u32::MAX);
        }
        let is_large = flags & init::MAX_PAGES != 0;
        Reply::empty()
            .u32(MAJOR)
            .u32(offer.minor.min(MINOR))
            .u32(offer.max_readahead)
            .u32(flags as u32)
            .u16(max_background)
            // From here on the kernel lets its own readahead wait.
            .u16(max_background / 4 * 3)
            .u32(if is_large { MAX_TRANSFER as u32 } else { SMALL_TRANSFER })
            // Times have nanoseconds.
            .u32(1)
            .u16(MAX_PAGES)
            .u16(0)
            .u32((flags >> 32) as u32)
            .zeroes(28)
    }

    /// The version that is spoken, to a kernel of a later major one, which then asks again.
    pub fn version() -> Reply {
        Reply::empty().u32(MAJOR).u32(MINOR).zeroes(56)
    }

    /// The attributes of the file, which the kernel may keep for `valid`.
    pub fn attributes(valid: Time, of: &Attributes) -> Reply {
        let [atime, mtime, ctime] = of.times;
        Reply::empty()
            .u64(valid.0)
            .u32(valid.1)
            .u32(0)
            .u64(crate::abi::ROOT)
            .u64(of.size)
            .u64(of.blocks)
            .u64(atime.0)
            .u64(mtime.0)
            .u64(ctime.0)
            .u32(atime.1)
            .u32(mtime.1)
            .u32(ctime.1)
            .u32(of.mode)
            .u32(1)
            .u32(of.uid)
            .u32(of.gid)
            .u32(0)
            .u32(of.block_bytes)
            .u32(0)
    }

    /// The file system: one file of that size.
    pub fn statfs(size: u64, block_bytes: u32) -> Reply {
        Reply::empty()
            .u64(size.div_ceil(u64::from(block_bytes)))
            .zeroes(16)
            .u64(1)
            .u64(0)
            .u32(block_bytes)
            // Length of names.
            .u32(255)
            .u32(block_bytes)
            .zeroes(28)
    }

    /// To be sent unasked: the kernel is to ask for attributes again.
    pub fn forget_attributes() -> Reply {
        // A negative offset leaves the pages of the cache alone.
        Reply::empty().u64(crate::abi::ROOT).u64(-1i64 as u64).u64(0)
    }
}

/// The attributes of the file.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attributes {
    pub size: u64,
    /// Allocated, in units of 512 bytes.
    pub blocks: u64,
    /// Of access, modification, change.
    pub times: [Time; 3],
    /// With the type.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// What one transfer should have.
    pub block_bytes: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_have_the_lengths_that_the_kernel_knows() {
        let offer = Init { major: 7, minor: 99, max_readahead: 1, flags: u64::MAX };
        let lengths = [
            Reply::init(&offer, 64, false),
            Reply::version(),
            Reply::attributes((1, 0), &Attributes::default()),
            Reply::statfs(1 << 20, 4096),
            Reply::open(0),
            Reply::written(1),
            Reply::found(1),
            Reply::forget_attributes(),
        ]
        .map(|reply| reply.as_bytes().len());
        assert_eq!(lengths, [64, 64, 104, 80, 16, 8, 8, 24]);
    }

    #[test]
    fn flags_that_the_kernel_does_not_offer_are_not_set() {
        let offer = |flags| Init { major: 7, minor: 31, max_readahead: 1, flags };
        let reply = |flags| Reply::init(&offer(flags), 64, false);
        let word = |reply: &Reply, at| {
            let bytes = reply.as_bytes();
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let old = reply(init::ASYNC_READ | init::DIRECT_IO_ALLOW_MMAP);
        assert_eq!((word(&old, 4), word(&old, 12), word(&old, 32)), (31, 1, 0));
        assert_eq!(word(&old, 20), SMALL_TRANSFER);
        let new = reply(u64::MAX);
        assert_eq!((word(&new, 20), word(&new, 32)), (MAX_TRANSFER as u32, 1 << 4));
        let rings = |flags| word(&Reply::init(&offer(flags), 64, true), 32);
        assert_eq!((rings(u64::MAX), rings(init::INIT_EXT)), (1 << 4 | 1 << 9, 0));
    }
}
