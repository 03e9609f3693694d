//! [`StorageStamp`]: what tells whether storage was changed by others.

/// The identity of the storage of a driver, and when it was changed last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StorageStamp {
    /// The number of the file in its file system.
    pub inode: u64,
    /// When it was changed last: seconds since 1970.
    pub modified_s: i64,
    /// The nanoseconds to that.
    pub modified_ns: i64,
}

impl StorageStamp {
    /// That of a file with this number, changed then.
    pub fn new(inode: u64, (modified_s, modified_ns): (i64, i64)) -> StorageStamp {
        StorageStamp { inode, modified_s, modified_ns }
    }
}
