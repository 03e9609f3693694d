//! [`CoRwLock`]: many readers or one writer.

use std::cell::UnsafeCell;
use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

use super::waiters::{Place, Served, Unwound, WaitList, Waiters, lock};
use crate::co::Co;

/// A lock for many readers or one writer. Fair in both directions: a coroutine waits if another
/// waits already, so neither kind can starve the other (contract: C70).
pub struct CoRwLock<T: ?Sized> {
    raw: RawRwLock,
    data: UnsafeCell<T>,
}

// SAFETY: owning the lock is owning the data.
unsafe impl<T: ?Sized + Send> Send for CoRwLock<T> {}
// SAFETY: shared, it gives exclusive access to one coroutine after the other, on any thread, for
// which the data must be `Send`; and shared access to many at once, for which it must be `Sync`.
unsafe impl<T: ?Sized + Send + Sync> Sync for CoRwLock<T> {}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

struct RawRwLock {
    state: Mutex<State>,
}

struct State {
    readers: usize,
    writer: bool,
    waiters: Waiters<Access>,
}

impl State {
    /// Gives access if it is free.
    fn take(&mut self, access: Access) -> bool {
        match access {
            Access::Read if !self.writer => self.readers += 1,
            Access::Write if !self.writer && self.readers == 0 => self.writer = true,
            _ => return false,
        }
        true
    }

    /// Takes access back, and gives it to those at the head of the list, as many as may enter.
    fn give_back(&mut self, access: Access) -> Served {
        match access {
            Access::Read => self.readers -= 1,
            Access::Write => self.writer = false,
        }
        self.serve()
    }

    fn serve(&mut self) -> Served {
        // Out for a moment, as `take` needs the rest of the state.
        let mut waiters = std::mem::replace(&mut self.waiters, Waiters::new());
        let served = waiters.serve_front(|access| self.take(*access));
        self.waiters = waiters;
        served
    }
}

impl RawRwLock {
    fn list(&self) -> WaitList<'_, State, Access> {
        WaitList { mutex: &self.state, waiters: |state| &mut state.waiters }
    }

    fn try_acquire(&self, access: Access) -> bool {
        let mut state = lock(&self.state);
        state.waiters.is_empty() && state.take(access)
    }

    fn acquire(&self, co: &Co<'_>, access: Access) {
        let mut state = lock(&self.state);
        if state.waiters.is_empty() && state.take(access) {
            return;
        }
        self.list().wait(co, state, (access, Place::Back), || (), |how| self.unwound(access, how));
        // Woken: `serve` has given us the access.
    }

    fn release(&self, access: Access) {
        let served = lock(&self.state).give_back(access);
        served.wake();
    }

    /// Gives up a share as a reader, and waits for its turn as a writer.
    fn upgrade(&self, co: &Co<'_>) {
        let mut state = lock(&self.state);
        let served = state.give_back(Access::Read);
        if state.waiters.is_empty() && state.take(Access::Write) {
            return;
        }
        self.list().wait(
            co,
            state,
            (Access::Write, Place::Back),
            || served.wake(),
            |how| self.unwound(Access::Write, how),
        );
    }

    /// Turns the writer into a reader, together with those who wait to read and come first.
    fn downgrade(&self) {
        let mut state = lock(&self.state);
        (state.writer, state.readers) = (false, 1);
        let served = state.serve();
        drop(state);
        served.wake();
    }

    fn unwound(&self, access: Access, how: Unwound) {
        match how {
            Unwound::Served => self.release(access),
            // It may have been all that kept those behind it from entering.
            Unwound::Waiting => {
                let served = lock(&self.state).serve();
                served.wake();
            }
        }
    }
}

impl<T> CoRwLock<T> {
    /// An unlocked lock.
    pub const fn new(data: T) -> CoRwLock<T> {
        let state = State { readers: 0, writer: false, waiters: Waiters::new() };
        CoRwLock { raw: RawRwLock { state: Mutex::new(state) }, data: UnsafeCell::new(data) }
    }

    /// The data.
    pub fn into_inner(self) -> T {
        self.data.into_inner()
    }
}

impl<T: ?Sized> CoRwLock<T> {
    /// Waits to read: for the writer, and for all who wait already.
    pub fn read(&self, co: &Co<'_>) -> CoRwLockReadGuard<'_, T> {
        self.raw.acquire(co, Access::Read);
        CoRwLockReadGuard { lock: self, not_auto: PhantomData }
    }

    /// Waits to write: for everybody.
    pub fn write(&self, co: &Co<'_>) -> CoRwLockWriteGuard<'_, T> {
        self.raw.acquire(co, Access::Write);
        CoRwLockWriteGuard { lock: self, not_auto: PhantomData }
    }

    /// Reads, if that is possible at once.
    pub fn try_read(&self) -> Option<CoRwLockReadGuard<'_, T>> {
        let acquired = self.raw.try_acquire(Access::Read);
        acquired.then(|| CoRwLockReadGuard { lock: self, not_auto: PhantomData })
    }

    /// Writes, if that is possible at once.
    pub fn try_write(&self) -> Option<CoRwLockWriteGuard<'_, T>> {
        let acquired = self.raw.try_acquire(Access::Write);
        acquired.then(|| CoRwLockWriteGuard { lock: self, not_auto: PhantomData })
    }

    /// The data, of which this is the only reference.
    pub fn get_mut(&mut self) -> &mut T {
        self.data.get_mut()
    }
}

impl<T: Default> Default for CoRwLock<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

/// The right to read what a [`CoRwLock`] guards.
#[must_use = "dropping it unlocks"]
pub struct CoRwLockReadGuard<'a, T: ?Sized> {
    lock: &'a CoRwLock<T>,
    /// What a guard may cross is said below, and not derived from the lock.
    not_auto: PhantomData<*mut T>,
}

/// The right to write what a [`CoRwLock`] guards.
#[must_use = "dropping it unlocks"]
pub struct CoRwLockWriteGuard<'a, T: ?Sized> {
    lock: &'a CoRwLock<T>,
    /// What a guard may cross is said below, and not derived from the lock.
    not_auto: PhantomData<*mut T>,
}

// SAFETY: a read guard is a shared reference, and may unlock on any thread.
unsafe impl<T: ?Sized + Sync> Send for CoRwLockReadGuard<'_, T> {}
// SAFETY: a shared guard gives shared references.
unsafe impl<T: ?Sized + Sync> Sync for CoRwLockReadGuard<'_, T> {}
// SAFETY: a write guard is an exclusive reference, and may unlock on any thread. It can be made a
// read guard, so the data must be `Sync` too.
unsafe impl<T: ?Sized + Send + Sync> Send for CoRwLockWriteGuard<'_, T> {}
// SAFETY: a shared guard gives shared references.
unsafe impl<T: ?Sized + Sync> Sync for CoRwLockWriteGuard<'_, T> {}

impl<'a, T: ?Sized> CoRwLockReadGuard<'a, T> {
    /// Stops reading and waits to write, behind all who wait already: another writer may have
    /// changed the data in between (contract: C70).
    pub fn upgrade(this: Self, co: &Co<'_>) -> CoRwLockWriteGuard<'a, T> {
        // Not dropped: `upgrade` gives its share up, also if it is unwound.
        let lock = ManuallyDrop::new(this).lock;
        lock.raw.upgrade(co);
        CoRwLockWriteGuard { lock, not_auto: PhantomData }
    }
}

impl<'a, T: ?Sized> CoRwLockWriteGuard<'a, T> {
    /// Goes on as a reader. Never waits, and no writer can come in between; readers who wait, and
    /// came before any writer who waits, read too from now on (contract: C70).
    pub fn downgrade(this: Self) -> CoRwLockReadGuard<'a, T> {
        let lock = ManuallyDrop::new(this).lock;
        lock.raw.downgrade();
        CoRwLockReadGuard { lock, not_auto: PhantomData }
    }
}

impl<T: ?Sized> Deref for CoRwLockReadGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: while a read guard lives there is no writer.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T: ?Sized> Deref for CoRwLockWriteGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: while the write guard lives there is no other guard.
        unsafe { &*self.lock.data.get() }
    }
}

impl<T: ?Sized> DerefMut for CoRwLockWriteGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`; the guard is borrowed exclusively.
        unsafe { &mut *self.lock.data.get() }
    }
}

impl<T: ?Sized> Drop for CoRwLockReadGuard<'_, T> {
    fn drop(&mut self) {
        self.lock.raw.release(Access::Read);
    }
}

impl<T: ?Sized> Drop for CoRwLockWriteGuard<'_, T> {
    fn drop(&mut self) {
        self.lock.raw.release(Access::Write);
    }
}

impl<T: ?Sized> fmt::Debug for CoRwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the data: it may be locked.
        f.debug_struct("CoRwLock").finish_non_exhaustive()
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for CoRwLockReadGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: ?Sized + fmt::Debug> fmt::Debug for CoRwLockWriteGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
