//! Atomics by the names that bitmaps and their files use: the standard library's, or loom's in its models.

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// Stands between two sequentially consistent accesses whose order matters. loom takes such accesses for
/// acquire and release only, but knows sequentially consistent fences; so there it is one, and here, where
/// the accesses themselves are enough, it is nothing.
#[inline]
pub(crate) fn model_fence() {
    #[cfg(loom)]
    loom::sync::atomic::fence(Ordering::SeqCst);
}
