//! Atomics and locks by the names the rest of the crate uses: the standard library's, or loom's when
//! the models in `models.rs` check the code that uses them.

#[cfg(loom)]
pub(crate) use loom::sync::Mutex;
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicBool, AtomicIsize, AtomicPtr, AtomicU8, Ordering};

#[cfg(not(loom))]
pub(crate) use std::sync::Mutex;
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicPtr, AtomicU8, Ordering};

/// Stands between two sequentially consistent accesses whose order matters. loom takes such
/// accesses for acquire and release only, but knows sequentially consistent fences; so there it is
/// one, and here, where the accesses themselves are enough, it is nothing.
#[inline]
pub(crate) fn model_fence() {
    #[cfg(loom)]
    loom::sync::atomic::fence(Ordering::SeqCst);
}
