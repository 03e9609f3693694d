//! Dirty bitmaps of nodes, with QEMU's refusals.

use std::sync::Arc;

use coblk::block::{BitmapRef, DirtyBitmap, NewBitmap, NodeBitmap};
use coblk::qapi::shorten;
use coblk::{BlockNode, Co};

use super::{Daemon, DaemonError};

impl Daemon {
    /// A bitmap, and its node.
    pub(crate) fn find_bitmap(
        &self,
        node: &str,
        name: &str,
    ) -> Result<(Arc<BlockNode>, Arc<DirtyBitmap>), DaemonError> {
        let found = self.blockdevs.node(node);
        let node = found.ok_or_else(|| DaemonError::NoBitmapNode(shorten(node)))?;
        let bitmap = node.bitmaps().find(name)?;
        Ok((node, bitmap))
    }

    /// `block-dirty-bitmap-add`. The granularity is in bytes; without one it follows from the node.
    ///
    /// # Errors
    /// If there is no such node, it has such a bitmap, or cannot store one.
    pub fn dirty_bitmap_add(
        &self,
        co: &Co<'_>,
        bitmap: NodeBitmap,
        granularity: Option<u32>,
        (persistent, recording): (bool, bool),
    ) -> Result<(), DaemonError> {
        let _command = self.begin_command("block-dirty-bitmap-add")?;
        let _turn = self.bitmap_commands.lock(co);
        let node = self.blockdevs.node(&bitmap.node).ok_or_else(|| {
            let (device, node_name) = (shorten(&bitmap.node), shorten(&bitmap.node));
            DaemonError::NoSuchDevice { device, node_name }
        })?;
        let granularity = granularity.map_or_else(|| node.default_granularity(), u64::from);
        let mut new = NewBitmap::new(bitmap.name, granularity);
        new.is_persistent = persistent;
        new.is_recording = recording;
        node.co_add_bitmap(co, new)?;
        Ok(())
    }

    /// `block-dirty-bitmap-remove`.
    ///
    /// # Errors
    /// If there is no such bitmap, it is in use, or cannot be removed from its image.
    pub fn dirty_bitmap_remove(&self, co: &Co<'_>, bitmap: &NodeBitmap) -> Result<(), DaemonError> {
        let _command = self.begin_command("block-dirty-bitmap-remove")?;
        let _turn = self.bitmap_commands.lock(co);
        let (node, bitmap) = self.find_bitmap(&bitmap.node, &bitmap.name)?;
        Ok(node.co_remove_bitmap(co, &bitmap)?)
    }

    /// `block-dirty-bitmap-merge`: marks in `target` what is dirty in the sources, those without a node being
    /// of the same node.
    ///
    /// # Errors
    /// If one is not there, is in use, or is of a disk of another length.
    pub fn dirty_bitmap_merge(
        &self,
        co: &Co<'_>,
        target: &NodeBitmap,
        sources: &[BitmapRef],
    ) -> Result<(), DaemonError> {
        let _turn = self.bitmap_commands.lock(co);
        let (node, target) = self.find_bitmap(&target.node, &target.name)?;
        let source = |source: &BitmapRef| match source {
            BitmapRef::Name(name) => Ok(node.bitmaps().find(name)?),
            BitmapRef::Of(it) => self.find_bitmap(&it.node, &it.name).map(|(_, bitmap)| bitmap),
        };
        let sources = sources.iter().map(source).collect::<Result<Vec<_>, DaemonError>>()?;
        Ok(node.co_merge_bitmaps(co, &target, &sources)?)
    }

    /// `block-dirty-bitmap-clear`.
    ///
    /// # Errors
    /// If there is no such bitmap, or its state forbids it.
    pub fn dirty_bitmap_clear(&self, co: &Co<'_>, bitmap: &NodeBitmap) -> Result<(), DaemonError> {
        let _turn = self.bitmap_commands.lock(co);
        Ok(self.find_bitmap(&bitmap.node, &bitmap.name)?.1.clear()?)
    }

    /// `block-dirty-bitmap-enable`, or `block-dirty-bitmap-disable`.
    ///
    /// # Errors
    /// If there is no such bitmap, or its state forbids it.
    pub fn dirty_bitmap_record(
        &self,
        co: &Co<'_>,
        bitmap: &NodeBitmap,
        on: bool,
    ) -> Result<(), DaemonError> {
        let _turn = self.bitmap_commands.lock(co);
        let (node, bitmap) = self.find_bitmap(&bitmap.node, &bitmap.name)?;
        Ok(node.co_record_bitmap(co, &bitmap, on)?)
    }
}
