//! [`CoMutex`]: one coroutine at a time.

use std::cell::UnsafeCell;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};

use super::waiters::{Place, Unwound, WaitList, Waiters, lock};
use crate::co::Co;

/// Free.
const FREE: u8 = 0;
/// Locked, without waiters.
const HELD: u8 = 1;
/// Locked, or on its way to a waiter; unlocking has to look at the list.
const CONTENDED: u8 = 2;

/// A lock that a coroutine may hold while it suspends. Fair: the unlocker hands the lock to the coroutine that
/// has waited longest (contract: C66). On one thread the next owner runs once
/// the unlocking coroutine suspends or ends.
///
/// Only the guard unlocks, and it does so once (contract: C67):
///
/// ```compile_fail
/// fn twice(guard: coblk_aio::sync::CoMutexGuard<'_, u32>) {
///     drop(guard);
///     drop(guard);
/// }
/// ```
///
/// A panic while it is held unlocks it; there is no poison.
pub struct CoMutex<T: ?Sized> {
    raw: RawMutex,
    data: UnsafeCell<T>,
}

// SAFETY: owning the mutex is owning the data.
unsafe impl<T: ?Sized + Send> Send for CoMutex<T> {}
// SAFETY: shared, it gives access to the data to one coroutine at a time, which may be on any
// thread: the data is sent from one to the next, and never shared.
unsafe impl<T: ?Sized + Send> Sync for CoMutex<T> {}

/// The lock without the data.
pub(super) struct RawMutex {
    state: AtomicU8,
    waiters: Mutex<Waiters<()>>,
}

impl RawMutex {
    const fn new() -> RawMutex {
        RawMutex { state: AtomicU8::new(FREE), waiters: Mutex::new(Waiters::new()) }
    }

    #[inline]
    fn try_lock(&self) -> bool {
        self.state.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    #[cold]
    fn lock_contended(&self, co: &Co<'_>) {
        let waiters = lock(&self.waiters);
        // From here on who unlocks has to come past the list, and so past us.
        if self.state.swap(CONTENDED, Ordering::Acquire) == FREE {
            return;
        }
        WaitList { mutex: &self.waiters, waiters: |list| list }.wait(
            co,
            waiters,
            ((), Place::Back),
            || (),
            |how| {
                if how == Unwound::Served {
                    self.unlock();
                }
            },
        );
        // Woken: the lock was handed over to us.
    }

    #[inline]
    fn unlock(&self) {
        if self.state.compare_exchange(HELD, FREE, Ordering::Release, Ordering::Relaxed).is_err() {
            self.unlock_contended();
        }
    }

    #[cold]
    fn unlock_contended(&self) {
        let mut waiters = lock(&self.waiters);
        match waiters.pop() {
            Some(next) => {
                drop(waiters);
                next.wake();
            }
            None => self.state.store(FREE, Ordering::Release),
        }
    }
}

impl<T> CoMutex<T> {
    /// An unlocked mutex.
    pub const fn new(data: T) -> CoMutex<T> {
        CoMutex { raw: RawMutex::new(), data: UnsafeCell::new(data) }
    }

    /// The data.
    pub fn into_inner(self) -> T {
        self.data.into_inner()
    }
}

impl<T: ?Sized> CoMutex<T> {
    /// Waits for the lock. Suspends only if it is locked.
    #[inline]
    pub fn lock(&self, co: &Co<'_>) -> CoMutexGuard<'_, T> {
        if !self.raw.try_lock() {
            self.raw.lock_contended(co);
        }
        CoMutexGuard { mutex: self, not_auto: PhantomData }
    }

    /// The lock, if it is free. Needs no coroutine.
    #[inline]
    pub fn try_lock(&self) -> Option<CoMutexGuard<'_, T>> {
        self.raw.try_lock().then(|| CoMutexGuard { mutex: self, not_auto: PhantomData })
    }

    /// Whether it is locked, at this moment.
    pub fn is_locked(&self) -> bool {
        self.raw.state.load(Ordering::Relaxed) != FREE
    }

    /// The data, of which this is the only reference.
    pub fn get_mut(&mut self) -> &mut T {
        self.data.get_mut()
    }
}

impl<T: Default> Default for CoMutex<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T: ?Sized> fmt::Debug for CoMutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CoMutex").field("locked", &self.is_locked()).finish_non_exhaustive()
    }
}

/// The right to use what a [`CoMutex`] guards. Dropping it unlocks.
#[must_use = "dropping it unlocks"]
pub struct CoMutexGuard<'a, T: ?Sized> {
    mutex: &'a CoMutex<T>,
    /// What a guard may cross is said below, and not derived from the mutex.
    not_auto: PhantomData<*mut T>,
}

// SAFETY: a guard is an exclusive reference to the data, and may unlock on any thread.
unsafe impl<T: ?Sized + Send> Send for CoMutexGuard<'_, T> {}
// SAFETY: a shared guard gives shared references to the data.
unsafe impl<T: ?Sized + Sync> Sync for CoMutexGuard<'_, T> {}

impl<'a, T: ?Sized> CoMutexGuard<'a, T> {
    /// The mutex that `this` has locked. Not a method, which would hide one of the data's.
    pub fn mutex(this: &Self) -> &'a CoMutex<T> {
        this.mutex
    }
}

impl<T: ?Sized> Deref for CoMutexGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the lock is held for as long as the guard lives, and there is one guard.
        unsafe { &*self.mutex.data.get() }
    }
}

impl<T: ?Sized> DerefMut for CoMutexGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`; the guard is borrowed exclusively.
        unsafe { &mut *self.mutex.data.get() }
    }
}

impl<T: ?Sized> Drop for CoMutexGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.mutex.raw.unlock();
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for CoMutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
