//! Loops of one system call after the other: what a thread gets out of a file when nothing is in its way.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use coblk::AlignedBuffer;
use rustix::io::{ReadWriteFlags, preadv2, retry_on_intr};

use crate::measure::{Lap, lap};

/// Opens an image for a bare loop, with O_DIRECT if `direct`.
pub fn open(path: &Path, direct: bool, write: bool) -> io::Result<File> {
    File::options()
        .read(true)
        .write(write)
        .custom_flags(if direct { libc::O_DIRECT } else { 0 })
        .open(path)
}

/// Which system call a bare loop makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// `pread`, which takes neither a list of buffers nor flags.
    Pread,
    /// `pwrite`.
    Pwrite,
    /// `preadv2` without flags.
    Preadv2,
    /// `preadv2` with `RWF_NOWAIT`: blocks that the page cache lacks are read by a call without it.
    Preadv2Nowait,
}

impl Call {
    /// How rows call a loop of it.
    pub fn name(self) -> &'static str {
        match self {
            Call::Pread => "bare pread loop",
            Call::Pwrite => "bare pwrite loop",
            Call::Preadv2 => "bare preadv2 loop",
            Call::Preadv2Nowait => "bare preadv2 nowait loop",
        }
    }

    fn make(self, file: &File, buffer: &mut AlignedBuffer, offset: u64) -> io::Result<()> {
        match self {
            Call::Pread => file.read_exact_at(buffer, offset),
            Call::Pwrite => file.write_all_at(buffer, offset),
            Call::Preadv2 => preadv2_all(file, buffer, offset, ReadWriteFlags::empty()),
            Call::Preadv2Nowait => {
                preadv2_all(file, buffer, offset, ReadWriteFlags::NOWAIT).or_else(|error| {
                    match error.kind() {
                        // Only a part of it was there, or nothing.
                        io::ErrorKind::WouldBlock | io::ErrorKind::UnexpectedEof => {
                            Call::Preadv2.make(file, buffer, offset)
                        }
                        _ => Err(error),
                    }
                })
            }
        }
    }
}

fn preadv2_all(
    file: &File,
    buffer: &mut AlignedBuffer,
    offset: u64,
    flags: ReadWriteFlags,
) -> io::Result<()> {
    let wanted = buffer.len();
    let got = retry_on_intr(|| preadv2(file, &mut [IoSliceMut::new(buffer)], offset, flags))?;
    if got == wanted { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Reads or writes one block after the other, and starts again at the end. It goes through
/// `buffers` buffers in turn, as many as others have requests in flight: to copy into one that
/// stays in the nearest cache would be no measure for them.
pub fn sequential(
    path: &Path,
    block_bytes: usize,
    buffers: usize,
    direct: bool,
    call: Call,
) -> io::Result<impl FnMut(u64) -> io::Result<Lap> + use<>> {
    let mut requests = requests(path, block_bytes, buffers, direct, call)?;
    Ok(move |ops| {
        let mut result = Ok(());
        let lap = lap(ops, || result = (0..ops).try_for_each(&mut requests));
        result.map(|()| lap)
    })
}

/// The requests of such a loop one by one, each by its number.
pub fn requests(
    path: &Path,
    block_bytes: usize,
    buffers: usize,
    direct: bool,
    call: Call,
) -> io::Result<impl FnMut(u64) -> io::Result<()> + Send + use<>> {
    let file = open(path, direct, call == Call::Pwrite)?;
    let blocks = (file.metadata()?.len() / block_bytes as u64).max(1);
    let buffers = (0..buffers).map(|_| AlignedBuffer::new(block_bytes, 4096));
    let mut buffers = buffers.collect::<io::Result<Vec<_>>>()?;
    Ok(move |index: u64| {
        let turn = index as usize % buffers.len();
        call.make(&file, &mut buffers[turn], index % blocks * block_bytes as u64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Call; 4] = [Call::Pread, Call::Pwrite, Call::Preadv2, Call::Preadv2Nowait];

    #[test]
    fn wraps_at_the_end() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(8192).unwrap();
        for call in ALL {
            let mut bench = sequential(file.path(), 4096, 2, false, call).unwrap();
            assert_eq!(bench(5).unwrap().ops, 5);
            assert!(sequential(Path::new("/nowhere"), 4096, 2, false, call).is_err());
        }
    }

    #[test]
    fn each_call_reads_what_the_file_has() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..8192u32).map(|index| (index * 7 % 251) as u8).collect();
        std::fs::write(file.path(), &bytes).unwrap();
        let mut buffer = AlignedBuffer::new(4096, 4096).unwrap();
        for call in [Call::Pread, Call::Preadv2, Call::Preadv2Nowait] {
            for offset in [4096, 0] {
                buffer.fill(0);
                call.make(file.as_file(), &mut buffer, offset as u64).unwrap();
                assert_eq!(buffer[..], bytes[offset..offset + 4096], "{call:?}");
            }
            assert!(call.make(file.as_file(), &mut buffer, 8192 - 5).is_err(), "{call:?}");
        }
    }
}
