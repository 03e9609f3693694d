//! Stores to memory that outlives the device. Tests cut them off after any number, as a kill does.

use std::sync::atomic::Ordering;

use vm_memory::{AtomicAccess, Bytes, VolatileMemoryError, VolatileSlice};

#[inline]
pub(super) fn store<T: AtomicAccess>(
    memory: &VolatileSlice<'_>,
    offset: usize,
    value: T,
    order: Ordering,
) -> Result<(), VolatileMemoryError> {
    #[cfg(test)]
    if !fuse::burn() {
        return Ok(());
    }
    memory.store(value, offset, order)
}

/// Cuts stores off.
#[cfg(test)]
pub(super) mod fuse {
    use std::cell::Cell;

    thread_local! {
        static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
        static HAS_BLOWN: Cell<bool> = const { Cell::new(false) };
    }

    /// From now on so many stores are done, or all.
    pub(crate) fn set(stores: Option<u32>) {
        LEFT.set(stores);
        HAS_BLOWN.set(false);
    }

    /// Whether one was left out.
    pub(crate) fn has_blown() -> bool {
        HAS_BLOWN.get()
    }

    /// Whether a store is done.
    pub(super) fn burn() -> bool {
        let Some(left) = LEFT.get() else { return true };
        HAS_BLOWN.set(HAS_BLOWN.get() || left == 0);
        LEFT.set(Some(left.saturating_sub(1)));
        left > 0
    }
}
