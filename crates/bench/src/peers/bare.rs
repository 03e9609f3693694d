//! A loop of pread calls: what a thread gets out of a file when nothing is in its way.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use coblk::AlignedBuffer;

use crate::measure::{Lap, lap};

/// Opens an image for a bare loop, with O_DIRECT if `direct`.
pub fn open(path: &Path, direct: bool, write: bool) -> io::Result<File> {
    File::options()
        .read(true)
        .write(write)
        .custom_flags(if direct { libc::O_DIRECT } else { 0 })
        .open(path)
}

/// Reads or writes one block after the other, and starts again at the end. It goes through
/// `buffers` buffers in turn, as many as others have requests in flight: to copy into one that
/// stays in the nearest cache would be no measure for them.
pub fn sequential(
    path: &Path,
    block_bytes: usize,
    buffers: usize,
    direct: bool,
    write: bool,
) -> io::Result<impl FnMut(u64) -> io::Result<Lap> + use<>> {
    let file = open(path, direct, write)?;
    let blocks = (file.metadata()?.len() / block_bytes as u64).max(1);
    let buffers = (0..buffers).map(|_| AlignedBuffer::new(block_bytes, 4096));
    let mut buffers = buffers.collect::<io::Result<Vec<_>>>()?;
    Ok(move |ops| {
        let mut result = Ok(());
        let lap = lap(ops, || {
            for index in 0..ops {
                let offset = index % blocks * block_bytes as u64;
                let turn = index as usize % buffers.len();
                result = if write {
                    file.write_all_at(&buffers[turn], offset)
                } else {
                    file.read_exact_at(&mut buffers[turn], offset)
                };
                if result.is_err() {
                    return;
                }
            }
        });
        result.map(|()| lap)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wraps_at_the_end() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(8192).unwrap();
        assert_eq!(sequential(file.path(), 4096, 2, false, false).unwrap()(5).unwrap().ops, 5);
        assert_eq!(sequential(file.path(), 4096, 2, false, true).unwrap()(5).unwrap().ops, 5);
        assert!(sequential(Path::new("/nowhere"), 4096, 2, false, false).is_err());
    }
}
