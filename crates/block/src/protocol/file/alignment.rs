//! Alignments that O_DIRECT on a file asks of memory and of requests.

use std::fs::File as HostFile;
use std::io;
use std::os::fd::AsFd;

use coblk_aio::{AlignedBuffer, IoVectorMut, sys};

/// An alignment that every file and device takes.
const SAFE: u32 = 4096;

/// Alignment of memory and of requests in bytes: what the kernel tells, else what it is found to
/// take.
pub(super) fn of_direct_io(file: &HostFile) -> io::Result<(u32, u32)> {
    match sys::direct_io_alignment(file.as_fd()) {
        Some(alignments) => Ok(alignments),
        None => by_reading(file),
    }
}

fn by_reading(file: &HostFile) -> io::Result<(u32, u32)> {
    let mut buffer = AlignedBuffer::new(2 * SAFE as usize, SAFE as usize)?;
    Ok(probe(|address, len| {
        let target = &mut buffer[address as usize..(address + len) as usize];
        sys::preadv(file.as_fd(), &mut IoVectorMut::from(target), 0).is_ok()
    }))
}

/// Asks for reads of the beginning into memory so many bytes after an aligned address, and of so
/// many bytes.
fn probe(mut takes: impl FnMut(u32, u32) -> bool) -> (u32, u32) {
    let request = smallest(|len| takes(0, len));
    let memory = smallest(|address| takes(address, SAFE));
    (memory, request)
}

/// The smallest alignment that works. If a single byte does, no alignment was looked at, as where
/// there is nothing to read; that says nothing of other places.
fn smallest(mut works: impl FnMut(u32) -> bool) -> u32 {
    if works(1) {
        return SAFE;
    }
    [512, 1024, 2048].into_iter().find(|alignment| works(*alignment)).unwrap_or(SAFE)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes these alignments of memory and requests.
    fn disk(memory: u32, request: u32) -> impl FnMut(u32, u32) -> bool {
        move |address, len| address.is_multiple_of(memory) && len.is_multiple_of(request)
    }

    #[test]
    fn what_is_taken_is_found() {
        for request in [512, 1024, 2048, 4096] {
            for memory in [512, 1024, 2048, 4096] {
                assert_eq!(probe(disk(memory, request)), (memory, request));
            }
        }
        assert_eq!(probe(disk(4, 512)), (512, 512), "not tried below sectors");
    }

    #[test]
    fn what_tells_nothing_is_treated_with_care() {
        assert_eq!(probe(|_, _| true), (SAFE, SAFE));
        assert_eq!(probe(|_, _| false), (SAFE, SAFE));
    }

    #[test]
    fn a_real_file_takes_what_was_found() {
        use std::os::unix::fs::OpenOptionsExt;
        // The build's file system: what is in memory may not know O_DIRECT.
        let image = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        std::fs::write(image.path(), [7; 16384]).unwrap();
        let mut options = HostFile::options();
        let file = options.read(true).custom_flags(libc::O_DIRECT).open(image.path()).unwrap();
        let (memory, request) = by_reading(&file).unwrap();
        let mut buffer = AlignedBuffer::new(2 * SAFE as usize, SAFE as usize).unwrap();
        let target = &mut buffer[memory as usize..][..request as usize];
        let at = u64::from(request);
        let read = sys::preadv(file.as_fd(), &mut IoVectorMut::from(target), at).unwrap();
        assert_eq!(read, request as usize);
        if let Some((told_memory, told_request)) = sys::direct_io_alignment(file.as_fd()) {
            assert!(memory >= told_memory && request >= told_request);
        }
    }
}
