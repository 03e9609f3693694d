//! Dirty bitmaps of nodes: add, remove.

use std::io;
use std::sync::Arc;

use coblk_aio::{Co, PoolShare};

use crate::bitmap::{AcquiredBitmap, BitmapError, BitmapUse, Bitmaps, DirtyBitmap, NewBitmap};
use crate::graph::node::BlockNode;

/// Granularities that follow from the size of clusters, in bytes: at least and at most.
const DEFAULT_GRANULARITIES: (u64, u64) = (4096, 65536);
/// Disks with more granules get the memory for their bits from a worker.
const MANY_GRANULES: u64 = 1 << 20;

impl BlockNode {
    /// Its dirty bitmaps. Any thread.
    pub fn bitmaps(&self) -> &Arc<Bitmaps> {
        &self.path.state.bitmaps
    }

    /// The bitmap of a name, and its node: this one, or one below that it filters, or that is its backing file.
    pub fn find_bitmap_below(
        self: &Arc<Self>,
        name: &str,
    ) -> Option<(Arc<BlockNode>, Arc<DirtyBitmap>)> {
        let mut node = Arc::clone(self);
        loop {
            if let Ok(bitmap) = node.bitmaps().find(name) {
                return Some((node, bitmap));
            }
            // To QEMU raw is a format, not a filter: the bitmaps of its file are not its own.
            let filtered = node.filtered().filter(|_| node.driver().format_name() != "raw");
            node = filtered.or_else(|| node.backing())?;
        }
    }

    /// The granularity that a bitmap has if it is not told one, in bytes: the size of clusters from 4 to 64 KiB,
    /// and 64 KiB without clusters.
    pub fn default_granularity(&self) -> u64 {
        let (least, most) = DEFAULT_GRANULARITIES;
        let own = self.driver().image().and_then(|image| image.info().ok()?.cluster_size);
        match (own, self.filtered()) {
            (Some(cluster), _) => cluster.clamp(least, most),
            (None, Some(below)) => below.default_granularity(),
            (None, None) => most,
        }
    }

    /// Adds a bitmap, while requests run: a write that begins after this has returned is recorded, one that was
    /// complete before is not. Must not be called in a drained section of another node that this one leads to.
    ///
    /// [Passes the contexts](Self::co_pass_contexts).
    ///
    /// # Errors
    /// If the bitmap cannot have its name or granularity, or cannot be stored; without memory; ETIMEDOUT if
    /// a context does not poll. There is no such bitmap then, nor if the coroutine is unwound.
    pub fn co_add_bitmap(
        self: &Arc<Self>,
        co: &Co<'_>,
        new: NewBitmap,
    ) -> Result<Arc<DirtyBitmap>, BitmapError> {
        if let Some(name) = new.name.as_ref().filter(|_| new.is_persistent) {
            self.bitmaps().check_new(&new)?;
            self.check_stores(name, new.granularity)?;
        }
        let length = self.length();
        let name = new.name.clone().unwrap_or_default();
        let granularity = new.granularity.max(1);
        let bitmap = match length.div_ceil(granularity) > MANY_GRANULES {
            true => PoolShare::once(co, || self.bitmaps().add(new, length)),
            false => self.bitmaps().add(new, length),
        }?;
        self.look_at_bitmaps();
        // It may have changed meanwhile.
        self.bitmaps().follow(|| self.length());
        let added = TakenBack::unless_kept(|| self.forget_bitmap(&bitmap));
        self.co_pass_contexts(co).map_err(|source| BitmapError::Make { name, source })?;
        self.co_note_bitmap(co, &bitmap)?;
        added.keep();
        Ok(bitmap)
    }

    /// After a bitmap was added, enabled or disabled, or has got other bits by something else than writes: has it
    /// stored where bitmaps are known at all times, and not from the close of the node on. A bitmap that is not
    /// persistent is none of that.
    ///
    /// # Errors
    /// If it cannot be stored. What is stored is as before then.
    pub fn co_note_bitmap(
        &self,
        co: &Co<'_>,
        bitmap: &Arc<DirtyBitmap>,
    ) -> Result<(), BitmapError> {
        let is_stored = bitmap.is_persistent() && !self.is_read_only();
        let Some(name) = bitmap.name().filter(|_| is_stored) else { return Ok(()) };
        let noted = self.co_image(co).and_then(|image| image.co_note_bitmaps(co));
        let node = self.name().to_owned();
        noted.map_err(|source| BitmapError::Store { name, node, source })
    }

    /// Has writes that begin from now on recorded in a bitmap of this node, or not.
    ///
    /// # Errors
    /// If it is busy or inconsistent; if that cannot be [stored](Self::co_note_bitmap). It is as before then.
    pub fn co_record_bitmap(
        &self,
        co: &Co<'_>,
        bitmap: &Arc<DirtyBitmap>,
        on: bool,
    ) -> Result<(), BitmapError> {
        let was_on = bitmap.is_recording();
        bitmap.set_recording(on)?;
        if was_on == on {
            return Ok(());
        }
        // It is as it was when that was allowed.
        let changed = TakenBack::unless_kept(|| drop(bitmap.set_recording(was_on)));
        self.co_note_bitmap(co, bitmap)?;
        changed.keep();
        Ok(())
    }

    /// Marks in a bitmap of this node what is dirty in others. A worker does it.
    ///
    /// # Errors
    /// As of [`DirtyBitmap::merge`], and nothing has changed then; if that cannot be
    /// [stored](Self::co_note_bitmap), and the bits are marked all the same.
    pub fn co_merge_bitmaps(
        &self,
        co: &Co<'_>,
        target: &Arc<DirtyBitmap>,
        sources: &[Arc<DirtyBitmap>],
    ) -> Result<(), BitmapError> {
        PoolShare::once(co, || target.merge(sources))?;
        self.co_note_bitmap(co, target)
    }

    /// Checks that a bitmap can be stored with the node.
    fn check_stores(&self, name: &str, granularity: u64) -> Result<(), BitmapError> {
        let checked = match self.driver().image() {
            Some(image) => image.check_new_bitmap(name, granularity),
            None => Err(io::Error::from_raw_os_error(libc::ENOTSUP)),
        };
        let (name, node) = (name.to_owned(), self.name().to_owned());
        match checked {
            Err(source) if source.raw_os_error() == Some(libc::ENOTSUP) => {
                Err(BitmapError::NoStore(node))
            }
            Err(source) => Err(BitmapError::Store { name, node, source }),
            Ok(()) if self.is_read_only() => {
                let source = io::Error::other("the node is read-only");
                Err(BitmapError::Store { name, node, source })
            }
            Ok(()) => Ok(()),
        }
    }

    /// Removes a bitmap, from the image too if it is stored there. Writes in flight may still be recorded.
    ///
    /// # Errors
    /// If it is busy or read-only; if the image cannot be changed. The bitmap stays then.
    pub fn co_remove_bitmap(
        self: &Arc<Self>,
        co: &Co<'_>,
        bitmap: &Arc<DirtyBitmap>,
    ) -> Result<(), BitmapError> {
        self.co_begin_removal(co, bitmap).map(BitmapRemoval::finish)
    }

    /// Begins to remove a bitmap: it is busy, its name stays taken, and it is in no image any more. A drop of the
    /// result leaves it in the list, and it is stored with the others when the node is closed.
    ///
    /// # Errors
    /// As of [`co_remove_bitmap`](Self::co_remove_bitmap).
    pub fn co_begin_removal(
        self: &Arc<Self>,
        co: &Co<'_>,
        bitmap: &Arc<DirtyBitmap>,
    ) -> Result<BitmapRemoval, BitmapError> {
        let acquired = bitmap.acquire(BitmapUse::Remove)?;
        if let Some(name) = bitmap.name().filter(|_| bitmap.is_persistent()) {
            let removed = self.co_image(co).and_then(|image| image.co_remove_bitmap(co, &name));
            removed.map_err(|source| BitmapError::Remove {
                name,
                node: self.name().to_owned(),
                source,
            })?;
        }
        Ok(BitmapRemoval { node: Arc::clone(self), acquired })
    }

    /// Removes a bitmap that is not stored, such as a job's own. Any thread; writes in flight may still be
    /// recorded.
    pub fn forget_bitmap(&self, bitmap: &Arc<DirtyBitmap>) {
        self.bitmaps().remove(bitmap);
        self.look_at_bitmaps();
    }

    /// There may be bitmaps now, or none any more.
    pub(crate) fn look_at_bitmaps(&self) {
        self.path.state.look_at_bitmaps();
    }
}

/// What was done, and is taken back when this is dropped, as by an error or by a coroutine that is unwound.
struct TakenBack<F: FnMut()>(Option<F>);

impl<F: FnMut()> TakenBack<F> {
    fn unless_kept(take_back: F) -> TakenBack<F> {
        TakenBack(Some(take_back))
    }

    fn keep(mut self) {
        self.0 = None;
    }
}

impl<F: FnMut()> Drop for TakenBack<F> {
    fn drop(&mut self) {
        if let Some(take_back) = &mut self.0 {
            take_back();
        }
    }
}

/// A bitmap that is being removed.
#[must_use = "the bitmap stays if this is dropped"]
pub struct BitmapRemoval {
    node: Arc<BlockNode>,
    acquired: AcquiredBitmap,
}

impl BitmapRemoval {
    /// Takes the bitmap off the list of its node.
    pub fn finish(self) {
        self.node.forget_bitmap(self.acquired.bitmap());
    }
}
