//! Opens an image: header, tables, and the files that options or the image name.

mod anew;
mod encrypted;
mod named;
mod writable;

pub use named::probe_format;

use std::sync::Arc;

use coblk_block::options::{NodeRef, NodeRefOrNull};
use coblk_block::{
    Bitmaps, Child, ChildRole, ChildSlot, NodeMode, OpenError, Opening, Permissions,
};

use crate::bitmap::{self, StoredBitmaps};
use crate::cache::SliceCache;
use crate::cleaning::Cleaner;
use crate::image::{Image, Parts};
use crate::layout::{Bitmap, FormatError, Geometry, Header, Incompatible, Purpose};
use crate::live::LiveOptions;
use crate::metadata::MetadataSet;
use crate::options::{CacheSizes, Qcow2Options};
use crate::source::ImageError;
use crate::tables;
use anew::Tables;
pub(crate) use writable::needs_preparation;

/// The error of a refused image, as that of an opening.
pub(crate) fn refused(error: impl Into<ImageError>) -> OpenError {
    match error.into() {
        ImageError::Io(error) => OpenError::Io(error),
        ImageError::Format(error) => OpenError::of_driver(error),
    }
}

/// Opens the image of a node, and says whether the node is written. Chains nest, and each level is on the
/// stack: what is not needed while the backing file is opened lies on the heap.
pub(crate) fn co_open(
    opening: &Opening<'_, '_>,
    options: &Qcow2Options,
) -> Result<(Arc<Image>, bool), OpenError> {
    let (parts, writes) = co_open_own(opening, options)?;
    let backing = co_backing(opening, options, &parts)?;
    let slot = opening.co_slot("backing", ChildRole::COW, backing.as_deref())?;
    finish(parts, slot).map(|image| (image, writes))
}

#[inline(never)]
fn finish(parts: Box<Parts>, backing: ChildSlot) -> Result<Arc<Image>, OpenError> {
    let image = Arc::new(Image::new(*parts, backing)?);
    let _ = image.me.set(Arc::downgrade(&image));
    image.cleaner.set_image(&image);
    Ok(image)
}

/// All but the backing file, and whether the node is written.
#[inline(never)]
fn co_open_own(
    opening: &Opening<'_, '_>,
    options: &Qcow2Options,
) -> Result<(Box<Parts>, bool), OpenError> {
    let co = opening.co();
    let file = opening.co_child("file", ChildRole::IMAGE, &options.file)?;
    let mut is_fixed = file.is_read_only();
    co_hold(opening, &file, is_fixed)?;
    let (mut header, mut cluster) = tables::co_header(co, &file).map_err(refused)?;
    let data_file = co_data_file(opening, options, &header, &file)?;
    if !is_fixed && data_file.as_ref().is_some_and(Child::is_read_only) {
        is_fixed = true;
        co_hold(opening, &file, is_fixed)?;
    }
    let writes = writes(opening.mode(), is_fixed);
    // An image that is another process's is neither mended nor written.
    let is_written = writes && opening.is_active();
    let purpose = if is_written { Purpose::Write } else { Purpose::Read };
    header.check(purpose).map_err(refused)?;
    check_support(&header, options)?;
    let encryption = encrypted::co_encryption(opening, options, &header, &file)?;
    if is_written {
        writable::co_prepare(co, &file, &mut header, &mut cluster).map_err(refused)?;
    }
    check_shown(options, writes)?;
    let geometry = header.geometry().map_err(refused)?;
    let read = Tables::co_read(co, &file, &header, options.snapshot.clone()).map_err(refused)?;
    let sizes = CacheSizes::new(options, geometry, read.shown.disk_bytes)?;
    let block = u64::from(file.limits().request_alignment);
    // One that is inactive may get others.
    let there = if opening.is_active() { table_bytes(&read.l1, geometry) } else { u64::MAX };
    let l2_bytes = (sizes.l2_bytes(writes, there), sizes.most_l2_bytes());
    let cache = SliceCache::new(l2_bytes, sizes.slice_bytes, block)?;
    let cleaner = Cleaner::new(opening.home(), options.clean_interval_s()?);
    let metadata = Arc::new(MetadataSet::new(geometry.cluster_bits()));
    let mut refcounts = None;
    if is_written {
        let sizes = (&metadata, sizes.refcount_bytes);
        refcounts = Some(read.co_refcounts(co, &file, &header, sizes).map_err(refused)?);
    }
    let Tables { snapshots, bitmaps, shown, l1, .. } = read;
    let bitmaps = co_bitmaps(opening, options, (&header, bitmaps), &file, writes);
    let bitmaps = bitmaps.map_err(refused)?;
    let parts = Box::new(Parts {
        header,
        cluster,
        l1,
        snapshots,
        bitmaps,
        shown,
        cache,
        cleaner,
        metadata,
        refcounts,
        refcount_bytes: sizes.refcount_bytes,
        options: LiveOptions::new(options),
        #[cfg(feature = "test-rules")]
        omitted: options.omitted,
        file,
        data_file,
        encryption,
        inflated_bytes: options.inflated_bytes(),
        events: opening.events(),
    });
    Ok((parts, writes))
}

/// Bytes of the tables that an L1 table leads to.
pub(crate) fn table_bytes(l1: &[u64], geometry: Geometry) -> u64 {
    let tables = l1.iter().filter(|entry| **entry != 0).count() as u64;
    tables.saturating_mul(geometry.cluster_bytes())
}

/// What a node that is written, or not, holds and shares on the file of its image, whether it has users or not:
/// it keeps tables in memory.
pub(crate) fn permissions(writes: bool) -> (Permissions, Permissions) {
    let changes = Permissions::WRITE | Permissions::RESIZE;
    let held = if writes { changes } else { Permissions::empty() };
    (Permissions::CONSISTENT_READ | held, Permissions::all() - changes)
}

/// Holds the file from before the first byte is read, so that the tables that are kept are those of the file. An
/// image that is another process's is read all the same, and then read anew.
fn co_hold(opening: &Opening<'_, '_>, file: &Child, is_fixed: bool) -> Result<(), OpenError> {
    if !opening.is_active() {
        return Ok(());
    }
    let (held, shared) = permissions(writes(opening.mode(), is_fixed));
    opening.co_hold(file, held, shared)
}

/// The bitmaps of a directory. They are the disk's, so a snapshot has none; and an image that is another
/// process's may get others.
#[inline(never)]
fn co_bitmaps(
    opening: &Opening<'_, '_>,
    options: &Qcow2Options,
    (header, directory): (&Header, Vec<Bitmap>),
    file: &Child,
    writes: bool,
) -> Result<StoredBitmaps, ImageError> {
    let set = Bitmaps::new();
    let is_wanted = (writes || !options.metadata_only) && options.snapshot.is_none();
    if is_wanted && opening.is_active() {
        let disk = (header.geometry()?, header.disk_bytes());
        bitmap::co_load(opening.co(), file, disk, &directory, &set)?;
    }
    let bitmaps = StoredBitmaps::new(set, directory);
    bitmaps.set_read_only(!writes);
    Ok(bitmaps)
}

/// Whether a node of these modes is written, whose files cannot be if they are `fixed`.
pub(crate) fn writes(mode: NodeMode, is_fixed: bool) -> bool {
    !(mode.read_only || mode.auto_read_only && is_fixed)
}

/// Checks that a snapshot is not to be written.
pub(crate) fn check_shown(options: &Qcow2Options, writes: bool) -> Result<(), OpenError> {
    match options.snapshot.is_some() && writes {
        true => Err(OpenError::option(
            "x-snapshot",
            "a snapshot is read-only: open it with read-only=on",
        )),
        false => Ok(()),
    }
}

/// Checks for what is not built yet, and for options that the image cannot have.
fn check_support(header: &Header, options: &Qcow2Options) -> Result<(), OpenError> {
    if !header.compression().map_err(refused)?.is_supported() {
        let why = FormatError::unsupported("this build has no zstd");
        return Err(refused(why));
    }
    for (option, is_on) in
        [("lazy-refcounts", options.lazy_refcounts), ("discard-no-unref", options.discard_no_unref)]
    {
        if header.version == 2 && is_on == Some(true) {
            return Err(OpenError::option(option, "it needs an image of version 3 (compat=1.1)"));
        }
    }
    Ok(())
}

fn co_data_file(
    opening: &Opening<'_, '_>,
    options: &Qcow2Options,
    header: &Header,
    file: &Child,
) -> Result<Option<Child>, OpenError> {
    if !header.incompatible.contains(Incompatible::DATA_FILE) {
        return match options.data_file {
            Some(_) => Err(OpenError::option("data-file", "the image has no external data file")),
            None => Ok(None),
        };
    }
    let node = match &options.data_file {
        Some(node) => node.clone(),
        None => named::co_data_file(opening, options, header, file)?,
    };
    opening.co_child("data-file", ChildRole::DATA, &node).map(Some)
}

/// The backing file that is to be opened.
#[inline(never)]
fn co_backing(
    opening: &Opening<'_, '_>,
    options: &Qcow2Options,
    parts: &Parts,
) -> Result<Option<Box<NodeRef>>, OpenError> {
    match &options.backing {
        Some(NodeRefOrNull(backing)) => Ok(backing.clone().map(Box::new)),
        None => named::co_backing(opening, options, &parts.header, &parts.file),
    }
}
