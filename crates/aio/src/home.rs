//! The half of a context that other threads see: its remote list and the wake-up.
//!
//! # How a sleeping loop is woken, and an awake one is not disturbed
//!
//! ```text
//! any thread                                home thread
//! ----------                                -----------
//! push(node)                 (a)            state |= SLEEPING              (c)
//! if state is SLEEPING       (b)            if NOTIFIED or list not empty  (d)
//!     state |= WOKEN                             do not block
//!     write the eventfd                     else block in epoll
//!                                           state = 0          "accept notifications"
//! ```
//!
//! All four are sequentially consistent. Either (b) sees (c), and the eventfd is written, or (d)
//! sees (a), and the loop does not block. The bits make sure that of many threads that see
//! `SLEEPING` one writes the eventfd (contract: C43).
//!
//! Both may happen: the loop sees the node, and the eventfd is written all the same, perhaps much
//! later. It then ends some later sleep for nothing. So a loop that was woken, has not been
//! notified ([`Home::notify`]) and finds nothing to do goes back to sleep (`poll.rs`).
//!
//! `models/remote_list.rs` runs this file in every order of two threads and the loop.

use std::cell::Cell;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::loom::{AtomicU8, Ordering, model_fence};
use crate::run_list::{LocalList, Node, RemoteList};
use crate::sys::OwnProcess;
use crate::trace_event;
use crate::waiting::{Place, WakeStamp};

/// The home thread has announced that it is about to sleep, or sleeps.
const SLEEPING: u8 = 1;
/// The loop was asked not to block, or to wake up.
const NOTIFIED: u8 = 2;
/// A thread has put a node on the list, and wakes the loop for that.
const WOKEN: u8 = 4;

/// What ends the sleep of a loop: an eventfd, except in models.
pub(crate) trait Kick {
    fn kick(&self) -> io::Result<()>;
}

impl Kick for mio::Waker {
    fn kick(&self) -> io::Result<()> {
        self.wake()
    }
}

/// Cross-thread state of one context. Outlives the context while handles exist.
pub(crate) struct Home<K = mio::Waker> {
    remote: RemoteList,
    state: AtomicU8,
    /// Set once, by the home thread, when the list will not be served any more.
    closed: AtomicU8,
    waker: K,
    /// When the loop was last woken, and from where.
    pub(crate) woken: WakeStamp,
    /// Where the loop runs: published by the home thread.
    pub(crate) place: Place,
    /// Where the worker runs that last took a job of this context: published by the worker.
    pub(crate) worker: Place,
    /// Where the thread ran that last [scheduled](Home::schedule) something: published by that thread.
    pub(crate) poster: Place,
    home_thread: ThreadToken,
    process: OwnProcess,
    pub(crate) name: String,
}

impl<K: Kick> Home<K> {
    pub(crate) fn new(name: String, waker: K) -> Home<K> {
        Home {
            remote: RemoteList::new(),
            state: AtomicU8::new(0),
            closed: AtomicU8::new(0),
            waker,
            woken: WakeStamp::new(),
            place: Place::new(),
            worker: Place::new(),
            poster: Place::new(),
            home_thread: ThreadToken::current(),
            process: OwnProcess::new(),
            name,
        }
    }

    #[inline]
    pub(crate) fn is_home_thread(&self) -> bool {
        self.home_thread == ThreadToken::current()
    }

    /// Whether the caller's process is the one that made the context.
    #[inline]
    pub(crate) fn is_own_process(&self) -> bool {
        self.process.is_here()
    }

    /// # Panics
    /// In a process that was forked from the one that made the context.
    #[inline]
    #[track_caller]
    pub(crate) fn assert_own_process(&self) {
        if !self.is_own_process() {
            self.used_after_fork();
        }
    }

    /// Apart, so that nothing is read for it before it is needed.
    #[cold]
    #[track_caller]
    fn used_after_fork(&self) {
        self.process.assert_here("context", &self.name);
    }

    /// Schedules a node from any thread; wakes the loop only if it sleeps. Whether it slept, as of a moment.
    ///
    /// Takes an `Arc`, because the node's owner, and with it the last handle to this context, may
    /// be gone as soon as the node is on the list.
    ///
    /// # Safety
    /// The rule of `run_list.rs`.
    pub(crate) unsafe fn schedule(self: &Arc<Self>, node: NonNull<Node>) -> bool {
        self.assert_own_process();
        self.poster.publish();
        // SAFETY: passed on.
        unsafe { self.remote.push(node) };
        model_fence();
        // The compare-exchange fails if another thread wakes the loop, or if it is awake: it will
        // look at the list before it sleeps again.
        let state = self.state.load(Ordering::SeqCst);
        if state == SLEEPING {
            let (success, failure) = (Ordering::SeqCst, Ordering::Relaxed);
            let woken = SLEEPING | WOKEN;
            if self.state.compare_exchange(SLEEPING, woken, success, failure).is_ok() {
                self.kick();
            }
        }
        // The context may have ended between the caller's look and our push; then nothing else
        // will take the node. The thread that swaps the list out owns what was on it, so two threads that
        // both come here do not meet.
        if self.closed.load(Ordering::SeqCst) != 0 {
            self.discard_all();
        }
        state & SLEEPING != 0
    }

    /// Makes the loop return from, or not enter, its wait.
    pub(crate) fn notify(&self) {
        self.assert_own_process();
        let before = self.state.fetch_or(NOTIFIED, Ordering::SeqCst);
        if before == SLEEPING {
            self.kick();
        }
    }

    /// Writes the eventfd.
    fn kick(&self) {
        trace_event!("aio_notify", context = %self.name);
        self.woken.set();
        // It fails only when the descriptor is broken, and then the loop's own wait reports it.
        let _ = self.waker.kick();
    }

    /// Announces sleep. Returns false if the loop must not block.
    pub(crate) fn prepare_sleep(&self) -> bool {
        let before = self.state.fetch_or(SLEEPING, Ordering::SeqCst);
        model_fence();
        before & NOTIFIED == 0 && self.remote.is_empty()
    }

    /// After the wait, or instead of it: awake, and all notifications accepted. Returns whether
    /// [`notify`](Self::notify) was called.
    pub(crate) fn accept_notifications(&self) -> bool {
        // A swap and not a store: it reads the notifications that it takes back, so all that was
        // done before them is seen by the phases that follow.
        self.state.load(Ordering::Relaxed) != 0
            && self.state.swap(0, Ordering::SeqCst) & NOTIFIED != 0
    }

    /// Moves what other threads scheduled to the end of `target`.
    #[inline]
    pub(crate) fn take_remote(&self, target: &LocalList) {
        self.remote.take_all(target);
    }

    #[inline]
    pub(crate) fn has_remote(&self) -> bool {
        !self.remote.is_empty()
    }

    /// Whether there is a reason not to sleep.
    #[inline]
    pub(crate) fn has_work(&self) -> bool {
        self.state.load(Ordering::Relaxed) & NOTIFIED != 0 || self.has_remote()
    }

    /// From now on what is scheduled is discarded.
    pub(crate) fn close(&self) {
        self.closed.store(1, Ordering::SeqCst);
        model_fence();
        self.discard_all();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst) != 0
    }

    fn discard_all(&self) {
        // `is_empty` is sequentially consistent: a push that did not see `closed` is seen here.
        while !self.remote.is_empty() {
            let list = LocalList::new();
            self.remote.take_all(&list);
            list.discard_all(&self.name);
        }
    }
}

/// A thread's identity, never reused, at the price of one thread-local load.
#[derive(Clone, Copy, PartialEq, Eq)]
struct ThreadToken(u64);

impl ThreadToken {
    #[inline]
    fn current() -> ThreadToken {
        thread_local! { static TOKEN: Cell<u64> = const { Cell::new(0) } }
        static NEXT: AtomicU64 = AtomicU64::new(1);
        TOKEN.with(|token| {
            if token.get() == 0 {
                token.set(NEXT.fetch_add(1, Ordering::Relaxed));
            }
            ThreadToken(token.get())
        })
    }
}

/// Pause of the cold loop that waits for another thread to finish handing over a node.
pub(crate) const HANDOVER_PAUSE: Duration = Duration::from_micros(20);
