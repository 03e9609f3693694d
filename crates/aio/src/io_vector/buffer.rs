//! Buffers that a request can own.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice;

use super::{IoVector, IoVectorMut};

/// A buffer that a request owns while it runs, so that a callback-style request needs no borrowed
/// memory: it moves onto the request's coroutine and comes back with the completion.
pub trait IoBuffer: 'static {
    /// The buffer as a source of data.
    fn io_vector(&self) -> IoVector<'_>;
    /// The buffer as a destination of data.
    fn io_vector_mut(&mut self) -> IoVectorMut<'_>;
}

impl IoBuffer for Vec<u8> {
    fn io_vector(&self) -> IoVector<'_> {
        self.as_slice().into()
    }
    fn io_vector_mut(&mut self) -> IoVectorMut<'_> {
        self.as_mut_slice().into()
    }
}

impl IoBuffer for Box<[u8]> {
    fn io_vector(&self) -> IoVector<'_> {
        IoVector::from(&self[..])
    }
    fn io_vector_mut(&mut self) -> IoVectorMut<'_> {
        IoVectorMut::from(&mut self[..])
    }
}

/// Zero-filled heap memory at a chosen alignment, as O_DIRECT needs it.
pub struct AlignedBuffer {
    memory: NonNull<u8>,
    len: usize,
    layout: Layout,
}

// SAFETY: it owns its memory as `Box<[u8]>` would.
unsafe impl Send for AlignedBuffer {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for AlignedBuffer {}

impl AlignedBuffer {
    /// `len` zero bytes at a multiple of `alignment`.
    ///
    /// # Errors
    /// `InvalidInput` if `alignment` is not a power of two, `OutOfMemory` if there is no memory.
    pub fn new(len: usize, alignment: usize) -> io::Result<AlignedBuffer> {
        let layout = Layout::from_size_align(len.max(1), alignment)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        // SAFETY: the layout has a size of at least one byte.
        let memory = unsafe { alloc_zeroed(layout) };
        let memory =
            NonNull::new(memory).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(AlignedBuffer { memory, len, layout })
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `new` allocated and zeroed at least `len` bytes here, and we own them.
        unsafe { slice::from_raw_parts(self.memory.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; the exclusive borrow makes it the only access.
        unsafe { slice::from_raw_parts_mut(self.memory.as_ptr(), self.len) }
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this very layout, and freed only here.
        unsafe { dealloc(self.memory.as_ptr(), self.layout) };
    }
}

impl IoBuffer for AlignedBuffer {
    fn io_vector(&self) -> IoVector<'_> {
        IoVector::from(&self[..])
    }
    fn io_vector_mut(&mut self) -> IoVectorMut<'_> {
        IoVectorMut::from(&mut self[..])
    }
}

impl fmt::Debug for AlignedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedBuffer")
            .field("len", &self.len)
            .field("alignment", &self.layout.align())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_buffers_are_aligned() {
        let mut buffer = AlignedBuffer::new(8192, 4096).unwrap();
        assert!(buffer.io_vector_mut().is_aligned(4096));
        buffer[8191] = 1;
        assert_eq!(buffer.len(), 8192);
        assert!(AlignedBuffer::new(1, 3).is_err());
        assert!(AlignedBuffer::new(0, 512).unwrap().is_empty());
    }
}
