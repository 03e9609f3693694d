//! Guest memory, and buffers in it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use coblk_aio::{IoVector, IoVectorMut};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Left out at the start of memory, so that no buffer is at address 0.
const FIRST_ADDRESS: u64 = 4096;

/// A piece of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestBuffer {
    /// Its guest address.
    pub addr: u64,
    /// Its length in bytes.
    pub len: u32,
}

impl GuestBuffer {
    /// The part `[offset, offset + len)`.
    ///
    /// # Panics
    /// If that is not inside the buffer.
    pub fn slice(&self, offset: u32, len: u32) -> GuestBuffer {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(inside, "slice {offset}+{len} of {self:?}");
        GuestBuffer { addr: self.addr + u64::from(offset), len }
    }
}

/// The memory of a guest, and an allocator that never frees. Cheap to clone; any thread.
#[derive(Clone)]
pub struct GuestRam {
    mem: Arc<GuestMemoryMmap>,
    next: Arc<AtomicU64>,
}

impl GuestRam {
    /// `mebibytes` MiB of zeroed memory from guest address 0 on, in one region.
    ///
    /// # Errors
    /// If it cannot be mapped.
    pub fn new(mebibytes: usize) -> io::Result<GuestRam> {
        Self::with_regions(&[(0, mebibytes << 20)])
    }

    /// Memory in several regions, each with its guest address and its length in bytes, in ascending
    /// order.
    ///
    /// # Errors
    /// If they overlap, are out of order, or cannot be mapped.
    pub fn with_regions(regions: &[(u64, usize)]) -> io::Result<GuestRam> {
        let ranges: Vec<_> =
            regions.iter().map(|(addr, len)| (GuestAddress(*addr), *len)).collect();
        let mem = GuestMemoryMmap::from_ranges(&ranges).map_err(io::Error::other)?;
        let first = regions.first().map_or(0, |(addr, _)| *addr);
        let next = first.max(FIRST_ADDRESS);
        Ok(GuestRam { mem: Arc::new(mem), next: Arc::new(AtomicU64::new(next)) })
    }

    /// The memory itself.
    pub fn memory(&self) -> &Arc<GuestMemoryMmap> {
        &self.mem
    }

    /// Takes a buffer, for ever. `alignment` is a power of two.
    ///
    /// # Errors
    /// [`io::ErrorKind::OutOfMemory`] if there is no more memory.
    pub fn alloc(&self, len: u32, alignment: u64) -> io::Result<GuestBuffer> {
        let mut old = self.next.load(Ordering::Relaxed);
        loop {
            let addr = old.next_multiple_of(alignment);
            if !self.mem.check_range(GuestAddress(addr), len as usize) {
                return Err(io::Error::new(io::ErrorKind::OutOfMemory, "guest memory is used up"));
            }
            let new = addr + u64::from(len);
            match self.next.compare_exchange_weak(old, new, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(GuestBuffer { addr, len }),
                Err(now) => old = now,
            }
        }
    }

    /// Takes `count` buffers of one size.
    ///
    /// # Errors
    /// As [`alloc`](Self::alloc).
    pub fn alloc_many(
        &self,
        count: usize,
        len: u32,
        alignment: u64,
    ) -> io::Result<Vec<GuestBuffer>> {
        (0..count).map(|_| self.alloc(len, alignment)).collect()
    }

    /// Copies `data` into a buffer.
    ///
    /// # Panics
    /// If it does not fit, or the buffer is not in this memory.
    pub fn write(&self, buffer: GuestBuffer, data: &[u8]) {
        assert!(data.len() <= buffer.len as usize, "{} bytes into {buffer:?}", data.len());
        let mut target = IoVectorMut::new();
        for piece in self.mem.get_slices(GuestAddress(buffer.addr), data.len()) {
            target.push_volatile(&piece.expect("buffer in guest memory"));
        }
        target.copy_from(0, data);
    }

    /// Copies the first bytes of a buffer out of guest memory.
    ///
    /// # Panics
    /// If there are not as many, or the buffer is not in this memory.
    pub fn read(&self, buffer: GuestBuffer, data: &mut [u8]) {
        assert!(data.len() <= buffer.len as usize, "{} bytes from {buffer:?}", data.len());
        let mut source = IoVector::new();
        for piece in self.mem.get_slices(GuestAddress(buffer.addr), data.len()) {
            source.push_volatile(&piece.expect("buffer in guest memory"));
        }
        source.copy_to(0, data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_do_not_overlap_and_end() {
        let ram = GuestRam::new(1).unwrap();
        let a = ram.alloc(100, 64).unwrap();
        let b = ram.alloc(100, 512).unwrap();
        assert!(a.addr.is_multiple_of(64) && b.addr.is_multiple_of(512));
        assert!(b.addr >= a.addr + 100);
        assert!(ram.alloc(1 << 20, 1).is_err());
        ram.write(a, b"hello");
        let mut back = [0; 5];
        ram.read(a, &mut back);
        assert_eq!(&back, b"hello");
        assert_eq!(b.slice(4, 8), GuestBuffer { addr: b.addr + 4, len: 8 });
    }
}
