//! Opens an image: header, tables, and the files that options or the image name.

mod encrypted;
mod named;
mod writable;

pub use named::probe_format;

use std::sync::Arc;

use coblk_block::options::{NodeRef, NodeRefOrNull};
use coblk_block::{Child, ChildRole, ChildSlot, NodeMode, OpenError, Opening};

use crate::cache::SliceCache;
use crate::image::{Image, Parts, Shown};
use crate::layout::{FormatError, Header, Incompatible, Purpose};
use crate::live::LiveOptions;
use crate::metadata::MetadataSet;
use crate::options::{CacheSizes, Qcow2Options};
use crate::source::ImageError;
use crate::tables;
pub(crate) use writable::needs_preparation;

/// The error of a refused image, as that of an opening.
fn refused(error: impl Into<ImageError>) -> OpenError {
    match error.into() {
        ImageError::Io(error) => OpenError::Io(error),
        ImageError::Format(error) => OpenError::of_driver(error),
    }
}

/// Opens the image of a node. Chains nest, and each level is on the stack: what is not needed while the
/// backing file is opened lies on the heap.
pub(crate) fn co_open(
    opening: &Opening<'_, '_>,
    options: &Qcow2Options,
) -> Result<Arc<Image>, OpenError> {
    let parts = co_open_own(opening, options)?;
    let backing = co_backing(opening, options, &parts)?;
    let slot = opening.co_slot("backing", ChildRole::COW, backing.as_deref())?;
    finish(parts, slot)
}

#[inline(never)]
fn finish(parts: Box<Parts>, backing: ChildSlot) -> Result<Arc<Image>, OpenError> {
    let image = Arc::new(Image::new(*parts, backing)?);
    let _ = image.me.set(Arc::downgrade(&image));
    Ok(image)
}

/// All but the backing file.
#[inline(never)]
fn co_open_own(opening: &Opening<'_, '_>, options: &Qcow2Options) -> Result<Box<Parts>, OpenError> {
    if !opening.is_active() {
        let why = "qcow2 images cannot be opened inactive yet";
        return Err(OpenError::option("active", why));
    }
    let co = opening.co();
    let file = opening.co_child("file", ChildRole::IMAGE, &options.file)?;
    let (mut header, mut cluster) = tables::co_header(co, &file).map_err(refused)?;
    let data_file = co_data_file(opening, options, &header, &file)?;
    let is_fixed = file.is_read_only() || data_file.as_ref().is_some_and(Child::is_read_only);
    let writes = writes(opening.mode(), is_fixed);
    let purpose = if writes { Purpose::Write } else { Purpose::Read };
    header.check(purpose).map_err(refused)?;
    check_support(&header, options)?;
    let encryption = encrypted::co_encryption(opening, options, &header, &file)?;
    if writes {
        writable::co_prepare(co, &file, &mut header, &mut cluster).map_err(refused)?;
    }
    let geometry = header.geometry().map_err(refused)?;
    let (snapshots, snapshot_bytes) =
        tables::co_snapshots(co, &file, &header, false).map_err(refused)?;
    let bitmaps = tables::co_bitmaps(co, &file, &header).map_err(refused)?;
    if writes {
        writable::check_bitmaps(&bitmaps).map_err(refused)?;
    }
    check_shown(options, writes)?;
    let shown = Shown::new(&header, &snapshots, options.snapshot.clone()).map_err(refused)?;
    let l1 = tables::co_words(co, &file, shown.l1_offset, shown.l1_entries.into())?;
    let sizes = CacheSizes::new(options, geometry, shown.disk_bytes)?;
    // An image may claim any length; its L1 table says how many tables there are at most.
    let tables = l1.iter().filter(|entry| **entry != 0).count() as u64;
    let all_bytes = tables.saturating_mul(geometry.cluster_bytes());
    let block = u64::from(file.limits().request_alignment);
    let l2_bytes = if writes { sizes.writable_l2_bytes() } else { sizes.l2_bytes.min(all_bytes) };
    let cache = SliceCache::new(l2_bytes, sizes.slice_bytes, block)?;
    let metadata = Arc::new(MetadataSet::new(geometry.cluster_bits()));
    let mut refcounts = None;
    if writes {
        let known = writable::Known { header: &header, l1: &l1, snapshots: &snapshots };
        writable::note_metadata(&metadata, known, snapshot_bytes).map_err(refused)?;
        let sizes = (block, sizes.refcount_bytes);
        let read = tables::co_refcounts(co, &file, &header, &metadata, sizes);
        refcounts = Some(read.map_err(refused)?);
    }
    Ok(Box::new(Parts {
        header,
        cluster,
        l1,
        snapshots,
        bitmaps,
        shown,
        cache,
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
    }))
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
