//! The image: made or found, opened for the run, and read back at the end.

use std::error::Error;
use std::fs::{self, File as HostFile, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use coblk::BlockNode;
use coblk::drivers::File;
use tempfile::{NamedTempFile, TempPath};

use crate::options::{DEFAULT_SIZE_BYTES, Options, Workload};
use crate::report::bytes;
use crate::verify::{Mismatch, Verifier};

/// An image that is ready for the run.
pub struct Image {
    /// The whole image, as a node.
    pub node: Arc<BlockNode>,
    /// What to do with it.
    pub workload: Workload,
    /// It was made for this run: all of it reads as zeroes.
    pub is_new: bool,
    /// What it is, for people.
    pub description: String,
    /// Blocks to use, from its start.
    pub blocks: usize,
    /// For the final pass.
    host: HostFile,
}

impl Image {
    /// Makes or finds the image, and opens it.
    ///
    /// # Errors
    /// If it cannot be made or opened, or is too small, or would be overwritten without consent.
    pub fn prepare(options: &Options) -> Result<Image, Box<dyn Error>> {
        let exists = options.image.as_ref().is_some_and(|path| path.exists());
        let workload = options.workload(exists)?;
        let (path, what, temporary) = match &options.image {
            None => {
                let temporary = make_temporary(options.size.unwrap_or(DEFAULT_SIZE_BYTES))?;
                (temporary.to_path_buf(), "temporary", Some(temporary))
            }
            Some(path) if exists => (path.clone(), "existing", None),
            Some(path) => {
                make(path, options.size.unwrap_or(DEFAULT_SIZE_BYTES))?;
                (path.clone(), "new", None)
            }
        };
        let image = File::options_for(&path)
            .read_only(!workload.writes() && exists)
            .direct(options.direct)
            .engine(options.engine.into())
            .in_place_reads(!options.no_in_place)
            .open(&path)?;
        let host = HostFile::open(&path)?;
        // Both are open: a temporary image needs its name no more, and cannot be left behind.
        temporary.map(TempPath::close).transpose()?;

        let node = BlockNode::new("disk0", image);
        let blocks = usable_blocks(options, &node, &path)?;
        let kept = if what == "new" { ", kept afterwards" } else { "" };
        let description =
            format!("{} ({what}{kept}, {})", path.display(), bytes(node.length() as f64));
        Ok(Image { node, workload, is_new: !exists, description, blocks, host })
    }

    /// Reads back every block that was written, with plain system calls and not through coblk, so
    /// that a mistake which writing and reading share does not go unnoticed. Returns how many blocks
    /// were checked; `bad` hears of the wrong ones.
    ///
    /// # Errors
    /// If the image cannot be read.
    pub fn verify_written(
        &self,
        verifier: &Verifier,
        block_bytes: u64,
        mut bad: impl FnMut(&Mismatch),
    ) -> Result<u64, Box<dyn Error>> {
        let mut data = vec![0; block_bytes as usize];
        let mut checked = 0;
        for block in verifier.written() {
            let offset = block as u64 * block_bytes;
            self.host
                .read_exact_at(&mut data, offset)
                .map_err(|error| format!("final pass: cannot read offset {offset}: {error}"))?;
            checked += 1;
            if let Err(mismatch) = verifier.check(block, &data) {
                bad(&mismatch);
            }
        }
        Ok(checked)
    }
}

fn make_temporary(size_bytes: u64) -> Result<TempPath, Box<dyn Error>> {
    let file = NamedTempFile::with_prefix("coblk-virtio_blk-").map_err(|error| {
        format!("cannot make a temporary image in {}: {error}", std::env::temp_dir().display())
    })?;
    file.as_file().set_len(size_bytes).map_err(|error| too_large(size_bytes, error))?;
    Ok(file.into_temp_path())
}

fn make(path: &Path, size_bytes: u64) -> Result<(), Box<dyn Error>> {
    let made = OpenOptions::new().write(true).create_new(true).open(path);
    let file = made.map_err(|error| format!("cannot make image '{}': {error}", path.display()))?;
    file.set_len(size_bytes).map_err(|error| {
        // Best effort: it was not there before.
        let _ = fs::remove_file(path);
        too_large(size_bytes, error).into()
    })
}

fn too_large(size_bytes: u64, error: io::Error) -> String {
    format!("cannot make an image of {}: {error}", bytes(size_bytes as f64))
}

/// How many blocks the options ask for, if the image has them and the driver takes them.
fn usable_blocks(
    options: &Options,
    node: &BlockNode,
    path: &Path,
) -> Result<usize, Box<dyn Error>> {
    let size_bytes = options.size.unwrap_or(node.length());
    if size_bytes > node.length() {
        let length = bytes(node.length() as f64);
        return Err(format!("--size: image '{}' has only {length}", path.display()).into());
    }
    let blocks = size_bytes / options.bs;
    if blocks == 0 {
        let (size, block) = (bytes(size_bytes as f64), bytes(options.bs as f64));
        return Err(format!("{size} are too small for one block of {block}").into());
    }
    let alignment = u64::from(node.limits().request_alignment);
    if !options.bs.is_multiple_of(alignment) {
        return Err(format!("--bs: O_DIRECT needs multiples of {alignment} bytes here").into());
    }
    Ok(usize::try_from(blocks)?)
}
