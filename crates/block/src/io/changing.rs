//! [`Changing`]: a change that its driver may have made in part.
//!
//! Whatever becomes of a change, three depend on hearing of it: the next flush, which is skipped if nothing was
//! written; dirty bitmaps, of which the next incremental backup copies what is marked; and hooks. A driver
//! that panics, or whose coroutine is unwound, does not return, and may have changed a part all the same: an
//! earlier piece of the request, or the middle of zeroes whose edges were to come. A reader sees that part, so
//! a flush must cover it. So all of them are told by the guard of the change, as after a failure.

use std::mem::ManuallyDrop;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::RequestPath;
use super::after_write::WriteKind;
use super::known::answers_may_have_changed;
use super::state::Features;

/// Made before the driver is called, when the range is locked. It is told of when it [ends](Self::end), or is
/// dropped without that.
pub(super) struct Changing<'a> {
    path: &'a RequestPath,
    /// Of a change of the image, not used.
    range: Range<u64>,
    /// The whole blocks of `range`.
    blocks: Range<u64>,
    kind: WriteKind,
}

impl<'a> Changing<'a> {
    #[inline]
    pub(super) fn new(path: &'a RequestPath, range: Range<u64>, kind: WriteKind) -> Changing<'a> {
        Changing { path, blocks: range.clone(), range, kind }
    }

    /// With the blocks around it, whose bytes are read and written back.
    pub(super) fn with_blocks(
        path: &'a RequestPath,
        range: Range<u64>,
        blocks: Range<u64>,
        kind: WriteKind,
    ) -> Changing<'a> {
        Changing { path, range, blocks, kind }
    }

    /// Its driver has returned.
    pub(super) fn end(self, succeeded: bool) {
        // A hook that panics is not called again.
        ManuallyDrop::new(self).tell(succeeded);
    }

    /// It has changed no more than what is before `end`, in bytes.
    pub(super) fn end_at(mut self, end: u64, succeeded: bool) {
        self.range.end = end;
        self.blocks.end = end;
        match self.range.is_empty() {
            true => std::mem::forget(self),
            false => self.end(succeeded),
        }
    }

    /// [`end`](Self::end) of a write that began when the node had these `features`, none of which is for those
    /// that are told. It pays for no more than it needs.
    #[inline]
    pub(super) fn end_plainly(self, features: Features, succeeded: bool) {
        // Copies, so that the guard itself is never in memory.
        let (state, range) = (&self.path.state, self.range.clone());
        std::mem::forget(self);
        state.wrote_plainly(range.end, succeeded);
        if features.contains(Features::BITMAPS) {
            state.bitmaps.mark(&range);
        }
    }

    fn tell(&self, succeeded: bool) {
        use WriteKind::{Apply, Empty, Truncate};
        if matches!(self.kind, Apply | Empty | Truncate) {
            answers_may_have_changed();
        }
        let range = match self.kind {
            Apply | Empty => 0..self.path.length(),
            _ => self.range.clone(),
        };
        self.path.mark_around(&self.range, self.blocks.clone());
        self.path.state.wrote(range, self.kind, succeeded);
    }
}

impl Drop for Changing<'_> {
    #[inline]
    fn drop(&mut self) {
        unwound(self.path, self.range.clone(), self.blocks.clone(), self.kind);
    }
}

/// By value: what a change has in registers stays there.
#[cold]
#[inline(never)]
fn unwound(path: &RequestPath, range: Range<u64>, blocks: Range<u64>, kind: WriteKind) {
    // Before all that may panic.
    path.state.owe_flush();
    let changing = ManuallyDrop::new(Changing { path, range, blocks, kind });
    // A panic that leaves a destructor would end the process.
    if catch_unwind(AssertUnwindSafe(|| changing.tell(false))).is_err() {
        tracing::error!(node = path.name(), "a user of changes panicked while one was unwound");
    }
}
