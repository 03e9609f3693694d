//! The images of `compare qcow2`, made by qemu-img.

use std::cell::OnceCell;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::image::{Image, Words};
use crate::peers::qemu_img::run as qemu_img;

/// Virtual length of the image that has no data of its own.
pub const NULL_BYTES: u64 = 1 << 30;
/// Virtual length of images that are written for the first time.
const EMPTY_BYTES: u64 = 1 << 40;

/// Images, in a directory that is removed in the end. Each is made when it is first asked for.
pub struct Images<'a> {
    directory: TempDir,
    raw: OnceCell<Image>,
    make_raw: Box<dyn Fn() -> io::Result<Image> + 'a>,
    /// They are small, and figures need not be good.
    pub is_quick: bool,
}

impl<'a> Images<'a> {
    /// On the data of a raw image. What is compressed is longer than decompressed clusters are kept of,
    /// unless it is for a short run.
    ///
    /// # Errors
    /// If there is no directory for them.
    pub fn new(
        is_quick: bool,
        make_raw: impl Fn() -> io::Result<Image> + 'a,
    ) -> io::Result<Images<'a>> {
        let directory = tempfile::Builder::new().prefix("coblk-bench-").tempdir()?;
        Ok(Images { directory, raw: OnceCell::new(), make_raw: Box::new(make_raw), is_quick })
    }

    /// The raw image.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn raw(&self) -> io::Result<&Path> {
        if self.raw.get().is_none() {
            let image = (self.make_raw)()?;
            return Ok(self.raw.get_or_init(|| image).path());
        }
        self.raw.get().map(Image::path).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// All of it mapped, with data in a file of its own that is not there: the driver has to name another.
    ///
    /// # Errors
    /// If qemu-img fails, as below.
    pub fn mapped(&self, bytes: u64) -> io::Result<PathBuf> {
        let data = self.path("data.raw")?;
        let options = format!("data_file={data},preallocation=metadata");
        self.made(&format!("mapped-{bytes}.qcow2"), |path| {
            qemu_img(&["create", "-q", "-f", "qcow2", "-o", &options, path, &bytes.to_string()])
        })
    }

    /// All of it mapped but the last GiB, to holes of the file.
    ///
    /// # Errors
    /// As above.
    pub fn preallocated(&self, gib: u64) -> io::Result<PathBuf> {
        self.made(&format!("preallocated-{gib}.qcow2"), |path| {
            let size = format!("{gib}G");
            let options = ["-o", "preallocation=metadata", path, &size];
            qemu_img(&[&["create", "-q", "-f", "qcow2"][..], &options].concat())?;
            qemu_img(&["resize", "-q", path, "+1G"])
        })
    }

    /// The raw image's data, in clusters that are not compressed.
    ///
    /// # Errors
    /// As above.
    pub fn plain(&self) -> io::Result<PathBuf> {
        let raw = utf8(self.raw()?)?;
        // With every cluster, also those of zeroes.
        self.made("plain.qcow2", |path| {
            qemu_img(&["convert", "-S", "0", "-f", "raw", "-O", "qcow2", raw, path])
        })
    }

    /// An empty overlay over [`plain`](Self::plain).
    ///
    /// # Errors
    /// As above.
    pub fn overlay(&self) -> io::Result<PathBuf> {
        let plain = self.plain()?;
        let backing = ["-b", utf8(&plain)?, "-F", "qcow2"];
        self.made("overlay.qcow2", |path| {
            let create = ["create", "-q", "-f", "qcow2"];
            qemu_img(&[&create[..], &backing, &[path]].concat())
        })
    }

    /// Nothing in it, and long enough for a write to each of 2048 tables.
    ///
    /// # Errors
    /// As above.
    pub fn empty(&self) -> io::Result<PathBuf> {
        self.made("empty.qcow2", |path| {
            qemu_img(&["create", "-q", "-f", "qcow2", path, &EMPTY_BYTES.to_string()])
        })
    }

    /// A raw file as long as [`empty`](Self::empty), all of it a hole.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn sparse(&self) -> io::Result<PathBuf> {
        self.made("sparse.raw", |path| File::create_new(path)?.set_len(EMPTY_BYTES))
    }

    /// Another copy of an image that takes little space, in place of the last one with this name.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn copy(&self, of: &Path, name: &str) -> io::Result<PathBuf> {
        let path = self.directory.path().join(name);
        if path.exists() {
            fs::remove_file(&path)?;
        }
        // What has no byte is a hole in the copy too.
        if fs::metadata(of)?.len() == EMPTY_BYTES {
            File::create_new(&path)?.set_len(EMPTY_BYTES)?;
        } else {
            fs::copy(of, &path)?;
        }
        Ok(path)
    }

    /// Words at random: deflate leaves less than half of them.
    ///
    /// # Errors
    /// As above.
    pub fn compressed(&self) -> io::Result<PathBuf> {
        let bytes = if self.is_quick { 1 << 20 } else { 128 << 20 };
        let text = self.made("text.raw", |path| write_words(Path::new(path), bytes))?;
        let text = utf8(&text)?;
        self.made("compressed.qcow2", |path| {
            qemu_img(&["convert", "-c", "-f", "raw", "-O", "qcow2", text, path])
        })
    }

    fn path(&self, name: &str) -> io::Result<String> {
        utf8(&self.directory.path().join(name)).map(str::to_owned)
    }

    /// The image of that name, which `make` makes if it is not there.
    fn made(&self, name: &str, make: impl FnOnce(&str) -> io::Result<()>) -> io::Result<PathBuf> {
        let path = self.path(name)?;
        if !Path::new(&path).exists() {
            make(&path)?;
            // Otherwise the kernel would write it back while we measure.
            File::open(&path)?.sync_all()?;
        }
        Ok(path.into())
    }
}

fn utf8(path: &Path) -> io::Result<&str> {
    path.to_str().ok_or_else(|| io::Error::other(format!("{} is not UTF-8", path.display())))
}

/// The same words in the same order each time.
fn write_words(path: &Path, bytes: u64) -> io::Result<()> {
    let (mut words, mut piece) = (Words::new(), vec![0; 1 << 20]);
    let mut file = File::create_new(path)?;
    let mut left = bytes as usize;
    while left > 0 {
        let some = left.min(piece.len());
        words.fill(&mut piece[..some]);
        file.write_all(&piece[..some])?;
        left -= some;
    }
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::qemu_img::is_installed;

    #[test]
    fn text_is_compressed() {
        if is_installed() {
            let images = Images::new(true, || Err(io::ErrorKind::NotFound.into())).unwrap();
            let bytes = fs::metadata(images.compressed().unwrap()).unwrap().len();
            assert!(bytes < 800 << 10, "{bytes} bytes");
        }
    }

    #[test]
    fn a_copy_takes_the_place_of_the_last() {
        let images = Images::new(true, || Err(io::ErrorKind::NotFound.into())).unwrap();
        let sparse = images.sparse().unwrap();
        let copy = images.copy(&sparse, "copy").unwrap();
        fs::write(&copy, "text").unwrap();
        assert_eq!(fs::metadata(images.copy(&sparse, "copy").unwrap()).unwrap().len(), EMPTY_BYTES);
        let other = images.path("text").unwrap();
        fs::write(&other, "text").unwrap();
        let copy = images.copy(Path::new(&other), "copy").unwrap();
        assert_eq!(fs::read(copy).unwrap(), b"text");
    }
}
