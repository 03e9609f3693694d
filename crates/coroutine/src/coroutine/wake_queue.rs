//! A queue of coroutines to resume, linked through their control blocks, so queueing allocates
//! nothing.

use std::cell::Cell;
use std::ptr;

use super::Coroutine;
use super::control::Control;

/// First in, first out. Owns a handle to each coroutine in it.
pub(crate) struct WakeQueue {
    head: Cell<*const Control>,
    tail: Cell<*const Control>,
}

impl WakeQueue {
    pub(crate) const fn new() -> WakeQueue {
        WakeQueue { head: Cell::new(ptr::null()), tail: Cell::new(ptr::null()) }
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.head.get().is_null()
    }

    /// Adds a coroutine at the end. It is in no other list: its mark as scheduled sees to that.
    pub(crate) fn push_back(&self, coroutine: Coroutine) {
        let control = coroutine.into_raw();
        // SAFETY: the queue owns the handle, so the block is valid.
        unsafe {
            debug_assert!(!(*control).is_queued());
            (*control).set_queued(true);
            (*control).set_next(ptr::null());
        }
        if self.is_empty() {
            self.head.set(control);
        } else {
            // SAFETY: the tail of a queue that is not empty is one of its members, which are all
            // valid.
            unsafe { (*self.tail.get()).set_next(control) };
        }
        self.tail.set(control);
    }

    pub(crate) fn pop_front(&self) -> Option<Coroutine> {
        let control = self.head.get();
        if control.is_null() {
            return None;
        }
        // SAFETY: a member of the queue; the handle that the queue owned goes to the caller.
        unsafe {
            self.head.set((*control).next());
            (*control).set_queued(false);
            Some(Coroutine::from_raw(control))
        }
    }

    /// Moves all of `other` to the front of this queue, in its order.
    pub(crate) fn prepend(&self, other: &WakeQueue) {
        if other.is_empty() {
            return;
        }
        if self.is_empty() {
            self.tail.set(other.tail.get());
        } else {
            // SAFETY: the tail of a queue that is not empty is one of its members, which are all
            // valid.
            unsafe { (*other.tail.get()).set_next(self.head.get()) };
        }
        self.head.set(other.head.replace(ptr::null()));
    }
}
