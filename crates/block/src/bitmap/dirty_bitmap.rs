//! [`DirtyBitmap`]: bits with a name and a state.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::bits::DirtyBits;
use super::error::BitmapError;
use super::slots::Slot;

/// A bitmap of a node, in which writes to the node are recorded. Any thread.
///
/// | state | clear | enable, disable | merged into, from | removed | used |
/// |---|---|---|---|---|---|
/// | busy: a job or an export has it | no | no | no, no | no | no |
/// | read-only: stored in an image that is not written | no | yes | no, yes | no | yes |
/// | inconsistent: not stored after its last use | no | no | no, no | yes | no |
pub struct DirtyBitmap {
    slot: Arc<Slot>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    name: Option<String>,
    is_persistent: bool,
    is_busy: bool,
    is_read_only: bool,
    is_inconsistent: bool,
    /// Records while another user has the bits.
    successor: Option<Arc<DirtyBitmap>>,
}

/// A bitmap as monitors show it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BitmapInfo {
    /// Its name; a job's own bitmaps have none.
    pub name: Option<String>,
    /// How much is dirty, in bytes of whole granules.
    pub count: u64,
    /// Bytes that a bit stands for.
    pub granularity: u64,
    /// Whether writes are recorded, by itself or its successor.
    pub is_recording: bool,
    /// Whether a job or an export has it.
    pub is_busy: bool,
    /// Whether it is stored in the image.
    pub is_persistent: bool,
    /// Whether it was not stored after its last use.
    pub is_inconsistent: bool,
}

/// What a bitmap is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitmapUse {
    /// To be read, or to be enabled or disabled.
    Read,
    /// To have its bits changed.
    Change,
    /// To be removed.
    Remove,
}

impl DirtyBitmap {
    pub(super) fn new(slot: Arc<Slot>, name: Option<String>) -> DirtyBitmap {
        let state = State { name, ..State::default() };
        DirtyBitmap { slot, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its name; a job's own bitmaps have none.
    pub fn name(&self) -> Option<String> {
        self.state().name.clone()
    }

    /// Whether this is its name.
    pub fn is_named(&self, name: &str) -> bool {
        self.state().name.as_deref() == Some(name)
    }

    fn shown_name(&self) -> String {
        self.name().unwrap_or_default()
    }

    /// Its bits. A user [checks](Self::check) its state before they are changed.
    #[inline]
    pub fn bits(&self) -> &DirtyBits {
        &self.slot.bits
    }

    /// Whether writes to the node are recorded, by itself or its successor.
    pub fn is_recording(&self) -> bool {
        self.slot.is_recording() || self.state().successor.is_some()
    }

    /// Whether it is stored in the image.
    pub fn is_persistent(&self) -> bool {
        self.state().is_persistent
    }

    /// Whether it was not stored after its last use, so that its bits mean nothing.
    pub fn is_inconsistent(&self) -> bool {
        self.state().is_inconsistent || self.bits().is_torn()
    }

    /// As monitors show it.
    pub fn info(&self) -> BitmapInfo {
        let (count, granularity) = (self.bits().count(), self.bits().granularity());
        let is_inconsistent = self.is_inconsistent();
        let state = self.state();
        BitmapInfo {
            name: state.name.clone(),
            count,
            granularity,
            is_recording: self.slot.is_recording() || state.successor.is_some(),
            is_busy: state.is_busy,
            is_persistent: state.is_persistent,
            is_inconsistent,
        }
    }

    /// Checks that its state allows a use.
    ///
    /// # Errors
    /// If it is busy, read-only or inconsistent, where the table above says so.
    pub fn check(&self, wanted: BitmapUse) -> Result<(), BitmapError> {
        let is_inconsistent = self.is_inconsistent();
        let state = self.state();
        let name = || state.name.clone().unwrap_or_default();
        if state.is_busy {
            return Err(BitmapError::Busy(name()));
        }
        if state.is_read_only && wanted != BitmapUse::Read {
            return Err(BitmapError::ReadOnly(name()));
        }
        if is_inconsistent && wanted != BitmapUse::Remove {
            return Err(BitmapError::Inconsistent(name()));
        }
        Ok(())
    }

    /// Has writes that begin from now on recorded, or not.
    ///
    /// # Errors
    /// If it is busy or inconsistent.
    pub fn set_recording(&self, on: bool) -> Result<(), BitmapError> {
        self.check(BitmapUse::Read)?;
        self.slot.set_recording(on);
        Ok(())
    }

    /// Clears all bits.
    ///
    /// # Errors
    /// If it is busy, read-only or inconsistent.
    pub fn clear(&self) -> Result<(), BitmapError> {
        self.check(BitmapUse::Change)?;
        self.bits().clear_all();
        Ok(())
    }

    /// A copy of its bits, to which they can be [restored](Self::restore). Takes as much memory as they do.
    ///
    /// # Errors
    /// If it is busy, read-only or inconsistent; without memory.
    pub fn saved(&self) -> Result<DirtyBits, BitmapError> {
        self.check(BitmapUse::Change)?;
        let failed = |source| BitmapError::Make { name: self.shown_name(), source };
        self.bits().copy().map_err(failed)
    }

    /// Makes its bits what they were when these were saved. Between both no write to the node is under way, or
    /// marks are lost: in a drained section.
    pub fn restore(&self, saved: &DirtyBits) {
        self.bits().clear_all();
        self.bits().merge_from(saved);
    }

    /// Marks what is dirty in the sources. This one may be among them.
    ///
    /// # Errors
    /// If one is in a state that forbids it, or is of a disk of another length. Nothing has changed then.
    pub fn merge(&self, sources: &[Arc<DirtyBitmap>]) -> Result<(), BitmapError> {
        self.check(BitmapUse::Change)?;
        for source in sources {
            source.check(BitmapUse::Read)?;
            let (target, source_bytes) = (self.bits().length(), source.bits().length());
            if target != source_bytes {
                return Err(BitmapError::Sizes { target, source_bytes });
            }
        }
        for source in sources.iter().filter(|source| !std::ptr::eq(&***source, self)) {
            self.bits().merge_from(source.bits());
        }
        Ok(())
    }

    /// Keeps other users away until the result is dropped. Writes go on being recorded.
    ///
    /// # Errors
    /// If its state does not allow the use.
    pub fn acquire(self: &Arc<Self>, wanted: BitmapUse) -> Result<AcquiredBitmap, BitmapError> {
        self.check(wanted)?;
        let mut state = self.state();
        if std::mem::replace(&mut state.is_busy, true) {
            return Err(BitmapError::Busy(state.name.clone().unwrap_or_default()));
        }
        drop(state);
        Ok(AcquiredBitmap { bitmap: Arc::clone(self) })
    }

    /// Whether its bits are to be stored with the image.
    pub fn set_persistent(&self, on: bool) {
        self.state().is_persistent = on;
    }

    /// The image that has it is not written, or is again.
    pub fn set_read_only(&self, on: bool) {
        self.state().is_read_only = on;
    }

    /// Its bits mean nothing any more. It stops recording, and all bits are clear.
    pub fn set_inconsistent(&self) {
        self.state().is_inconsistent = true;
        self.slot.set_recording(false);
        self.bits().clear_all();
    }

    pub(super) fn slot(&self) -> &Arc<Slot> {
        &self.slot
    }

    /// The one that records while another user has the bits.
    pub(crate) fn successor(&self) -> Option<Arc<DirtyBitmap>> {
        self.state().successor.clone()
    }

    pub(super) fn has_successor(&self) -> bool {
        self.state().successor.is_some()
    }

    /// Begins to record in a successor instead of here.
    pub(super) fn set_successor(&self, successor: &Arc<DirtyBitmap>) {
        successor.slot.set_recording(self.slot.is_recording());
        self.slot.set_recording(false);
        self.state().successor = Some(Arc::clone(successor));
    }

    pub(super) fn take_successor(&self) {
        self.state().successor = None;
    }

    /// Gives name and persistence to another bitmap.
    pub(super) fn hand_over(&self, heir: &DirtyBitmap) {
        let (name, is_persistent) = {
            let mut state = self.state();
            (state.name.take(), std::mem::take(&mut state.is_persistent))
        };
        let mut heir = heir.state();
        heir.name = name;
        heir.is_persistent = is_persistent;
    }

    /// It is not listed any more: no write is recorded.
    pub(super) fn retire(&self) {
        self.slot.set_recording(false);
    }
}

impl std::fmt::Debug for DirtyBitmap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("DirtyBitmap").field(&self.shown_name()).finish()
    }
}

/// A bitmap that one user has: it is busy until this is dropped.
#[derive(Debug)]
#[must_use = "the bitmap is busy while this lives"]
pub struct AcquiredBitmap {
    bitmap: Arc<DirtyBitmap>,
}

impl AcquiredBitmap {
    /// The bitmap.
    pub fn bitmap(&self) -> &Arc<DirtyBitmap> {
        &self.bitmap
    }
}

impl Drop for AcquiredBitmap {
    fn drop(&mut self) {
        self.bitmap.state().is_busy = false;
    }
}
