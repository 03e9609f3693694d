//! A loop on a bare io_uring with registered file and buffers: what the ring gives when nothing is
//! in its way.
//!
//! # Why it is sound
//!
//! The ring reads into and writes from `buffers` while requests are in flight. [`Ring::run`]
//! submits only inside itself and reaps everything before it returns, also when a request failed;
//! and the ring is declared before the buffers, so it is closed before they are freed.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use coblk::AlignedBuffer;
use io_uring::{IoUring, opcode, types};

use super::bare;
use crate::measure::{Lap, lap};

/// A ring with one file and a buffer for each request in flight.
pub struct Ring {
    ring: IoUring,
    _file: File,
    buffers: Vec<AlignedBuffer>,
    block_bytes: usize,
    blocks: u64,
    write: bool,
}

impl Ring {
    /// A ring for `depth` requests at a time on an image.
    ///
    /// # Errors
    /// If the image cannot be opened, or the kernel refuses a ring.
    pub fn new(
        path: &Path,
        block_bytes: usize,
        depth: usize,
        direct: bool,
        write: bool,
    ) -> io::Result<Ring> {
        let file = bare::open(path, direct, write)?;
        let blocks = (file.metadata()?.len() / block_bytes as u64).max(1);
        let entries = u32::try_from(depth.next_power_of_two()).unwrap_or(u32::MAX);
        let ring = IoUring::builder().setup_single_issuer().setup_coop_taskrun().build(entries)?;
        let buffers = (0..depth).map(|_| AlignedBuffer::new(block_bytes, 4096));
        let mut buffers = buffers.collect::<io::Result<Vec<_>>>()?;
        let ranges: Vec<libc::iovec> = buffers
            .iter_mut()
            .map(|buffer| libc::iovec {
                iov_base: buffer.as_mut_ptr().cast(),
                iov_len: block_bytes,
            })
            .collect();
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        // SAFETY: the buffers live as long as the ring, see the head of the module.
        unsafe { ring.submitter().register_buffers(&ranges)? };
        Ok(Ring { ring, _file: file, buffers, block_bytes, blocks, write })
    }

    /// Makes `ops` requests, one block after the other, `depth` at a time.
    ///
    /// # Errors
    /// If a request fails, when all have ended.
    pub fn run(&mut self, ops: u64) -> io::Result<Lap> {
        let mut result = Ok(());
        let lap = lap(ops, || result = self.requests(ops));
        result.map(|()| lap)
    }

    fn requests(&mut self, ops: u64) -> io::Result<()> {
        let mut failed = None;
        let (mut submitted, mut in_flight) = (0, 0);
        for slot in 0..self.buffers.len() {
            if submitted < ops {
                self.push(slot, submitted);
                submitted += 1;
                in_flight += 1;
            }
        }
        while in_flight > 0 {
            match self.ring.submit_and_wait(1) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // The ring is broken, which leaves no way to wait for the buffers.
                Err(error) => panic!("io_uring_enter: {error}"),
                Ok(_) => {}
            }
            loop {
                let Some(completion) = self.ring.completion().next() else { break };
                in_flight -= 1;
                if usize::try_from(completion.result()) != Ok(self.block_bytes) {
                    failed = Some(completion.result());
                }
                if submitted < ops && failed.is_none() {
                    self.push(completion.user_data() as usize, submitted);
                    submitted += 1;
                    in_flight += 1;
                }
            }
        }
        match failed {
            None => Ok(()),
            Some(errno) if errno < 0 => Err(io::Error::from_raw_os_error(-errno)),
            Some(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn push(&mut self, slot: usize, index: u64) {
        let offset = index % self.blocks * self.block_bytes as u64;
        let buffer = self.buffers[slot].as_mut_ptr();
        let (file, len) = (types::Fixed(0), self.block_bytes as u32);
        let entry = if self.write {
            opcode::WriteFixed::new(file, buffer, len, slot as u16).offset(offset).build()
        } else {
            opcode::ReadFixed::new(file, buffer, len, slot as u16).offset(offset).build()
        };
        // SAFETY: the buffer is registered in this slot, and nothing touches it before the
        // completion; see the head of the module. There is a free entry: no more requests are in
        // flight than the ring has entries.
        let pushed = unsafe { self.ring.submission().push(&entry.user_data(slot as u64)) };
        assert!(pushed.is_ok(), "more requests than entries");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_where_the_kernel_has_a_ring() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(16_384).unwrap();
        for write in [false, true] {
            if let Ok(mut ring) = Ring::new(file.path(), 4096, 4, false, write) {
                assert_eq!(ring.run(10).unwrap().ops, 10);
                file.as_file().set_len(0).unwrap();
                assert_eq!(ring.run(10).is_err(), !write);
                file.as_file().set_len(16_384).unwrap();
            }
        }
    }
}
