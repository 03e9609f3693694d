//! Pages of a guest's memory that were written: what a front end gathers to move it.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::fs::{MemfdFlags, memfd_create};
use vhost::VhostUserDirtyLogRegion;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

pub const PAGE: u64 = 4096;

/// A bit for each page, in memory that a back end may share.
pub struct Pages {
    file: File,
    bits: MmapRegion,
}

impl Pages {
    /// Of memory that ends at `end`.
    pub fn new(end: u64) -> Pages {
        let bytes = end.div_ceil(PAGE * 8);
        let file = File::from(memfd_create("pages", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(bytes).unwrap();
        let shared = FileOffset::new(file.try_clone().unwrap(), 0);
        let bits = MmapRegion::from_file(shared, bytes as usize).unwrap();
        Pages { file, bits }
    }

    /// What a front end gives as its log.
    pub fn region(&self) -> VhostUserDirtyLogRegion {
        VhostUserDirtyLogRegion {
            mmap_size: self.bits.len() as u64,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    fn byte(&self, at: usize) -> &AtomicU8 {
        self.bits.get_atomic_ref(at).unwrap()
    }

    /// `len` bytes at `addr` were written.
    pub fn mark(&self, addr: u64, len: usize) {
        for page in addr / PAGE..=(addr + len as u64 - 1) / PAGE {
            self.byte(page as usize / 8).fetch_or(1 << (page % 8), Ordering::SeqCst);
        }
    }

    /// The pages that were marked since the last call.
    pub fn take(&self) -> Vec<u64> {
        let taken = (0..self.bits.len()).map(|at| (at, self.byte(at).swap(0, Ordering::SeqCst)));
        let pages = taken.flat_map(|(at, bits)| {
            let set = (0..8).filter(move |bit| bits & 1 << bit != 0);
            set.map(move |bit| at as u64 * 8 + bit)
        });
        pages.collect()
    }
}
