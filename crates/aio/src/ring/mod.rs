//! The io_uring of a context: an engine for file I/O, and then also what the loop waits in.
//!
//! Requests are queued in the ring's memory and submitted once per turn of the loop, by the same
//! system call that waits for completions (design decision D7). While requests are in flight, the
//! descriptors that mio watches are waited for through one poll entry in the ring.
//!
//! A request that finds the queue full, and the kernel unwilling to take from it, waits in a list of
//! the ring, in its frame as well. It moves up when there is room; none that comes later overtakes it.
//!
//! A [`Request`] lives in the frame of the coroutine that waits for it, like a worker's job.

mod request;
mod slots;
#[cfg(test)]
mod tests;

use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::rc::Rc;
use std::str::FromStr;
use std::time::Duration;

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue, types};

use crate::run_list::LocalList;
use crate::{sys, trace_event};
pub(crate) use request::Request;
use slots::Slots;
pub use slots::{RingFd, RingFile};

/// Requests queued before they have to be submitted. More may be in flight.
const SUBMISSION_ENTRIES: u32 = 256;
/// Completions the kernel keeps without falling back to its overflow list.
const COMPLETION_ENTRIES: u32 = 4096;

/// From so many requests in flight on, the loop sleeps without a look. A loop that looks takes each
/// completion by itself and submits as little at once: the device then has long batches and short ones
/// in turn, and rests in between (measured: 0.9 of the throughput at a depth of 64).
const MIN_DEEP: usize = 16;

/// How long the loop sleeps while there is no room in the queue.
const AGAIN: Duration = Duration::from_millis(1);

/// The part of a request's `user_data` that is its address. Above it is a tag: a cancel that the
/// kernel takes late, when its request has completed, must not find the next one in the same place.
const ADDRESS_BITS: u64 = (1 << 48) - 1;

/// `user_data` of the entry that watches mio's descriptor. Requests have addresses there.
const EPOLL_READY: u64 = 0;
/// `user_data` of what needs no answer.
const IGNORED: u64 = 1;

/// How a context waits; see [`AioContextBuilder::wait_mode`](crate::AioContextBuilder::wait_mode).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WaitMode {
    /// In the ring while it has requests in flight, in epoll otherwise. Without io_uring, always
    /// in epoll.
    #[default]
    Auto,
    /// Always in epoll; there is no ring.
    Epoll,
    /// Always in the ring; without io_uring there is no context.
    Ring,
}

impl FromStr for WaitMode {
    type Err = io::Error;

    /// `auto`, `epoll` or `ring`; anything else is an error of the kind `InvalidInput`.
    fn from_str(name: &str) -> io::Result<WaitMode> {
        match name {
            "auto" => Ok(WaitMode::Auto),
            "epoll" => Ok(WaitMode::Epoll),
            "ring" => Ok(WaitMode::Ring),
            other => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("the wait mode is '{other}'; it can be auto, epoll or ring"),
            )),
        }
    }
}

/// The ring of one context. Home thread only.
pub(crate) struct Ring {
    uring: RefCell<IoUring>,
    epoll: RawFd,
    /// The poll entry for `epoll` is in the ring.
    watching: Cell<bool>,
    /// Requests queued or with the kernel.
    in_flight: Cell<usize>,
    /// Counts requests, for their tags.
    started: Cell<u16>,
    /// Requests that found the queue full.
    waiting: LocalList,
    /// In a test: so often there is no room.
    #[cfg(test)]
    jams: Cell<u32>,
    always: bool,
    slots: Slots,
    /// Where completions are signalled, once another loop waits for them.
    signal: OnceCell<OwnedFd>,
}

impl Ring {
    /// # Errors
    /// Whatever io_uring_setup says: no such system call, forbidden, no memory.
    pub(crate) fn new(epoll: RawFd, always: bool) -> io::Result<Rc<Ring>> {
        let uring = build()?;
        if !uring.params().is_feature_ext_arg() || !uring.params().is_feature_nodrop() {
            return Err(io::Error::from_raw_os_error(libc::ENOSYS));
        }
        tracing::debug!("using io_uring");
        let ring = Rc::new(Ring {
            uring: RefCell::new(uring),
            epoll,
            watching: Cell::new(false),
            in_flight: Cell::new(0),
            started: Cell::new(0),
            waiting: LocalList::new(),
            #[cfg(test)]
            jams: Cell::new(0),
            always,
            slots: Slots::default(),
            signal: OnceCell::new(),
        });
        Ring::register_on_thread(&ring);
        Ok(ring)
    }

    /// Whether the loop has to sleep in the ring.
    #[inline]
    pub(crate) fn is_waiter(&self) -> bool {
        self.always || self.in_flight.get() > 0 || !self.waiting.is_empty()
    }

    /// Whether so many requests are in flight that one wake-up is shared by several of them.
    #[inline]
    pub(crate) fn is_deep(&self) -> bool {
        self.in_flight.get() >= MIN_DEEP
    }

    /// Whether requests are queued or with the kernel.
    #[inline]
    pub(crate) fn has_in_flight(&self) -> bool {
        self.in_flight.get() > 0
    }

    /// Queues an entry; submits if there is no room. False if there is none even then, because
    /// completions have to be taken first, or the kernel has no memory.
    ///
    /// # Safety
    /// What the entry points to stays valid until its completion has been reaped.
    unsafe fn push(&self, entry: &squeue::Entry) -> io::Result<bool> {
        #[cfg(test)]
        if let Some(left) = self.jams.get().checked_sub(1) {
            self.jams.set(left);
            return Ok(false);
        }
        // SAFETY: passed on.
        if unsafe { self.uring.borrow_mut().submission().push(entry) }.is_ok() {
            return Ok(true);
        }
        self.enter()?;
        // SAFETY: passed on; the first attempt has kept nothing.
        Ok(unsafe { self.uring.borrow_mut().submission().push(entry) }.is_ok())
    }

    /// The `user_data` of a new request.
    #[inline]
    pub(crate) fn tagged(&self, op: *const Request) -> u64 {
        let tag = self.started.get().wrapping_add(1);
        self.started.set(tag);
        let address = op.expose_provenance() as u64;
        debug_assert_eq!(address & !ADDRESS_BITS, 0);
        address | u64::from(tag) << 48
    }

    /// From here on completions are signalled on an eventfd, for a loop that waits for descriptors. The
    /// eventfd, the first time this is called.
    pub(crate) fn signal_completions(&self) -> io::Result<Option<BorrowedFd<'_>>> {
        if self.signal.get().is_some() {
            return Ok(None);
        }
        let signal = sys::eventfd()?;
        self.uring.borrow().submitter().register_eventfd(signal.as_raw_fd())?;
        Ok(Some(self.signal.get_or_init(|| signal).as_fd()))
    }

    /// When a request that waits for room in the queue tries again, if one does.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        (!self.waiting.is_empty()).then_some(AGAIN)
    }

    /// Queues those that wait, as far as there is room.
    fn move_up(&self) {
        while let Some(node) = self.waiting.first() {
            // SAFETY: only requests are on this list, and they stay in their frames while they are.
            if !unsafe { Request::try_start(node.cast(), self) } {
                return;
            }
            self.waiting.pop();
        }
    }

    /// Whether completions wait, here or with the kernel, which then wants to be entered.
    pub(crate) fn has_completions(&self) -> bool {
        let mut uring = self.uring.borrow_mut();
        !uring.completion().is_empty() || uring.submission().taskrun()
    }

    /// Submits what is queued, and runs what the kernel has deferred to us. No system call if
    /// there is nothing of either.
    #[inline]
    pub(crate) fn submit(&self) -> io::Result<()> {
        if !self.waiting.is_empty() {
            self.move_up();
        }
        self.enter()
    }

    fn enter(&self) -> io::Result<()> {
        let mut uring = self.uring.borrow_mut();
        let nothing = {
            let queue = uring.submission();
            queue.is_empty() && !queue.taskrun() && !queue.cq_overflow()
        };
        if nothing { Ok(()) } else { settle(uring.submit()) }
    }

    /// Submits, and sleeps until something completes, mio's descriptor is ready, or time is up.
    pub(crate) fn sleep(&self, timeout: Option<Duration>) -> io::Result<()> {
        if !self.watching.get() {
            let watch = opcode::PollAdd::new(types::Fd(self.epoll), libc::POLLIN as u32)
                .build()
                .user_data(EPOLL_READY);
            // SAFETY: the entry points to nothing.
            self.watching.set(unsafe { self.push(&watch)? });
        }
        if !self.waiting.is_empty() {
            self.move_up();
        }
        // Without a watch, or with a request that no completion may make room for, it has to try
        // again by itself.
        let is_jammed = !self.watching.get() || !self.waiting.is_empty();
        let timeout =
            if is_jammed { Some(timeout.map_or(AGAIN, |it| it.min(AGAIN))) } else { timeout };
        let uring = self.uring.borrow();
        match timeout {
            None => settle(uring.submit_and_wait(1)),
            Some(timeout) => {
                let timespec = Timespec::from(timeout);
                let args = SubmitArgs::new().timespec(&timespec);
                settle(uring.submitter().submit_with_args(1, &args))
            }
        }
    }

    /// Takes all completions; each puts its request on `list`. Returns whether mio's descriptor
    /// may be ready.
    #[inline]
    pub(crate) fn reap(&self, list: &LocalList) -> bool {
        let mut epoll_ready = false;
        let mut uring = self.uring.borrow_mut();
        for entry in uring.completion() {
            match entry.user_data() {
                EPOLL_READY => {
                    self.watching.set(false);
                    epoll_ready = true;
                }
                IGNORED => {}
                address => {
                    self.in_flight.set(self.in_flight.get() - 1);
                    trace_event!("luring_process_completion", result = entry.result());
                    let address = (address & ADDRESS_BITS) as usize;
                    let op = std::ptr::with_exposed_provenance_mut::<Request>(address);
                    // SAFETY: the address was put there by a request that is queued, whose frame stays
                    // until the request has been reaped and the node is off its list. Each
                    // completion comes once, so the node is on no list yet.
                    unsafe { Request::complete(NonNull::new_unchecked(op), entry.result(), list) };
                }
            }
        }
        epoll_ready
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.unregister_all();
    }
}

/// Full and interrupted are no errors: the loop comes back.
fn settle(result: io::Result<usize>) -> io::Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(error) => match error.raw_os_error() {
            Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
            _ => Err(error),
        },
    }
}

/// The best ring this kernel gives: first one whose completions are run when we ask and not in
/// the middle of something else (Linux 6.1), then a plain one.
fn build() -> io::Result<IoUring> {
    IoUring::builder()
        .setup_cqsize(COMPLETION_ENTRIES)
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .build(SUBMISSION_ENTRIES)
        .or_else(|_| IoUring::builder().setup_cqsize(COMPLETION_ENTRIES).build(SUBMISSION_ENTRIES))
}

/// A descriptor, as the ring takes it.
pub(crate) fn fd(fd: BorrowedFd<'_>) -> types::Fd {
    types::Fd(fd.as_raw_fd())
}
