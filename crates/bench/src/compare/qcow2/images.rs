//! The images of `compare qcow2`, made by qemu-img.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::peers::qemu_img::PACKAGE;

/// Virtual length of the image that has no data of its own.
pub const NULL_BYTES: u64 = 1 << 30;
/// Words of the image that is compressed, and their length in bytes.
const WORDS: usize = 512;
const WORD_BYTES: usize = 11;

/// Images on the same data, in a directory that is removed in the end.
pub struct Images {
    directory: TempDir,
    raw: PathBuf,
    text_bytes: u64,
}

impl Images {
    /// On the data of `raw`; what is compressed has `text_bytes`.
    ///
    /// # Errors
    /// If there is no directory for them.
    pub fn new(raw: &Path, text_bytes: u64) -> io::Result<Images> {
        let directory = tempfile::Builder::new().prefix("coblk-bench-").tempdir()?;
        Ok(Images { directory, raw: raw.to_owned(), text_bytes })
    }

    /// The raw image.
    pub fn raw(&self) -> &Path {
        &self.raw
    }

    /// All of it mapped, with data in a file of its own that is not there: the driver has to name another.
    ///
    /// # Errors
    /// If qemu-img fails, as below.
    pub fn mapped(&self) -> io::Result<PathBuf> {
        let data = self.path("data.raw")?;
        let options = format!("data_file={data},preallocation=metadata");
        self.made("mapped.qcow2", |path| {
            let size = NULL_BYTES.to_string();
            qemu_img(&["create", "-q", "-f", "qcow2", "-o", &options, path, &size])
        })
    }

    /// The raw image's data, in clusters that are not compressed.
    ///
    /// # Errors
    /// As above.
    pub fn plain(&self) -> io::Result<PathBuf> {
        let raw = utf8(&self.raw)?;
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

    /// Words at random: deflate leaves less than half of them.
    ///
    /// # Errors
    /// As above.
    pub fn compressed(&self) -> io::Result<PathBuf> {
        let text = self.made("text.raw", |path| write_words(Path::new(path), self.text_bytes))?;
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

fn qemu_img(words: &[&str]) -> io::Result<()> {
    let output = Command::new("qemu-img").args(words).output().map_err(|error| {
        io::Error::new(error.kind(), format!("qemu-img (Debian package {PACKAGE}): {error}"))
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("qemu-img {} failed: {}", words.join(" "), said.trim())))
}

/// The same words in the same order each time.
fn write_words(path: &Path, bytes: u64) -> io::Result<()> {
    let mut state = 1_u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state >> 33
    };
    let letters: Vec<u8> = (0..WORDS * WORD_BYTES).map(|_| b'a' + (random() % 26) as u8).collect();
    let mut file = BufWriter::new(File::create_new(path)?);
    let mut left = bytes as usize;
    while left > 0 {
        let word = &letters[random() as usize % WORDS * WORD_BYTES..][..WORD_BYTES.min(left)];
        file.write_all(word)?;
        left -= word.len();
    }
    file.into_inner().map_err(io::Error::other)?.sync_all()
}
