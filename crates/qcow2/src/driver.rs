//! [`Qcow2`]: the driver.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use coblk_aio::{Co, IoVector, IoVectorMut};
use coblk_block::{
    Bitmaps, BlockDriver, BlockLimits, Child, ChildRole, Driver, EdgeId, EdgeInfo, EventType,
    Extent, ImageFormat, OpenError, Opening, Permissions, ReadFlags, Reopen, Reopening, Truncate,
    WriteFlags, ZeroFlags,
};

use crate::event::ImageCorrupted;
use crate::image::Image;
use crate::layout::{Purpose, SECTOR_BYTES, SubclusterKind};
use crate::live::LiveOptions;
use crate::map::Look;
use crate::open;
use crate::options::{CacheSizes, Qcow2Options};
use crate::refcount::Refcounts;

/// A qcow2 image.
pub struct Qcow2 {
    pub(crate) image: Arc<Image>,
    /// Whether it is not written. Changes while the node is drained.
    is_read_only: AtomicBool,
    is_closed: AtomicBool,
}

impl Driver for Qcow2 {
    const NAMES: &'static [&'static str] = &["qcow2"];
    const EVENTS: &'static [EventType] = &[EventType::of::<ImageCorrupted>()];
    const CHANGEABLE: &'static [&'static str] = &[
        "pass-discard-request",
        "pass-discard-snapshot",
        "pass-discard-other",
        "discard-no-unref",
        "overlap-check",
        "cache-size",
        "l2-cache-size",
        "refcount-cache-size",
        "cache-clean-interval",
    ];
    type Options = Qcow2Options;

    fn co_open(opening: &Opening<'_, '_>, options: &Qcow2Options) -> Result<Qcow2, OpenError> {
        let (image, writes) = open::co_open(opening, options)?;
        let is_read_only = AtomicBool::new(!writes);
        Ok(Qcow2 { image, is_read_only, is_closed: AtomicBool::new(false) })
    }

    fn co_prepare_reopen<'a>(
        &'a self,
        reopening: &Reopening<'_, '_>,
        options: &Qcow2Options,
    ) -> Result<Box<dyn Reopen + 'a>, OpenError> {
        // What the image names is found when it is opened, and not by a reopen.
        let is_empty = self.image.backing.node().is_none();
        if is_empty && options.backing.is_none() && self.image.header().backing.is_some() {
            let why = "it is missing, and the image names a backing file: null leaves it out";
            return Err(OpenError::option("backing", why));
        }
        let children = ["file", "data-file"].into_iter().filter_map(|name| reopening.child(name));
        let is_fixed = children.into_iter().any(|child| child.is_read_only());
        let writes = open::writes(reopening.mode(), is_fixed);
        open::check_shown(options, writes)?;
        if options.snapshot != self.image.shown {
            return Err(OpenError::option("x-snapshot", "it cannot be changed"));
        }
        let sizes = CacheSizes::new(options, self.image.geometry, self.image.disk_bytes())?;
        let l1: Vec<u64> = (0..self.image.l1.entries()).map(|it| self.image.l1.get(it)).collect();
        let there = open::table_bytes(&l1, self.image.geometry);
        let mut swap = Swap {
            driver: self,
            options: LiveOptions::new(options),
            cache_sizes: (sizes.l2_bytes(writes, there), sizes.refcount_bytes),
            clean_interval_s: options.clean_interval_s()?,
            is_read_only: !writes,
            refcounts: None,
        };
        let co = reopening.co();
        if writes && !self.image.is_written() {
            let header = self.image.header();
            header.check(Purpose::Write).map_err(OpenError::of_driver)?;
            if open::needs_preparation(&header) {
                let why = "the image has flags that are cleared first: it has to be opened again";
                return Err(OpenError::option("read-only", why));
            }
            swap.refcounts = Some(self.image.co_load_refcounts(co).map_err(open::refused)?);
        } else if !writes {
            self.image.co_finish(co)?;
        }
        Ok(Box::new(swap))
    }
}

/// A node that is to have other options, or to be read-only, or not.
struct Swap<'a> {
    driver: &'a Qcow2,
    options: LiveOptions,
    /// Of L2 tables, and of refcounts, in bytes.
    cache_sizes: (u64, u64),
    clean_interval_s: u64,
    is_read_only: bool,
    refcounts: Option<Refcounts>,
}

impl Reopen for Swap<'_> {
    fn swap(&mut self) {
        let image = &self.driver.image;
        image.options.swap(&self.options);
        self.clean_interval_s = image.cleaner.swap_interval(self.clean_interval_s);
        let was_read_only = self.driver.is_read_only.swap(self.is_read_only, Ordering::Relaxed);
        if was_read_only != self.is_read_only {
            let mut state = image.lock();
            std::mem::swap(&mut state.refcounts, &mut self.refcounts);
            // Slices of an image that is written are checked when they are loaded.
            image.cache.clear(&state.owed);
            drop(state);
            image.bitmaps.set_read_only(self.is_read_only);
        }
        self.is_read_only = was_read_only;
        self.cache_sizes = image.swap_cache_sizes(self.cache_sizes);
    }
}

impl BlockDriver for Qcow2 {
    fn format_name(&self) -> &'static str {
        "qcow2"
    }

    fn length(&self) -> u64 {
        self.image.disk_bytes()
    }

    fn is_read_only(&self) -> bool {
        self.is_read_only.load(Ordering::Relaxed)
    }

    fn limits(&self) -> BlockLimits {
        let geometry = self.image.geometry;
        let is_encrypted = self.image.encryption.is_some();
        BlockLimits {
            request_alignment: if is_encrypted { SECTOR_BYTES as u32 } else { 1 },
            // Both are at most 2 MiB.
            pwrite_zeroes_alignment: geometry.subcluster_bytes() as u32,
            pdiscard_alignment: geometry.cluster_bytes() as u32,
            write_flags: WriteFlags::COMPRESSED,
            ..BlockLimits::default()
        }
    }

    fn children(&self) -> Vec<EdgeId> {
        let Image { file, data_file, backing, .. } = &*self.image;
        let data_file = data_file.as_ref().map(Child::id);
        [Some(file.id()), data_file, Some(backing.id())].into_iter().flatten().collect()
    }

    fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        _: ReadFlags,
    ) -> io::Result<()> {
        self.image.check_alive()?;
        self.image.co_read(co, offset, target)
    }

    fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        self.image.co_begin_change(co)?;
        if flags.contains(WriteFlags::COMPRESSED) {
            return self.image.co_write_compressed(co, offset, source);
        }
        self.image.co_write(co, offset, source)
    }

    fn co_pwrite_zeroes(
        &self,
        co: &Co<'_>,
        offset: u64,
        bytes: u64,
        flags: ZeroFlags,
    ) -> io::Result<()> {
        self.image.co_begin_change(co)?;
        self.image.co_pwrite_zeroes(co, offset..offset + bytes, flags)
    }

    fn co_pdiscard(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        self.image.co_begin_change(co)?;
        self.image.co_pdiscard(co, offset..offset + bytes)
    }

    fn co_truncate(&self, co: &Co<'_>, length: u64, how: Truncate) -> io::Result<()> {
        self.image.co_begin_change(co)?;
        self.image.co_truncate(co, length, how)
    }

    /// The commit syncs as its order asks for.
    fn co_write_back(&self, co: &Co<'_>) -> io::Result<()> {
        match self.is_read_only() {
            true => Ok(()),
            false => self.image.check_alive().and_then(|()| self.image.co_commit(co)),
        }
    }

    /// Children to which nothing was written since their last sync do nothing. What is free by now is punched
    /// behind it: no flush has to wait for that to be durable.
    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        if self.is_read_only() {
            return Ok(());
        }
        self.image.check_alive()?;
        self.image.co_flush_files(co)?;
        self.image.co_pass_grace(co);
        Ok(())
    }

    fn co_close(&self, co: &Co<'_>) -> io::Result<()> {
        self.image.survey.co_end(co);
        if !self.is_read_only() {
            self.image.co_finish(co).inspect_err(|_| self.image.survey.resume())?;
        }
        self.image.cleaner.end();
        self.is_closed.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn co_inactivate(&self, co: &Co<'_>) -> io::Result<()> {
        if !self.is_read_only() {
            self.image.co_finish(co)?;
            self.image.co_flush_files(co)?;
        }
        self.image.bitmaps.forget();
        self.image.cleaner.rest();
        Ok(())
    }

    fn drained_begin(&self) {
        self.image.survey.hold(true);
    }

    fn drained_end(&self) {
        self.image.whole_turn.goes_on();
        self.image.survey.hold(false);
    }

    fn needs_close(&self) -> bool {
        let has_changes = || !self.image.lock().is_clean() || self.image.bitmaps.needs_store();
        !self.is_read_only() && has_changes()
    }

    fn bitmaps(&self) -> Option<Arc<Bitmaps>> {
        Some(Arc::clone(&self.image.bitmaps.set))
    }

    /// The image is this node's to change, whether the node has users or not.
    fn child_permissions(
        &self,
        edge: &EdgeInfo,
        held: Permissions,
        shared: Permissions,
    ) -> (Permissions, Permissions) {
        let is_open = !self.is_closed.load(Ordering::Relaxed);
        let writes = is_open && !self.is_read_only();
        if is_open && edge.role() == ChildRole::IMAGE && held.is_empty() {
            let (held, own) = open::permissions(writes);
            return (held, shared & own);
        }
        edge.role().default_permissions((held, shared), writes)
    }

    fn co_block_status(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<Extent> {
        self.image.check_alive()?;
        let run = self.image.co_find(co, offset..offset + bytes, Look::Read)?;
        let (_, name) = self.image.data();
        let extent = match run.kind {
            SubclusterKind::Unallocated | SubclusterKind::UnallocatedStored => {
                Extent::unallocated(run.bytes)
            }
            SubclusterKind::Zero | SubclusterKind::ZeroStored => Extent::hole(run.bytes),
            SubclusterKind::Data => Extent::data(run.bytes),
            SubclusterKind::Compressed => Extent { compressed: true, ..Extent::data(run.bytes) },
        };
        // A reader of the file would have what is encrypted.
        let has_place = run.kind.is_stored() && self.image.encryption.is_none();
        // The entry of zeroes in the first cluster of a data file does not say whether they have a place.
        let first = self.image.geometry.cluster_bytes();
        if run.kind == SubclusterKind::ZeroStored && run.host < first {
            return Ok(Extent::hole(run.bytes.min(first - run.host)));
        }
        if !has_place {
            return Ok(extent);
        }
        let extent = extent.stored_at(Some(name), run.host);
        match run.kind {
            SubclusterKind::Data => self.image.co_status_of_data(co, extent, run.host),
            _ => Ok(extent),
        }
    }

    fn co_allocated_bytes(&self, co: &Co<'_>) -> io::Result<Option<u64>> {
        let mut all = self.image.file.node().co_allocated_bytes(co)?;
        if let Some(data_file) = &self.image.data_file {
            let more = data_file.node().co_allocated_bytes(co)?;
            all = all.zip(more).map(|(bytes, more)| bytes.saturating_add(more));
        }
        Ok(all)
    }

    fn co_activate(&self, co: &Co<'_>) -> io::Result<()> {
        let writes = !self.is_read_only();
        self.image.co_read_anew(co, writes)?;
        Ok(self.image.co_load_bitmaps(co, writes)?)
    }

    fn filename(&self) -> Option<String> {
        self.image.file.node().driver().filename()
    }

    fn image(&self) -> Option<&dyn ImageFormat> {
        Some(&*self.image)
    }
}
