//! Disk images to measure on.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::TempPath;

/// Bytes written at once when an image is made.
const PIECE_BYTES: usize = 1 << 20;

/// An image; one that was made is removed in the end.
pub struct Image {
    path: PathBuf,
    _temporary: Option<TempPath>,
}

impl Image {
    /// The image at `path`; without a path, or with one where nothing is, a new one of
    /// `size_bytes`. `step` is told of each MiB that is written.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn open_or_make(
        path: Option<&Path>,
        size_bytes: u64,
        step: impl FnMut(),
    ) -> io::Result<Image> {
        match path {
            Some(path) if path.exists() => Ok(Image { path: path.to_owned(), _temporary: None }),
            Some(path) => {
                fill(&mut File::create_new(path)?, size_bytes, step)?;
                Ok(Image { path: path.to_owned(), _temporary: None })
            }
            None => {
                let mut file =
                    tempfile::Builder::new().prefix("coblk-bench-").suffix(".img").tempfile()?;
                fill(file.as_file_mut(), size_bytes, step)?;
                let temporary = file.into_temp_path();
                Ok(Image { path: temporary.to_path_buf(), _temporary: Some(temporary) })
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads all of it, so that the page cache has it.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn warm(&self) -> io::Result<()> {
        io::copy(&mut File::open(&self.path)?, &mut io::sink()).map(|_| ())
    }
}

/// Writes every block, for a hole is no work to read: what is not on the disk is not fetched from
/// it.
fn fill(file: &mut File, size_bytes: u64, mut step: impl FnMut()) -> io::Result<()> {
    let piece: Vec<u8> = (0..PIECE_BYTES).map(|index| ((index * 31) >> 7) as u8).collect();
    let mut left = size_bytes;
    while left > 0 {
        let len = usize::try_from(left).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES));
        file.write_all(&piece[..len])?;
        left -= len as u64;
        step();
    }
    // Otherwise the kernel would write it back while we measure.
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temporary_image_goes_away() {
        let mut steps = 0;
        let image = Image::open_or_make(None, (2 << 20) + 512, || steps += 1).unwrap();
        let path = image.path().to_owned();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), (2 << 20) + 512);
        assert_eq!(steps, 3);
        image.warm().unwrap();
        drop(image);
        assert!(!path.exists());
    }

    #[test]
    fn a_named_image_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.img");
        drop(Image::open_or_make(Some(&path), 4096, || ()).unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 4096);
        // The second time it is taken as it is.
        drop(Image::open_or_make(Some(&path), 8192, || ()).unwrap());
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 4096);
    }
}
