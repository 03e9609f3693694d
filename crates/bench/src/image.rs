//! Disk images to measure on.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::TempPath;

/// Bytes written at once when an image is made.
const PIECE_BYTES: usize = 1 << 20;

/// How many words there are, and their length in bytes.
const WORDS: usize = 512;
const WORD_BYTES: usize = 11;

/// Words in an order at random, which is the same each time: deflate leaves less than half of them.
pub struct Words {
    letters: Vec<u8>,
    state: u64,
}

impl Words {
    pub fn new() -> Words {
        let mut words = Words { letters: Vec::new(), state: 1 };
        let letter = |_| b'a' + (words.random() % 26) as u8;
        words.letters = (0..WORDS * WORD_BYTES).map(letter).collect();
        words
    }

    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.state >> 33
    }

    /// Fills a piece with the next ones, of which the last may be cut.
    pub fn fill(&mut self, piece: &mut [u8]) {
        for place in piece.chunks_mut(WORD_BYTES) {
            let word = self.random() as usize % WORDS * WORD_BYTES;
            place.copy_from_slice(&self.letters[word..][..place.len()]);
        }
    }
}

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
