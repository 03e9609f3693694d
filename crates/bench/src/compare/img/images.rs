//! The images of `compare img`, and loops that read and copy the raw one.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use coblk::aio::AlignedBuffer;
use tempfile::TempDir;

use super::run_program;
use crate::compare::jobs::side::{Medium, PIECE, directory};
use crate::image::Words;
use crate::measure::{Bench, Lap};

/// Images of one disk, of which every second piece is data, in a directory that is removed in the end. Each is made
/// when it is first asked for.
pub struct Images<'a> {
    directory: TempDir,
    pub medium: Medium,
    /// Length of the disk, in bytes.
    pub length: u64,
    /// What makes images of qcow2.
    maker: &'a Path,
}

impl<'a> Images<'a> {
    /// # Errors
    /// If there is no directory for them.
    pub fn new(medium: Medium, length: u64, maker: &'a Path) -> io::Result<Images<'a>> {
        Ok(Images { directory: directory(medium)?, medium, length, maker })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The raw image.
    pub fn raw(&self) -> io::Result<PathBuf> {
        self.made("raw", |path| {
            let file = File::create_new(path)?;
            file.set_len(self.length)?;
            let (mut words, mut piece) = (Words::new(), vec![0; PIECE]);
            pieces(self.length).try_for_each(|at| {
                words.fill(&mut piece);
                file.write_all_at(&piece, at)
            })
        })
    }

    /// An image of qcow2, with compressed clusters or without.
    pub fn qcow2(&self, is_compressed: bool) -> io::Result<PathBuf> {
        let raw = self.raw()?;
        let (name, how) = if is_compressed { ("compressed", "-c") } else { ("qcow2", "-S4k") };
        self.made(name, |path| {
            let words = ["convert", how, "-f", "raw", "-O", "qcow2"].map(Path::new);
            run_program(self.maker, &[&words[..], &[&raw, path]].concat())
        })
    }

    /// An image of so many GiB, all of them mapped, to holes of the file.
    pub fn mapped(&self, gib: u64) -> io::Result<PathBuf> {
        self.made("mapped", |path| {
            let options = ["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata"];
            let size = format!("{gib}G");
            let words = [&options.map(Path::new)[..], &[path, Path::new(&size)]].concat();
            run_program(self.maker, &words)
        })
    }

    fn made(&self, name: &str, make: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<PathBuf> {
        let path = self.path(name);
        if !path.exists() {
            make(&path)?;
            // Otherwise the kernel would write it back while we measure.
            File::open(&path)?.sync_all()?;
        }
        Ok(path)
    }

    fn open(&self, path: &Path, is_new: bool) -> io::Result<File> {
        let flags = if self.medium == Medium::Direct { libc::O_DIRECT } else { 0 };
        OpenOptions::new()
            .read(true)
            .write(is_new)
            .create_new(is_new)
            .custom_flags(flags)
            .open(path)
    }

    /// A loop that knows where the raw image has data, and copies it to a new file.
    pub fn copy_loop<'b>(&'b self) -> io::Result<Bench<'b>> {
        let (source, target) = (self.raw()?, self.path("copy"));
        self.timed(move |images, buffer| {
            let (from, to) = (images.open(&source, false)?, images.open(&target, true)?);
            to.set_len(images.length)?;
            pieces(images.length).try_for_each(|at| {
                from.read_exact_at(buffer, at)?;
                to.write_all_at(buffer, at)
            })?;
            if images.medium == Medium::Direct {
                to.sync_data()?;
            }
            fs::remove_file(&target)
        })
    }

    /// A loop that reads the data of the raw image twice.
    pub fn read_loop<'b>(&'b self) -> io::Result<Bench<'b>> {
        let source = self.raw()?;
        self.timed(move |images, buffer| {
            let from = images.open(&source, false)?;
            let twice = pieces(images.length).flat_map(|at| [at, at]);
            twice.into_iter().try_for_each(|at| from.read_exact_at(buffer, at))
        })
    }

    fn timed<'b>(
        &'b self,
        run: impl Fn(&Images<'_>, &mut [u8]) -> io::Result<()> + 'b,
    ) -> io::Result<Bench<'b>> {
        let mut buffer = AlignedBuffer::new(PIECE, 4096)?;
        Ok(Box::new(move |_| {
            let start = Instant::now();
            run(self, &mut buffer)?;
            let wall_ns = start.elapsed().as_nanos() as f64;
            Ok(Lap { ops: self.length / PIECE as u64, wall_ns, ..Lap::default() })
        }))
    }
}

/// Where the pieces with data are.
fn pieces(length: u64) -> impl Iterator<Item = u64> {
    (0..length / PIECE as u64).step_by(2).map(|number| number * PIECE as u64)
}
