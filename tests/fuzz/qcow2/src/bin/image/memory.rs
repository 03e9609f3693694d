//! [`Memory`]: a file in memory that cannot become long.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coblk_aio::{Co, IoVector, IoVectorMut};
use coblk_block::{BlockDriver, ReadFlags, Truncate, WriteFlags};

/// No file is longer, in bytes.
pub const MAX_BYTES: u64 = 32 << 20;

/// The bytes of a file. A handle: clones are the same.
#[derive(Clone)]
pub struct Memory(Arc<Mutex<Vec<u8>>>);

impl Memory {
    pub fn new(bytes: Vec<u8>) -> Memory {
        Memory(Arc::new(Mutex::new(bytes)))
    }

    pub fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BlockDriver for Memory {
    fn format_name(&self) -> &'static str {
        "memory"
    }

    fn length(&self) -> u64 {
        self.bytes().len() as u64
    }

    fn co_preadv(
        &self,
        _: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        _: ReadFlags,
    ) -> io::Result<()> {
        let bytes = self.bytes();
        let start = offset as usize;
        target.copy_from(0, &bytes[start..start + target.len()]);
        Ok(())
    }

    fn co_pwritev(
        &self,
        _: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        _: WriteFlags,
    ) -> io::Result<()> {
        let start = offset as usize;
        source.copy_to(0, &mut self.bytes()[start..start + source.len()]);
        Ok(())
    }

    fn co_flush(&self, _: &Co<'_>) -> io::Result<()> {
        Ok(())
    }

    fn co_pdiscard(&self, _: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        self.bytes()[offset as usize..(offset + bytes) as usize].fill(0);
        Ok(())
    }

    fn co_truncate(&self, _: &Co<'_>, length: u64, _: Truncate) -> io::Result<()> {
        if length > MAX_BYTES {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        self.bytes().resize(length as usize, 0);
        Ok(())
    }
}
