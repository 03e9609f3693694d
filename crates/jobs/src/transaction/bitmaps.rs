//! Actions on dirty bitmaps.

use std::sync::Arc;

use coblk_aio::{Co, PoolShare};
use coblk_block::{BitmapRemoval, BlockNode, DirtyBitmap, DirtyBits, NewBitmap};

use super::action::{Action, ActionError, FindNode, Preparing};

/// A bitmap by its node and its name.
pub struct BitmapAt {
    node: Box<dyn FindNode>,
    name: String,
}

impl BitmapAt {
    /// The one of this name at a node.
    pub fn new(node: impl FindNode + 'static, name: impl Into<String>) -> BitmapAt {
        BitmapAt { node: Box::new(node), name: name.into() }
    }

    fn find(&self) -> Result<(Arc<BlockNode>, Arc<DirtyBitmap>), ActionError> {
        let node = self.node.find()?;
        let bitmap = node.bitmaps().find(&self.name)?;
        Ok((node, bitmap))
    }

    fn nodes(&self) -> Vec<Arc<BlockNode>> {
        self.node.find().into_iter().collect()
    }
}

/// Adds a bitmap.
pub struct AddBitmap {
    node: Box<dyn FindNode>,
    new: NewBitmap,
    has_default_granularity: bool,
    added: Option<(Arc<BlockNode>, Arc<DirtyBitmap>)>,
}

impl AddBitmap {
    /// Adds this one to a node.
    pub fn new(node: impl FindNode + 'static, new: NewBitmap) -> AddBitmap {
        AddBitmap { node: Box::new(node), new, has_default_granularity: false, added: None }
    }

    /// With the [granularity](BlockNode::default_granularity) that follows from the node.
    #[must_use]
    pub fn default_granularity(self) -> AddBitmap {
        AddBitmap { has_default_granularity: true, ..self }
    }
}

impl Action for AddBitmap {
    fn name(&self) -> &'static str {
        "block-dirty-bitmap-add"
    }

    fn nodes(&self) -> Vec<Arc<BlockNode>> {
        self.node.find().into_iter().collect()
    }

    fn co_prepare(&mut self, co: &Co<'_>, _: &Preparing) -> Result<(), ActionError> {
        let node = self.node.find()?;
        let mut new = self.new.clone();
        if self.has_default_granularity {
            new.granularity = node.default_granularity();
        }
        let bitmap = node.co_add_bitmap(co, new)?;
        self.added = Some((node, bitmap));
        Ok(())
    }

    fn co_abort(&mut self, co: &Co<'_>) {
        if let Some((node, bitmap)) = self.added.take() {
            node.forget_bitmap(&bitmap);
            co_note(co, &node, &bitmap);
        }
    }

    fn unwind(&mut self) {
        if let Some((node, bitmap)) = self.added.take() {
            node.forget_bitmap(&bitmap);
        }
    }
}

/// A bitmap whose bits were changed, and what they were. Dropped before it is [kept](Self::keep), it is as it was.
struct Changed {
    node: Arc<BlockNode>,
    bitmap: Arc<DirtyBitmap>,
    saved: DirtyBits,
    is_kept: bool,
}

impl Drop for Changed {
    fn drop(&mut self) {
        if !self.is_kept {
            self.bitmap.restore(&self.saved);
        }
    }
}

impl Changed {
    /// Keeps what a bitmap has. A worker copies it.
    fn co_keep(
        co: &Co<'_>,
        (node, bitmap): (Arc<BlockNode>, Arc<DirtyBitmap>),
    ) -> Result<Changed, ActionError> {
        let saved = PoolShare::once(co, || bitmap.saved())?;
        Ok(Changed { node, bitmap, saved, is_kept: false })
    }

    fn keep(mut self) {
        self.is_kept = true;
    }

    /// A worker does it, and the image knows.
    fn co_undo(self, co: &Co<'_>) {
        PoolShare::once(co, || self.bitmap.restore(&self.saved));
        co_note(co, &self.node, &self.bitmap);
        self.keep();
    }
}

/// Clears a bitmap.
pub struct ClearBitmap {
    at: BitmapAt,
    changed: Option<Changed>,
}

impl ClearBitmap {
    /// Clears this one.
    pub fn new(at: BitmapAt) -> ClearBitmap {
        ClearBitmap { at, changed: None }
    }
}

impl Action for ClearBitmap {
    fn name(&self) -> &'static str {
        "block-dirty-bitmap-clear"
    }

    fn nodes(&self) -> Vec<Arc<BlockNode>> {
        self.at.nodes()
    }

    fn co_prepare(&mut self, co: &Co<'_>, _: &Preparing) -> Result<(), ActionError> {
        let changed = Changed::co_keep(co, self.at.find()?)?;
        changed.bitmap.clear()?;
        self.changed = Some(changed);
        Ok(())
    }

    fn co_commit(&mut self, _: &Co<'_>) {
        self.changed.take().into_iter().for_each(Changed::keep);
    }

    fn co_abort(&mut self, co: &Co<'_>) {
        self.changed.take().into_iter().for_each(|changed| changed.co_undo(co));
    }

    fn unwind(&mut self) {
        self.changed = None;
    }
}

/// Has the image know what a bitmap is after it was taken back.
fn co_note(co: &Co<'_>, node: &Arc<BlockNode>, bitmap: &Arc<DirtyBitmap>) {
    if let Err(error) = node.co_note_bitmap(co, bitmap) {
        tracing::error!(node = node.name(), %error, "a bitmap that was taken back is not stored");
    }
}

/// Has writes recorded in a bitmap, or not.
pub struct RecordBitmap {
    at: BitmapAt,
    on: bool,
    changed: Option<(Arc<BlockNode>, Arc<DirtyBitmap>)>,
}

impl RecordBitmap {
    /// Enables this one if `on`, otherwise disables it.
    pub fn new(at: BitmapAt, on: bool) -> RecordBitmap {
        RecordBitmap { at, on, changed: None }
    }
}

impl Action for RecordBitmap {
    fn name(&self) -> &'static str {
        if self.on { "block-dirty-bitmap-enable" } else { "block-dirty-bitmap-disable" }
    }

    fn nodes(&self) -> Vec<Arc<BlockNode>> {
        self.at.nodes()
    }

    fn co_prepare(&mut self, co: &Co<'_>, _: &Preparing) -> Result<(), ActionError> {
        let (node, bitmap) = self.at.find()?;
        let was_on = bitmap.is_recording();
        node.co_record_bitmap(co, &bitmap, self.on)?;
        self.changed = Some((node, bitmap)).filter(|_| was_on != self.on);
        Ok(())
    }

    fn co_abort(&mut self, co: &Co<'_>) {
        if let Some((node, bitmap)) = self.changed.take() {
            // It is as it was when that was allowed.
            let _ = bitmap.set_recording(!self.on);
            co_note(co, &node, &bitmap);
        }
    }

    fn unwind(&mut self) {
        if let Some((_, bitmap)) = self.changed.take() {
            let _ = bitmap.set_recording(!self.on);
        }
    }
}

/// Marks in a bitmap what is dirty in others.
pub struct MergeBitmaps {
    target: BitmapAt,
    sources: Vec<BitmapAt>,
    changed: Option<Changed>,
}

impl MergeBitmaps {
    /// Marks in `target` what is dirty in any of the sources, which may be of other nodes.
    pub fn new(target: BitmapAt, sources: Vec<BitmapAt>) -> MergeBitmaps {
        MergeBitmaps { target, sources, changed: None }
    }
}

impl Action for MergeBitmaps {
    fn name(&self) -> &'static str {
        "block-dirty-bitmap-merge"
    }

    fn nodes(&self) -> Vec<Arc<BlockNode>> {
        self.sources.iter().chain([&self.target]).flat_map(BitmapAt::nodes).collect()
    }

    fn co_prepare(&mut self, co: &Co<'_>, _: &Preparing) -> Result<(), ActionError> {
        let target = self.target.find()?;
        let sources = self.sources.iter().map(|it| it.find().map(|(_, bitmap)| bitmap));
        let sources = sources.collect::<Result<Vec<_>, _>>()?;
        let changed = Changed::co_keep(co, target)?;
        if let Err(error) = changed.node.co_merge_bitmaps(co, &changed.bitmap, &sources) {
            changed.co_undo(co);
            return Err(error.into());
        }
        self.changed = Some(changed);
        Ok(())
    }

    fn co_commit(&mut self, _: &Co<'_>) {
        self.changed.take().into_iter().for_each(Changed::keep);
    }

    fn co_abort(&mut self, co: &Co<'_>) {
        self.changed.take().into_iter().for_each(|changed| changed.co_undo(co));
    }

    fn unwind(&mut self) {
        self.changed = None;
    }
}

/// Removes a bitmap. It is busy, and its name is taken, until the end of the transaction.
pub struct RemoveBitmap {
    at: BitmapAt,
    removal: Option<BitmapRemoval>,
}

impl RemoveBitmap {
    /// Removes this one.
    pub fn new(at: BitmapAt) -> RemoveBitmap {
        RemoveBitmap { at, removal: None }
    }
}

impl Action for RemoveBitmap {
    fn name(&self) -> &'static str {
        "block-dirty-bitmap-remove"
    }

    fn nodes(&self) -> Vec<Arc<BlockNode>> {
        self.at.nodes()
    }

    fn co_prepare(&mut self, co: &Co<'_>, _: &Preparing) -> Result<(), ActionError> {
        let (node, bitmap) = self.at.find()?;
        self.removal = Some(node.co_begin_removal(co, &bitmap)?);
        Ok(())
    }

    fn co_commit(&mut self, _: &Co<'_>) {
        self.removal.take().into_iter().for_each(BitmapRemoval::finish);
    }

    fn co_abort(&mut self, _: &Co<'_>) {
        self.removal = None;
    }
}
