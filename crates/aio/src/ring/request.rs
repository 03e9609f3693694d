//! A request, as the ring knows it: what to queue, where its answer goes, and how it is taken back.
//!
//! It is the first field of what lies in the frame of the coroutine that waits for it.

use std::cell::Cell;
use std::io;
use std::ptr::{self, NonNull};

use io_uring::{opcode, squeue};

use super::{AGAIN, IGNORED, Ring};
use crate::home::HANDOVER_PAUSE;
use crate::run_list::{LocalList, Node, NodeKind};

/// A request to the ring. All of it belongs to the home thread.
#[repr(C)]
pub(crate) struct Request {
    node: Node,
    /// While it waits for room in the queue: what to queue, in the same frame.
    entry: Cell<*const squeue::Entry>,
    /// The kernel's answer, once it is reaped.
    result: Cell<Option<i32>>,
}

impl Request {
    /// `kind` says what happens when it has completed.
    #[inline]
    pub(crate) fn new(kind: &'static NodeKind) -> Request {
        Request { node: Node::new(kind), entry: Cell::new(ptr::null()), result: Cell::new(None) }
    }

    /// The kernel's answer, once it is reaped.
    #[inline]
    pub(crate) fn result(&self) -> Option<i32> {
        self.result.get()
    }

    #[inline]
    pub(crate) fn node(&self) -> NonNull<Node> {
        NonNull::from(&self.node)
    }

    /// # Safety
    /// The request is in its frame, on no list, and is completed once.
    #[inline]
    pub(super) unsafe fn complete(request: NonNull<Request>, result: i32, list: &LocalList) {
        // SAFETY: in its frame, by contract; the frame stays until the node is off the list.
        unsafe {
            request.as_ref().result.set(Some(result));
            list.push(request.cast::<Node>());
        }
    }

    /// Queues a request that has waited for room. False if there is none.
    ///
    /// # Safety
    /// It is in its frame, and waits.
    pub(super) unsafe fn try_start(request: NonNull<Request>, ring: &Ring) -> bool {
        // SAFETY: in its frame, by contract; so is its entry, and what that points to, until the
        // completion has been reaped.
        let queued = unsafe {
            let request = request.as_ref();
            let queued = ring.push(&*request.entry.get());
            if matches!(queued, Ok(true)) {
                request.entry.set(ptr::null());
            }
            queued
        };
        if matches!(queued, Ok(true)) {
            ring.in_flight.set(ring.in_flight.get() + 1);
        }
        // A ring that is broken is found out by the loop's own wait.
        matches!(queued, Ok(true))
    }
}

impl Ring {
    /// Queues `entry`, whose `user_data` is the request's tag ([`Ring::tagged`]); without room the
    /// request waits for it.
    ///
    /// # Safety
    /// The request, `entry` and what that points to stay in place until the request has completed, or
    /// [`Ring::take_back`] has returned.
    #[inline(always)]
    pub(crate) unsafe fn start(&self, request: &Request, entry: &squeue::Entry) -> io::Result<()> {
        // SAFETY: passed on.
        if self.waiting.is_empty() && unsafe { self.push(entry)? } {
            self.in_flight.set(self.in_flight.get() + 1);
        } else {
            request.entry.set(entry);
            // SAFETY: passed on; `take_back` takes it off this list, too.
            unsafe { self.waiting.push(request.node()) };
        }
        Ok(())
    }

    /// Cancels a request that has not completed, and waits until the kernel is done with it. What
    /// other requests complete meanwhile goes to `list`. False if it had not been queued: then its
    /// node is on no list.
    #[cold]
    pub(crate) fn take_back(&self, request: &Request, user_data: u64, list: &LocalList) -> bool {
        if !request.entry.get().is_null() {
            // The kernel has never heard of it.
            self.waiting.remove(request.node());
            return false;
        }
        let cancel = opcode::AsyncCancel::new(user_data).build().user_data(IGNORED);
        let mut cancelled = false;
        while request.result.get().is_none() {
            // SAFETY: the entry points to nothing.
            cancelled = cancelled || matches!(unsafe { self.push(&cancel) }, Ok(true));
            // Without it the request may never complete.
            let limit = if cancelled { None } else { Some(AGAIN) };
            let slept = self.sleep(limit);
            self.reap(list);
            if slept.is_err() {
                std::thread::sleep(HANDOVER_PAUSE);
            }
        }
        true
    }
}
