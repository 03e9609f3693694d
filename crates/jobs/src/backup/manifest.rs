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
    is_in_place: bool,
}

impl Manifest {
    /// Makes a file, if it has a path: what cannot be written is known before anything is copied. Its name has that of
    /// the job, so that no other job with this path writes to it.
    pub(super) fn co_begin(
        co: &Co<'_>,
        path: Option<&Path>,
        job: &str,
    ) -> io::Result<Option<Manifest>> {
        let Some(path) = path else { return Ok(None) };
        let mut new = path.as_os_str().to_owned();
        new.push(format!(".{job}.new"));
        let new = PathBuf::from(new);
        let file = PoolShare::once(co, || File::create(&new)).map_err(|error| {
            io::Error::new(error.kind(), format!("Could not create '{}': {error}", new.display()))
        })?;
        Ok(Some(Manifest { file, new, path: path.to_owned(), is_in_place: false }))
    }

    /// Writes the sums, durably, and puts the file in its place.
    pub(super) fn co_finish(mut self, co: &Co<'_>, sums: &Sums) -> Result<(), JobFailure> {
        PoolShare::once(co, move || {
            self.finish(sums).map_err(|error| {
                JobFailure::Text(format!("Could not write '{}': {error}", self.path.display()))
            })
        })
    }

    /// Has a worker remove it.
    pub(super) fn co_discard(self, co: &Co<'_>) {
        PoolShare::once(co, move || drop(self));
    }

    fn finish(&mut self, sums: &Sums) -> io::Result<()> {
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
        self.is_in_place = true;
        let folder = self.path.parent().filter(|it| !it.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Drop for Manifest {
    fn drop(&mut self) {
        if !self.is_in_place {
            let _ = fs::remove_file(&self.new);
        }
    }
}
