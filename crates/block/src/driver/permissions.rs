//! [`Permissions`]: what users of a node may do to it, and share with others.

use std::fmt;
use std::io;
use std::path::PathBuf;

bitflags::bitflags! {
    /// Permissions on a node. Each user of a node holds some, and shares some, which means that
    /// others may hold them too. The bits are those that QEMU locks image files by.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Permissions: u8 {
        /// Read, and find a consistent state, as a disk would have.
        const CONSISTENT_READ = 1;
        /// Change the bytes that are read.
        const WRITE = 2;
        /// Write bytes without changing what is read.
        const WRITE_UNCHANGED = 4;
        /// Change the length.
        const RESIZE = 8;
    }
}

impl fmt::Display for Permissions {
    /// Their names as QEMU writes them, such as `consistent read, write`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (Permissions::CONSISTENT_READ, "consistent read"),
            (Permissions::WRITE, "write"),
            (Permissions::WRITE_UNCHANGED, "write unchanged"),
            (Permissions::RESIZE, "resize"),
        ];
        let held = names.iter().filter(|(permission, _)| self.contains(*permission));
        for (index, (_, name)) in held.enumerate() {
            write!(f, "{}{name}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// Why permissions were refused. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PermissionError {
    /// Another user of the node does not agree.
    #[error("{user} needs {permission} permission on node '{node}', which {other} does not share")]
    Conflict {
        /// The node.
        node: String,
        /// Who needs it, as `backend 'drive'`.
        user: String,
        /// The permission that is not shared.
        permission: Permissions,
        /// Who does not share it.
        other: String,
    },
    /// The node takes no users any more.
    #[error("node '{node}' is closed")]
    Closed {
        /// The node.
        node: String,
    },
    /// The node is inactive: its storage is another process's for the time being.
    #[error("{user} needs node '{node}' to be active, and it is inactive")]
    Inactive {
        /// The node.
        node: String,
        /// Which user, as `backend 'drive'`.
        user: String,
    },
    /// A driver lists a child that it did not have when its node was made: neither drains nor the refusal of
    /// cycles would know of it.
    #[error("node '{node}': its driver lists a child '{child}' that came after the node")]
    Undeclared {
        /// The node.
        node: String,
        /// The child, as `backing`.
        child: String,
    },
    /// Another process uses the image, and does not agree.
    #[error(
        "failed to get {mode}\"{permission}\" lock on image '{}': is another process using it?",
        path.display()
    )]
    Locked {
        /// The image.
        path: PathBuf,
        /// The permissions that were wanted.
        permission: Permissions,
        /// `shared ` if it was to be kept from others, else empty.
        mode: &'static str,
    },
    /// A write to the last block would make the image longer.
    #[error(
        "cannot get write permission without resize on image '{}': its length of {length} bytes is \
         not a multiple of {block}, the block of O_DIRECT there",
        path.display()
    )]
    Unaligned {
        /// The image.
        path: PathBuf,
        /// Its length in bytes.
        length: u64,
        /// The alignment of requests, in bytes.
        block: u32,
    },
    /// The locks of the image could not be asked for.
    #[error("cannot lock image '{}': {source}", path.display())]
    Lock {
        /// The image.
        path: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_have_names() {
        let held = Permissions::CONSISTENT_READ | Permissions::RESIZE;
        assert_eq!(held.to_string(), "consistent read, resize");
        assert_eq!(Permissions::empty().to_string(), "");
    }
}
