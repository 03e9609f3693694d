//! What a floor serves: nothing, or a file through the page cache, with one system call a request.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use crate::peers::programs::NULL_BYTES;
use crate::sys;

/// A null device, or a file.
#[derive(Debug)]
pub struct Store {
    file: Option<File>,
    len_bytes: u64,
}

impl Store {
    /// The file at `path`; a null device without one.
    ///
    /// # Errors
    /// If it cannot be opened for reading and writing.
    pub fn open(path: Option<&Path>) -> io::Result<Store> {
        let Some(path) = path else { return Ok(Store { file: None, len_bytes: NULL_BYTES }) };
        let file = File::options().read(true).write(true).open(path)?;
        let len_bytes = file.metadata()?.len();
        Ok(Store { file: Some(file), len_bytes })
    }

    /// Its length in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// Whether all of a request lies in it.
    pub fn holds(&self, offset: u64, len: u64) -> bool {
        offset.checked_add(len).is_some_and(|end| end <= self.len_bytes)
    }

    /// Reads; the null device leaves the buffer as it was.
    ///
    /// # Errors
    /// As the file says.
    pub fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.file.as_ref().map_or(Ok(()), |file| file.read_exact_at(data, offset))
    }

    /// Writes.
    ///
    /// # Errors
    /// As the file says.
    pub fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.as_ref().map_or(Ok(()), |file| file.write_all_at(data, offset))
    }

    /// [`read`](Store::read), into memory that a guest sees too.
    ///
    /// # Errors
    /// As the file says.
    pub fn read_shared<B: BitmapSlice>(
        &self,
        offset: u64,
        data: &VolatileSlice<'_, B>,
    ) -> io::Result<()> {
        self.file.as_ref().map_or(Ok(()), |file| sys::pread_shared(file, data, offset))
    }

    /// [`write`](Store::write), from memory that a guest sees too.
    ///
    /// # Errors
    /// As the file says.
    pub fn write_shared<B: BitmapSlice>(
        &self,
        offset: u64,
        data: &VolatileSlice<'_, B>,
    ) -> io::Result<()> {
        self.file.as_ref().map_or(Ok(()), |file| sys::pwrite_shared(file, data, offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_past_the_end_are_told_apart() {
        let store = Store::open(None).unwrap();
        assert!(store.holds(NULL_BYTES - 512, 512) && store.holds(0, 0));
        for (offset, len) in [(NULL_BYTES - 511, 512), (u64::MAX, 1), (u64::MAX, u64::MAX)] {
            assert!(!store.holds(offset, len), "{offset} {len}");
        }
        assert!(Store::open(Some(Path::new("/nowhere/image"))).is_err());
    }

    #[test]
    fn bytes_go_to_the_file_and_come_back() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(8192).unwrap();
        let store = Store::open(Some(file.path())).unwrap();
        store.write(4096, b"some bytes").unwrap();
        let mut data = [0; 10];
        store.read(4096, &mut data).unwrap();
        assert_eq!(&data, b"some bytes");
        let mut shared = *b"shared one";
        store.write_shared(0, &VolatileSlice::from(&mut shared[..])).unwrap();
        let mut back = [0; 10];
        store.read_shared(0, &VolatileSlice::from(&mut back[..])).unwrap();
        assert_eq!(&back, b"shared one");
        // The file was cut meanwhile.
        file.as_file().set_len(5).unwrap();
        assert!(store.read_shared(0, &VolatileSlice::from(&mut back[..])).is_err());
    }
}
