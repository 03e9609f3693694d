//! [`WithSidecar`]: a driver whose bitmaps are kept in a file beside its storage.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coblk_aio::{AioHandle, Co, IoVector, IoVectorMut};

use super::sidecar::{Sidecar, Writing};
use super::store::{FileStore, Store};
use crate::bitmap::Bitmaps;
use crate::driver::background::Background;
use crate::driver::debug_event::DebugEvent;
use crate::driver::edge::{EdgeId, EdgeInfo, ListId, NewChild};
use crate::driver::extent::Extent;
use crate::driver::flags::{ReadFlags, Truncate, WriteFlags, ZeroFlags};
use crate::driver::image::{
    Amend, BackingName, CheckReport, ImageFormat, ImageInfo, ImageSnapshot, Repair,
};
use crate::driver::map::ReadMap;
use crate::driver::mode::{CacheMode, Engine};
use crate::driver::permissions::{PermissionError, Permissions};
use crate::driver::snapshot::SnapshotReads;
use crate::driver::stamp::StorageStamp;
use crate::driver::{BlockDriver, BlockLimits};

/// A driver whose bitmaps are kept in a file beside its storage. Everything else is the driver's.
pub(crate) struct WithSidecar {
    inner: Box<dyn BlockDriver>,
    sidecar: Arc<Sidecar>,
    path: PathBuf,
    read_only: bool,
}

impl WithSidecar {
    /// A driver whose bitmaps are in the file `path`, which need not be there. It is read now if the storage
    /// is this process's.
    ///
    /// # Errors
    /// If the driver keeps bitmaps itself; if the file cannot be read, or is corrupt, or in use.
    pub(crate) fn co_new(
        co: &Co<'_>,
        inner: Box<dyn BlockDriver>,
        path: &Path,
        (read_only, is_active): (bool, bool),
    ) -> Result<WithSidecar, (Box<dyn BlockDriver>, io::Error)> {
        if inner.bitmaps().is_some() {
            let name = inner.format_name();
            let error = io::Error::other(format!("driver '{name}' keeps bitmaps in the image"));
            return Err((inner, error));
        }
        let store = FileStore::new(path.to_owned(), read_only);
        WithSidecar::co_with(co, inner, Box::new(store), path, (read_only, is_active))
    }

    pub(super) fn co_with(
        co: &Co<'_>,
        inner: Box<dyn BlockDriver>,
        store: Box<dyn Store>,
        path: &Path,
        (read_only, is_active): (bool, bool),
    ) -> Result<WithSidecar, (Box<dyn BlockDriver>, io::Error)> {
        let sidecar = match Sidecar::new(store) {
            Ok(sidecar) => Arc::new(sidecar),
            Err(error) => return Err((inner, error)),
        };
        let with = WithSidecar { inner, sidecar, path: path.to_owned(), read_only };
        match if is_active { with.co_load(co) } else { Ok(()) } {
            Ok(()) => Ok(with),
            Err(error) => Err((with.inner, error)),
        }
    }

    /// The driver itself.
    pub(crate) fn inner(&self) -> &dyn BlockDriver {
        &*self.inner
    }

    fn co_load(&self, co: &Co<'_>) -> io::Result<()> {
        let stamp = self.inner.co_stamp(co)?;
        self.sidecar.co_load(co, self.inner.length(), stamp, self.read_only)
    }

    /// Stores the bitmaps, if there is anything to be stored.
    fn co_store(&self, co: &Co<'_>) -> io::Result<()> {
        if self.read_only && !self.sidecar.co_is_stale(co) {
            return Ok(());
        }
        let stamp = self.inner.co_stamp(co)?;
        let stored = self.sidecar.co_store(co, stamp);
        stored.map_err(|error| {
            let text = format!("bitmaps cannot be stored in '{}': {error}", self.path.display());
            io::Error::new(error.kind(), text)
        })
    }

    /// Before a change of all bytes.
    fn co_begin_all(&self, co: &Co<'_>) -> io::Result<Writing<'_>> {
        self.sidecar.co_begin(co, 0..self.inner.length())
    }

    #[cfg(all(test, not(loom)))]
    pub(super) fn co_let_regions_go(&self, co: &Co<'_>) -> io::Result<()> {
        self.sidecar.co_checkpoint(co)
    }

    fn format(&self) -> io::Result<&dyn ImageFormat> {
        self.inner.image().ok_or_else(|| io::Error::from_raw_os_error(libc::ENOTSUP))
    }
}

/// Requests. Those that change something are entered before, and marked before they are counted out.
impl BlockDriver for WithSidecar {
    fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        self.inner.co_preadv(co, offset, target, flags)
    }

    fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        let _writing = self.sidecar.co_begin(co, offset..offset + source.len() as u64)?;
        self.inner.co_pwritev(co, offset, source, flags)
    }

    fn co_pwrite_zeroes(
        &self,
        co: &Co<'_>,
        offset: u64,
        bytes: u64,
        flags: ZeroFlags,
    ) -> io::Result<()> {
        let mut writing = self.sidecar.co_begin(co, offset..offset + bytes)?;
        let zeroed = self.inner.co_pwrite_zeroes(co, offset, bytes, flags);
        unless_supported(&zeroed, &mut writing);
        zeroed
    }

    fn co_pdiscard(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<()> {
        let mut writing = self.sidecar.co_begin(co, offset..offset + bytes)?;
        let discarded = self.inner.co_pdiscard(co, offset, bytes);
        unless_supported(&discarded, &mut writing);
        discarded
    }

    fn co_truncate(&self, co: &Co<'_>, length: u64, how: Truncate) -> io::Result<()> {
        let old = self.inner.length();
        let _resize = self.sidecar.co_begin_resize(co, old.min(length)..old.max(length))?;
        self.inner.co_truncate(co, length, how)
    }

    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        self.inner.co_flush(co)
    }

    fn co_write_back(&self, co: &Co<'_>) -> io::Result<()> {
        self.inner.co_write_back(co)
    }

    fn co_block_status(&self, co: &Co<'_>, offset: u64, bytes: u64) -> io::Result<Extent> {
        self.inner.co_block_status(co, offset, bytes)
    }

    fn co_close(&self, co: &Co<'_>) -> io::Result<()> {
        self.co_store(co)?;
        self.inner.co_close(co)
    }

    fn co_inactivate(&self, co: &Co<'_>) -> io::Result<()> {
        self.co_store(co)?;
        self.inner.co_inactivate(co)?;
        self.sidecar.co_forget(co);
        Ok(())
    }

    fn co_activate(&self, co: &Co<'_>) -> io::Result<()> {
        self.inner.co_activate(co)?;
        self.sidecar.co_forget(co);
        self.co_load(co)
    }

    fn co_drop_cache(&self, co: &Co<'_>) -> io::Result<()> {
        self.inner.co_drop_cache(co)
    }

    fn needs_close(&self) -> bool {
        self.inner.needs_close() || self.sidecar.set.list().iter().any(|it| it.is_persistent())
    }

    fn bitmaps(&self) -> Option<Arc<Bitmaps>> {
        Some(Arc::clone(&self.sidecar.set))
    }

    fn image(&self) -> Option<&dyn ImageFormat> {
        Some(self)
    }

    fn wrapped(&self) -> Option<&dyn BlockDriver> {
        Some(self.inner())
    }

    fn co_stamp(&self, co: &Co<'_>) -> io::Result<Option<StorageStamp>> {
        self.inner.co_stamp(co)
    }

    // Questions, and what a driver is told.

    fn format_name(&self) -> &'static str {
        self.inner.format_name()
    }

    fn length(&self) -> u64 {
        self.inner.length()
    }

    fn filtered(&self) -> Option<EdgeId> {
        self.inner.filtered()
    }

    fn is_filter(&self) -> bool {
        self.inner.is_filter()
    }

    fn at_filtered(&self, offset: u64) -> u64 {
        self.inner.at_filtered(offset)
    }

    fn is_read_only(&self) -> bool {
        self.inner.is_read_only()
    }

    fn limits(&self) -> BlockLimits {
        self.inner.limits()
    }

    fn leaves_reads_unwritten(&self) -> bool {
        self.inner.leaves_reads_unwritten()
    }

    fn read_map(&self) -> Option<&dyn ReadMap> {
        self.inner.read_map()
    }

    fn snapshot(&self) -> Option<&dyn SnapshotReads> {
        self.inner.snapshot()
    }

    fn background(&self) -> Option<&Background> {
        self.inner.background()
    }

    fn co_set_home(&self, co: &Co<'_>, home: AioHandle) {
        self.inner.co_set_home(co, home);
    }

    fn co_refresh_length(&self, co: &Co<'_>) -> io::Result<u64> {
        self.inner.co_refresh_length(co)
    }

    fn co_allocated_bytes(&self, co: &Co<'_>) -> io::Result<Option<u64>> {
        self.inner.co_allocated_bytes(co)
    }

    fn children(&self) -> Vec<EdgeId> {
        self.inner.children()
    }

    fn child_list(&self) -> Option<ListId> {
        self.inner.child_list()
    }

    fn check_child(&self, edge: &EdgeInfo, new: Option<NewChild<'_>>) -> Result<(), String> {
        self.inner.check_child(edge, new)
    }

    fn filename(&self) -> Option<String> {
        self.inner.filename()
    }

    fn cache_mode(&self) -> CacheMode {
        self.inner.cache_mode()
    }

    fn engine(&self) -> Option<Engine> {
        self.inner.engine()
    }

    fn child_permissions(
        &self,
        edge: &EdgeInfo,
        held: Permissions,
        shared: Permissions,
    ) -> (Permissions, Permissions) {
        self.inner.child_permissions(edge, held, shared)
    }

    fn reserve_permissions(&self, held: Permissions, shared: Permissions) {
        self.inner.reserve_permissions(held, shared);
    }

    fn set_permissions(
        &self,
        held: Permissions,
        shared: Permissions,
    ) -> Result<(), PermissionError> {
        self.inner.set_permissions(held, shared)
    }

    fn debug_event(&self, event: DebugEvent) {
        self.inner.debug_event(event);
    }

    fn debug_event_below(&self, event: DebugEvent) {
        self.inner.debug_event_below(event);
    }

    fn wants_debug_events(&self) -> bool {
        self.inner.wants_debug_events()
    }

    fn cancel_in_flight(&self) {
        self.inner.cancel_in_flight();
    }

    fn drained_begin(&self) {
        self.inner.drained_begin();
    }

    fn drained_end(&self) {
        self.inner.drained_end();
    }
}

/// What a driver does not support has changed nothing.
fn unless_supported(result: &io::Result<()>, writing: &mut Writing<'_>) {
    if result.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::ENOTSUP)) {
        writing.mark_nothing();
    }
}

/// Bitmaps are in the file, and the rest is the driver's format, if it is one.
impl ImageFormat for WithSidecar {
    fn check_new_bitmap(&self, name: &str, granularity: u64) -> io::Result<()> {
        self.sidecar.check_new(name, granularity, self.inner.length())
    }

    fn co_remove_bitmap(&self, co: &Co<'_>, name: &str) -> io::Result<()> {
        self.sidecar.co_note(co, Some(name))
    }

    fn co_note_bitmaps(&self, co: &Co<'_>) -> io::Result<()> {
        self.sidecar.co_note(co, None)
    }

    fn info(&self) -> io::Result<ImageInfo> {
        self.format()?.info()
    }

    fn co_check(&self, co: &Co<'_>, repair: Repair) -> io::Result<CheckReport> {
        self.format()?.co_check(co, repair)
    }

    fn co_change_backing(&self, co: &Co<'_>, backing: Option<&BackingName>) -> io::Result<()> {
        self.format()?.co_change_backing(co, backing)
    }

    fn co_amend(&self, co: &Co<'_>, amend: Amend<'_>) -> io::Result<()> {
        self.format()?.co_amend(co, amend)
    }

    fn co_make_empty(&self, co: &Co<'_>) -> io::Result<()> {
        let _writing = self.co_begin_all(co)?;
        self.format()?.co_make_empty(co)
    }

    fn co_snapshots(&self, co: &Co<'_>) -> io::Result<Vec<ImageSnapshot>> {
        self.format()?.co_snapshots(co)
    }

    fn co_create_snapshot(&self, co: &Co<'_>, name: &str) -> io::Result<String> {
        self.format()?.co_create_snapshot(co, name)
    }

    fn co_delete_snapshot(&self, co: &Co<'_>, id: &str) -> io::Result<()> {
        self.format()?.co_delete_snapshot(co, id)
    }

    fn co_apply_snapshot(&self, co: &Co<'_>, id: &str) -> io::Result<()> {
        let _writing = self.co_begin_all(co)?;
        self.format()?.co_apply_snapshot(co, id)
    }
}
