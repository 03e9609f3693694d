//! [`Bitmaps`]: the bitmaps of a node.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::bits::{DirtyBits, is_granularity};
use super::dirty_bitmap::{AcquiredBitmap, BitmapUse, DirtyBitmap};
use super::error::BitmapError;
use super::slots::{Slot, Slots};

/// Longest name of a bitmap in bytes.
const MAX_NAME_BYTES: usize = 1023;

/// A bitmap that is to be made.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NewBitmap {
    /// Its name, of 1 to 1023 bytes; `None` for a job's own.
    pub name: Option<String>,
    /// Bytes that a bit stands for: a power of two from 512 to 2 GiB.
    pub granularity: u64,
    /// Whether writes are recorded from its beginning.
    pub is_recording: bool,
    /// Whether it is stored in the image.
    pub is_persistent: bool,
}

impl NewBitmap {
    /// One that records, and that is not stored.
    pub fn new(name: impl Into<Option<String>>, granularity: u64) -> NewBitmap {
        let name = name.into();
        NewBitmap { name, granularity, is_recording: true, is_persistent: false }
    }
}

/// The bitmaps of a node, which its driver may have loaded, and stores. Any thread.
#[derive(Default)]
pub struct Bitmaps {
    /// Newest first. Slots change under its lock.
    list: Mutex<Vec<Arc<DirtyBitmap>>>,
    slots: Slots,
}

impl Bitmaps {
    /// None yet.
    pub fn new() -> Arc<Bitmaps> {
        Arc::default()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<DirtyBitmap>>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them, newest first.
    pub fn list(&self) -> Vec<Arc<DirtyBitmap>> {
        self.lock().clone()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// The one of a name.
    ///
    /// # Errors
    /// If there is none.
    pub fn find(&self, name: &str) -> Result<Arc<DirtyBitmap>, BitmapError> {
        let found = self.lock().iter().find(|it| it.is_named(name)).cloned();
        found.ok_or_else(|| BitmapError::NotFound(name.to_owned()))
    }

    /// Checks that a bitmap can be made.
    ///
    /// # Errors
    /// If its name is taken, or one that bitmaps cannot have; or its granularity.
    pub fn check_new(&self, new: &NewBitmap) -> Result<(), BitmapError> {
        if let Some(name) = &new.name {
            if name.is_empty() {
                return Err(BitmapError::EmptyName);
            }
            if self.lock().iter().any(|it| it.is_named(name)) {
                return Err(BitmapError::Exists(name.clone()));
            }
            if name.len() > MAX_NAME_BYTES {
                return Err(BitmapError::LongName(name.clone()));
            }
        }
        if is_granularity(new.granularity) { Ok(()) } else { Err(BitmapError::Granularity) }
    }

    /// Makes a bitmap of a disk of `length` bytes, all clean. Its memory is touched: 2 MiB for 1 TiB in
    /// granules of 64 KiB.
    ///
    /// # Errors
    /// As of [`check_new`](Self::check_new); without memory.
    pub fn add(&self, new: NewBitmap, length: u64) -> Result<Arc<DirtyBitmap>, BitmapError> {
        self.check_new(&new)?;
        let unused = self.slots_unused(length, new.granularity);
        let slot = match unused {
            Some(slot) => slot,
            None => Slot::new(DirtyBits::new(length, new.granularity).map_err(|source| {
                BitmapError::Make { name: new.name.clone().unwrap_or_default(), source }
            })?),
        };
        let mut list = self.lock();
        if let Some(name) = &new.name
            && list.iter().any(|it| it.is_named(name))
        {
            return Err(BitmapError::Exists(name.clone()));
        }
        let bitmap = Arc::new(DirtyBitmap::new(Arc::clone(&slot), new.name));
        bitmap.set_persistent(new.is_persistent);
        slot.set_recording(new.is_recording);
        self.slots.add(&slot);
        list.insert(0, Arc::clone(&bitmap));
        Ok(bitmap)
    }

    fn slots_unused(&self, length: u64, granularity: u64) -> Option<Arc<Slot>> {
        let _list = self.lock();
        self.slots.unused(length, granularity)
    }

    /// Takes a bitmap off the list: it records no more.
    pub fn remove(&self, bitmap: &Arc<DirtyBitmap>) {
        bitmap.retire();
        self.lock().retain(|it| !Arc::ptr_eq(it, bitmap));
    }

    /// Marks a range in all that record.
    #[inline]
    pub(crate) fn mark(&self, range: &Range<u64>) {
        self.slots.mark(range);
    }

    /// The disk may have another length. It is asked for with the lock held: an older answer would take marks
    /// away that are behind it.
    pub(crate) fn follow(&self, length: impl FnOnce() -> u64) {
        let _list = self.lock();
        if !self.slots.is_empty() {
            self.slots.set_length(length());
        }
    }

    /// Gives the bits of a bitmap to a user, such as a backup, and has a successor record meanwhile: it is
    /// anonymous, and records if the bitmap did. No write is in neither.
    ///
    /// In a drained section of the node.
    ///
    /// # Errors
    /// If the bitmap is busy, read-only or inconsistent; without memory.
    pub fn split(self: &Arc<Self>, bitmap: &Arc<DirtyBitmap>) -> Result<SplitBitmap, BitmapError> {
        let acquired = bitmap.acquire(BitmapUse::Change)?;
        let (length, granularity) = (bitmap.bits().length(), bitmap.bits().granularity());
        let new = NewBitmap { is_recording: false, ..NewBitmap::new(None, granularity) };
        let successor = self.add(new, length)?;
        self.slots.count_pair(true);
        bitmap.set_successor(&successor);
        Ok(SplitBitmap { set: Arc::clone(self), acquired, successor })
    }
}

/// A bitmap whose bits a user has, while a successor records. It is busy until then. Any thread; writes go on.
#[must_use = "a drop merges the successor back"]
pub struct SplitBitmap {
    set: Arc<Bitmaps>,
    acquired: AcquiredBitmap,
    successor: Arc<DirtyBitmap>,
}

impl SplitBitmap {
    /// The bitmap with the bits.
    pub fn bitmap(&self) -> &Arc<DirtyBitmap> {
        self.acquired.bitmap()
    }

    /// The user has done what the bits said: the successor takes the bitmap's place, with its name and its
    /// persistence.
    pub fn keep_successor(self) -> Arc<DirtyBitmap> {
        let bitmap = self.bitmap();
        // No command finds the name at both, or at none.
        let mut list = self.set.lock();
        bitmap.hand_over(&self.successor);
        list.retain(|it| !Arc::ptr_eq(it, bitmap));
        drop(list);
        bitmap.take_successor();
        Arc::clone(&self.successor)
    }

    /// The user has not: the bitmap records again, with what the successor has recorded. So does a drop.
    pub fn merge_successor(self) -> Arc<DirtyBitmap> {
        Arc::clone(self.bitmap())
    }
}

impl Drop for SplitBitmap {
    fn drop(&mut self) {
        let bitmap = self.acquired.bitmap();
        // In this order: see `Slots::mark`.
        if bitmap.has_successor() {
            bitmap.slot().set_recording(self.successor.slot().is_recording());
            bitmap.bits().merge_from(self.successor.bits());
            self.set.remove(&self.successor);
            bitmap.take_successor();
        }
        self.set.slots.count_pair(false);
    }
}

impl std::fmt::Debug for SplitBitmap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SplitBitmap").field(self.bitmap()).finish()
    }
}
