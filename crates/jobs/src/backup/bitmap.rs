//! What becomes of the bitmap of a backup.

use std::sync::Arc;

use coblk_block::{AcquiredBitmap, BitmapError, BitmapUse, BlockNode, DirtyBitmap, DirtyBits};

use super::options::BitmapMode;

/// A bitmap of the source while the job has it. Dropped, it has what it had, and what was written since.
pub(super) struct Held {
    mode: BitmapMode,
    has: Has,
}

/// How it is held.
enum Has {
    /// A successor records what is written.
    Split(coblk_block::SplitBitmap),
    /// Of a node that is not written.
    Acquired(AcquiredBitmap),
}

impl Held {
    /// In a drained section of the source.
    pub(super) fn new(
        source: &BlockNode,
        name: &str,
        mode: BitmapMode,
    ) -> Result<Held, BitmapError> {
        let bitmap = source.bitmaps().find(name)?;
        let is_changed = bitmap.check(BitmapUse::Change).is_ok();
        let has = match is_changed || mode != BitmapMode::Never {
            true => Has::Split(source.bitmaps().split(&bitmap)?),
            false => Has::Acquired(bitmap.acquire(BitmapUse::Read)?),
        };
        Ok(Held { mode, has })
    }

    /// What was dirty at the instant.
    pub(super) fn bits(&self) -> &DirtyBits {
        match &self.has {
            Has::Split(split) => split.bitmap().bits(),
            Has::Acquired(acquired) => acquired.bitmap().bits(),
        }
    }

    /// The backup has succeeded, with its group. Returns the bitmap if it has other bits now.
    pub(super) fn succeed(self) -> Option<Arc<DirtyBitmap>> {
        match (self.has, self.mode) {
            (Has::Split(split), BitmapMode::OnSuccess | BitmapMode::Always) => {
                Some(split.keep_successor())
            }
            _ => None,
        }
    }

    /// The backup, or another of its group, has failed. `mark_left` marks what was not copied.
    pub(super) fn fail(self, mark_left: impl FnOnce(&DirtyBits)) {
        if let (Has::Split(split), BitmapMode::Always) = (self.has, self.mode) {
            mark_left(split.keep_successor().bits());
        }
    }
}
