//! Numbers of the kernel's FUSE protocol, version 7, as its header `fuse.h` has them.

/// The version that is spoken.
pub const MAJOR: u32 = 7;
/// The newest minor version whose rules are kept.
pub const MINOR: u32 = 40;
/// The oldest that will do: answers to INIT have had their length since then.
pub const MIN_MINOR: u32 = 23;

/// The root of the file system, which is the file itself, and the only inode.
pub const ROOT: u64 = 1;

/// The largest write, and read.
pub const MAX_TRANSFER: usize = 1 << 20;
/// Pages of the largest transfer.
pub const MAX_PAGES: u16 = (MAX_TRANSFER >> 12) as u16;
/// What a kernel without MAX_PAGES transfers at most.
pub const SMALL_TRANSFER: u32 = 128 << 10;

/// Requests.
pub mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const LSEEK: u32 = 46;
}

/// What INIT is about.
pub mod init {
    /// Reads of one file at a time.
    pub const ASYNC_READ: u64 = 1 << 0;
    /// O_TRUNC is a flag of OPEN, and no SETATTR before it.
    pub const ATOMIC_O_TRUNC: u64 = 1 << 3;
    /// Writes are larger than a page.
    pub const BIG_WRITES: u64 = 1 << 5;
    /// Pages in the cache are dropped when the file's time has changed.
    pub const AUTO_INVAL_DATA: u64 = 1 << 12;
    /// Direct I/O of libaio and io_uring is asynchronous.
    pub const ASYNC_DIO: u64 = 1 << 15;
    /// `max_pages` is there.
    pub const MAX_PAGES: u64 = 1 << 22;
    /// The second word of flags is there.
    pub const INIT_EXT: u64 = 1 << 30;
    /// Shared mappings of a file with direct I/O.
    pub const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
    /// Requests are fetched and answered over io_uring.
    pub const OVER_IO_URING: u64 = 1 << 41;
}

/// How a file is opened.
pub mod open {
    /// Reads and writes go past the page cache.
    pub const DIRECT_IO: u32 = 1 << 0;
    /// Writes within the length do not wait for each other.
    pub const PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
}

/// Which attributes SETATTR changes.
pub mod attr {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const CTIME: u32 = 1 << 10;
}

/// Says that what is known of an inode is old; in the place of an error.
pub const NOTIFY_INVAL_INODE: i32 = 2;
