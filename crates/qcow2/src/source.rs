//! [`Source`]: the bytes of an image file, for tables to be read from.

use std::io;

use coblk_aio::{Co, IoVectorMut};
use coblk_block::{BlockBackend, Child, ReadFlags};

use crate::layout::FormatError;

/// A file that has an image. Behind its end there are zeroes.
pub(crate) trait Source {
    /// Where the file ends, in bytes.
    fn end(&self) -> u64;

    /// Fills `target` with what is at `offset` bytes, all of it within the file.
    fn co_read_inside(&self, co: &Co<'_>, offset: u64, target: &mut [u8]) -> io::Result<()>;

    /// Fills `target` with what is at `offset` bytes.
    fn co_read_at(&self, co: &Co<'_>, offset: u64, target: &mut [u8]) -> io::Result<()> {
        let there = self.end().saturating_sub(offset).min(target.len() as u64) as usize;
        let (inside, behind) = target.split_at_mut(there);
        behind.fill(0);
        if inside.is_empty() { Ok(()) } else { self.co_read_inside(co, offset, inside) }
    }

    /// Says whether a long look at the image is to go on.
    ///
    /// # Errors
    /// ECANCELED if its coroutine is not [wanted](Co::is_wanted) any more; EINTR if it is in the way of a drain.
    fn co_go_on(&self, co: &Co<'_>) -> io::Result<()> {
        match co.is_wanted() {
            true => Ok(()),
            false => Err(io::Error::from_raw_os_error(libc::ECANCELED)),
        }
    }
}

impl Source for Child {
    fn end(&self) -> u64 {
        self.length()
    }

    fn co_read_inside(&self, co: &Co<'_>, offset: u64, target: &mut [u8]) -> io::Result<()> {
        self.co_preadv_blocks(co, offset, &mut IoVectorMut::from(target), ReadFlags::empty())
    }
}

impl Source for BlockBackend {
    fn end(&self) -> u64 {
        // Without a medium reads fail.
        self.length().unwrap_or(0)
    }

    fn co_read_inside(&self, co: &Co<'_>, offset: u64, target: &mut [u8]) -> io::Result<()> {
        self.co_read(co, offset, target)
    }
}

/// Why tables of an image cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The image is refused.
    #[error(transparent)]
    Format(#[from] FormatError),
}

impl From<ImageError> for io::Error {
    fn from(error: ImageError) -> io::Error {
        match error {
            ImageError::Io(error) => error,
            ImageError::Format(error) => error.into(),
        }
    }
}
