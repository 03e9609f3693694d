//! [`Manifest`]: a file with checksums of what was copied.
//!
//! ```text
//! coblk-manifest 1
//! length 1073741824
//! granularity 65536
//! crc32c
//! 0 4 98f94189
//! 262144 1 0f3ac5d2
//! ```
//!
//! A line for each row of granules with the same CRC-32C: where it begins, in bytes; how many there are; the sum. The
//! last granule of a disk may be shorter. What was not copied has no line.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use coblk_aio::{Co, PoolShare};

use crate::JobFailure;
use crate::copy::sums::Sums;

/// The file in the making, beside its place. Dropped, it is removed.
pub(super) struct Manifest {
    file: File,
    new: PathBuf,
    path: PathBuf,
}

impl Manifest {
    /// Makes a file, if it has a path: what cannot be written is known before anything is copied.
    pub(super) fn co_begin(co: &Co<'_>, path: Option<&Path>) -> io::Result<Option<Manifest>> {
        let Some(path) = path else { return Ok(None) };
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        let new = PathBuf::from(new);
        let file = PoolShare::once(co, || File::create(&new)).map_err(|error| {
            io::Error::new(error.kind(), format!("Could not create '{}': {error}", new.display()))
        })?;
        Ok(Some(Manifest { file, new, path: path.to_owned() }))
    }

    /// Writes the sums, durably, and puts the file in its place.
    pub(super) fn co_finish(self, co: &Co<'_>, sums: &Sums) -> Result<(), JobFailure> {
        PoolShare::once(co, || self.finish(sums)).map_err(|error| {
            JobFailure::Text(format!("Could not write '{}': {error}", self.path.display()))
        })
    }

    fn finish(&self, sums: &Sums) -> io::Result<()> {
        let mut to = BufWriter::new(&self.file);
        writeln!(to, "coblk-manifest 1")?;
        writeln!(to, "length {}", sums.length())?;
        writeln!(to, "granularity {}", sums.granularity())?;
        writeln!(to, "crc32c")?;
        for run in sums.runs() {
            writeln!(to, "{} {} {:08x}", run.offset, run.granules, run.sum)?;
        }
        to.flush()?;
        drop(to);
        self.file.sync_all()?;
        fs::rename(&self.new, &self.path)?;
        let folder = self.path.parent().filter(|it| !it.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Drop for Manifest {
    fn drop(&mut self) {
        // It has its name by now, unless that failed.
        let _ = fs::remove_file(&self.new);
    }
}
