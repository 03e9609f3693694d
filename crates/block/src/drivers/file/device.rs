//! What a block device does otherwise than a file.

use std::io;
use std::os::fd::AsFd;

use coblk_aio::{Co, sys};

use super::File;

impl File {
    /// A hole in a file is by the file system; a device is told itself. Zeroing needs no such
    /// distinction: the kernel makes `fallocate` on a device what the device is best at.
    pub(super) fn co_discard_device(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        let device = self.file.as_fd();
        self.co_if_possible(co, &self.can_discard, || {
            sys::block_device::discard(device, offset, bytes)
        })
    }
}
