//! Makes an image in nodes.
//!
//! ```text
//! options   what it is to be; encrypt, if it is to be encrypted
//! measure   how long it would be
//! ```
//!
//! The order, so that no crash leaves what looks like an image and is none: what was there is cut off, or its
//! first cluster is overwritten by zeroes; that is durable. Then comes all but the first sector of the
//! header, durable; then that sector, which names the format.

mod encrypt;
mod measure;
mod options;

use std::io;

use coblk_aio::{Co, PoolShare};
use coblk_block::{BlockBackend, CreateError, Creating, Preallocation, Truncate};

use crate::encryption::NewEncryption;
use crate::layout::{Finished, L2Entry, Mapped, NewImage, SECTOR_BYTES};
pub use encrypt::{EncryptCreateFormat, EncryptCreateOptions};
pub use measure::Qcow2MeasureOptions;
pub(crate) use measure::co_measure;
pub use options::{Compression, Preallocate, Qcow2CreateOptions, Version};

/// Longest write of zeroes at a time, in bytes; between two of them a creation can be given up.
const ZEROES_BYTES: u64 = 64 << 20;
/// Most bytes of a data file that are read to find that they are zeroes.
const MAX_LOOK_BYTES: u64 = 1 << 20;
/// The bits of an extended entry whose subclusters all read as zeroes.
const ALL_ZERO: u64 = 0xffff_ffff << 32;

/// Makes an image.
pub(crate) fn co_create(
    creating: &Creating<'_, '_>,
    options: &Qcow2CreateOptions,
) -> Result<(), CreateError> {
    let co = creating.co();
    // Mistakes come before a node is touched; the name of the data file comes later.
    options.header(None).map_err(failed)?;
    let encrypt = options.encrypt.as_ref().map(|encrypt| encrypt.co_make(creating));
    let encryption = encrypt.transpose()?.flatten();
    let file = creating.co_child("file", &options.file)?;
    let data_file = options.data_file.as_ref();
    let data_file = data_file.map(|node| creating.co_child("data-file", node)).transpose()?;
    let name = data_file.as_ref().and_then(BlockBackend::node);
    let name = name.and_then(|node| node.driver().filename());
    let header = options.header(name.as_deref()).map_err(failed)?;
    let mapped = options.mapped();
    let (plan, end) = PoolShare::once(co, || {
        let plan = NewImage::new(header, mapped)?;
        let end = plan.finish()?;
        end.header.encode()?;
        Ok((plan, end))
    })
    .map_err(failed)?;
    let new = New { co, options, plan, end, file, data_file, encryption };
    new.co_make().map_err(CreateError::of_driver)
}

fn failed(error: crate::layout::FormatError) -> CreateError {
    CreateError::of_driver(io::Error::from(error))
}

/// An image on its way.
struct New<'a, 'co> {
    co: &'a Co<'co>,
    options: &'a Qcow2CreateOptions,
    plan: NewImage,
    end: Finished,
    file: BlockBackend,
    data_file: Option<BlockBackend>,
    encryption: Option<NewEncryption>,
}

impl New<'_, '_> {
    fn co_make(&self) -> io::Result<()> {
        let is_zero = self.co_clear()?;
        let blank = self.co_blank(is_zero)?;
        self.co_set_lengths()?;
        self.co_write_tables(blank, is_zero)?;
        self.co_write_refcounts()?;
        self.co_write_encryption()?;
        let header = self.end.header.encode()?;
        let (first, rest) = header.split_at(SECTOR_BYTES);
        self.file.co_write(self.co, SECTOR_BYTES as u64, rest)?;
        self.co_flush()?;
        self.file.co_write(self.co, 0, first)?;
        self.file.co_flush(self.co)
    }

    /// Removes what is in the file. Returns whether all of it reads as zeroes then.
    fn co_clear(&self) -> io::Result<bool> {
        if self.file.length()? == 0 {
            return Ok(true);
        }
        self.file.co_truncate_with(self.co, 0, Truncate::default())?;
        let there = self.file.length()?;
        if there > 0 {
            let header = self.plan.geometry().cluster_bytes().min(there);
            self.file.co_pwrite_zeroes(self.co, 0, header, Default::default())?;
        }
        self.file.co_flush(self.co)?;
        Ok(there == 0)
    }

    /// Makes the files as long as they are to be, with space for data if that was asked for.
    fn co_set_lengths(&self) -> io::Result<()> {
        let preallocation = match self.options.preallocation() {
            Preallocate::Off | Preallocate::Metadata => Preallocation::Off,
            Preallocate::Falloc => Preallocation::Falloc,
            Preallocate::Full => Preallocation::Full,
        };
        if let Some(data_file) = &self.data_file {
            self.co_lengthen(data_file, self.options.size.0, preallocation)?;
        } else if let Some(range) = self.plan.data_range() {
            self.co_lengthen(&self.file, range.start, Preallocation::Off)?;
            self.co_lengthen(&self.file, range.end, preallocation)?;
        }
        self.co_lengthen(&self.file, self.end.file_bytes, Preallocation::Off)
    }

    /// Makes a node at least so long.
    fn co_lengthen(
        &self,
        node: &BlockBackend,
        bytes: u64,
        preallocation: Preallocation,
    ) -> io::Result<()> {
        let block = node.node().map_or(1, |node| node.driver().limits().request_alignment);
        let bytes = bytes.next_multiple_of(block.into());
        if node.length()? > bytes {
            return Ok(());
        }
        node.co_truncate_with(self.co, bytes, Truncate { preallocation, ..Truncate::default() })
    }

    /// Writes the L1 table, and the L2 tables of what is mapped.
    fn co_write_tables(&self, blank: Option<L2Entry>, is_zero: bool) -> io::Result<()> {
        let geometry = self.plan.geometry();
        let mut tables = self.plan.tables();
        while let Some(table) = PoolShare::once(self.co, || tables.step())? {
            self.co_check_wanted()?;
            if blank.is_none() {
                self.co_zero_data(&table.runs)?;
            }
            let bytes = table.encode(geometry, blank.unwrap_or_default());
            self.file.co_write(self.co, table.offset, &bytes)?;
        }
        let l1: Vec<u8> = self.end.l1.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        let is_empty = is_zero && l1.iter().all(|byte| *byte == 0);
        match l1.is_empty() || is_empty {
            true => Ok(()),
            false => self.file.co_write(self.co, self.end.header.l1_offset, &l1),
        }
    }

    /// What an entry has besides the place of its cluster. `None` if the clusters have to be overwritten.
    fn co_blank(&self, is_zero: bool) -> io::Result<Option<L2Entry>> {
        let (plain, has_backing) = (L2Entry::default(), self.end.header.backing.is_some());
        let is_zero = match &self.data_file {
            // Its bytes are those of the disk.
            Some(_) if self.options.data_file_raw => true,
            Some(data_file) => self.co_reads_zero(data_file)?,
            None => is_zero,
        };
        // Zeroes would be decrypted to something else.
        let is_zero = is_zero && self.options.encrypt.is_none();
        let extended = self.plan.geometry().is_extended();
        if self.options.mapped() == Mapped::Nothing || is_zero || extended && has_backing {
            return Ok(Some(plain));
        }
        Ok(match (self.options.version, extended) {
            (Version::V2, _) => None,
            (Version::V3, true) => Some(L2Entry { bitmap: ALL_ZERO, ..plain }),
            (Version::V3, false) => Some(L2Entry { word: 1, ..plain }),
        })
    }

    /// Whether all of the disk reads as zeroes in the data file, as far as that is known.
    fn co_reads_zero(&self, data_file: &BlockBackend) -> io::Result<bool> {
        let (mut at, mut left) = (0, MAX_LOOK_BYTES);
        let end = self.options.size.0.min(data_file.length()?);
        while at < end {
            let extent = data_file.co_block_status(self.co, at, end - at)?;
            let bytes = extent.bytes;
            if !extent.zero {
                // Programs write a block of zeroes to see what O_DIRECT takes.
                if bytes > left || !self.co_is_zero(data_file, at, bytes)? {
                    return Ok(false);
                }
                left -= bytes;
            }
            at += bytes;
        }
        Ok(true)
    }

    fn co_is_zero(&self, node: &BlockBackend, offset: u64, bytes: u64) -> io::Result<bool> {
        let mut data = vec![1; bytes as usize];
        node.co_read(self.co, offset, &mut data)?;
        Ok(data.iter().all(|byte| *byte == 0))
    }

    fn co_zero_data(&self, runs: &[(u64, u64, u64)]) -> io::Result<()> {
        let cluster_bytes = self.plan.geometry().cluster_bytes();
        for (_, offset, clusters) in runs {
            let end = (offset + clusters * cluster_bytes).min(self.file.length()?);
            let mut at = *offset;
            while at < end {
                self.co_check_wanted()?;
                let bytes = ZEROES_BYTES.min(end - at);
                self.file.co_pwrite_zeroes(self.co, at, bytes, Default::default())?;
                at += bytes;
            }
        }
        Ok(())
    }

    fn co_write_refcounts(&self) -> io::Result<()> {
        for (offset, bytes) in self.end.refcount_blocks() {
            self.co_check_wanted()?;
            self.file.co_write(self.co, offset, &bytes)?;
        }
        let (offset, bytes) = self.end.refcount_table();
        self.file.co_write(self.co, offset, &bytes)
    }

    /// Writes the header of LUKS.
    fn co_write_encryption(&self) -> io::Result<()> {
        let place = self.end.header.extensions.luks(self.plan.geometry())?;
        match (&self.encryption, place) {
            (Some(new), Some(place)) => self.file.co_write(self.co, place.offset, new.bytes()),
            _ => Ok(()),
        }
    }

    fn co_flush(&self) -> io::Result<()> {
        if let Some(data_file) = &self.data_file {
            data_file.co_flush(self.co)?;
        }
        self.file.co_flush(self.co)
    }

    fn co_check_wanted(&self) -> io::Result<()> {
        match self.co.is_wanted() {
            true => Ok(()),
            false => Err(io::Error::from_raw_os_error(libc::ECANCELED)),
        }
    }
}
