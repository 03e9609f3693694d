//! Which flags of a request its driver gets, and what becomes of the others: the layer does what they
//! ask for, drops them where they change nothing, or refuses the request.

use std::io;

use super::{RequestPath, errno};
use crate::driver::flags::{ReadFlags, WriteFlags};

/// The flags of a read that the driver gets.
#[cold]
pub(super) fn of_read(path: &RequestPath, flags: ReadFlags) -> io::Result<ReadFlags> {
    let flags = if path.state.is_tracking() { flags - ReadFlags::SERIALISING } else { flags };
    let taken = flags & path.limits.read_flags();
    let left = flags - taken;
    let cannot_copy = left.contains(ReadFlags::COPY_ON_READ) && path.state.has_backing();
    if cannot_copy || left.contains(ReadFlags::SERIALISING) {
        return Err(errno(libc::ENOTSUP));
    }
    Ok(taken)
}

/// The flags of a write that the driver gets. Durability is seen to by the caller.
#[cold]
pub(super) fn of_write(path: &RequestPath, flags: WriteFlags) -> io::Result<WriteFlags> {
    let flags = if path.state.is_tracking() { flags - WriteFlags::SERIALISING } else { flags };
    let taken = flags & path.limits.write_flags();
    if (flags - taken).intersects(WriteFlags::COMPRESSED | WriteFlags::SERIALISING) {
        return Err(errno(libc::ENOTSUP));
    }
    Ok(taken)
}
