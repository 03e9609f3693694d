//! Requests in flight, and drains: the door through which every request enters a node.
//!
//! A [`BlockBackend`](crate::BlockBackend) belongs to one context, so it counts its own requests
//! with plain loads and stores. A drain may come from any context. It raises `drains`, and then
//! asks every other context that has a backend here to pass through its own loop once. After that
//! each of them has seen `drains`, so new requests wait at the gate, and the counters are settled.
//! So a request pays for drains with one load, and no atomic read-modify-write.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coblk_aio::{AioHandle, Co, CoWaker, trace_event};

/// Requests in flight of one backend. Written by its home thread alone.
#[derive(Default)]
pub(crate) struct InFlight(AtomicUsize);

impl InFlight {
    #[inline]
    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    #[inline]
    fn add(&self, change: isize) -> usize {
        // One writer: no read-modify-write is needed.
        let count = self.0.load(Ordering::Relaxed).wrapping_add_signed(change);
        self.0.store(count, Ordering::Release);
        count
    }
}

/// One backend on a gate.
struct Member {
    in_flight: Arc<InFlight>,
    home: AioHandle,
}

#[derive(Default)]
struct State {
    members: Vec<Member>,
    /// Requests that came during a drain, oldest first.
    held: VecDeque<CoWaker>,
    /// Drains that wait for requests in flight.
    drainers: Vec<CoWaker>,
}

/// The door of one node.
#[derive(Default)]
pub(crate) struct Gate {
    /// Drained sections that are open. Changed under the lock, read without it.
    drains: AtomicUsize,
    state: Mutex<State>,
}

impl Gate {
    /// A gate inside `drains` drained sections that are open already (contract: C77).
    pub(crate) fn new(drains: usize) -> Gate {
        Gate { drains: AtomicUsize::new(drains), state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline]
    pub(crate) fn is_draining(&self) -> bool {
        self.drains.load(Ordering::SeqCst) > 0
    }

    pub(crate) fn join(&self, home: AioHandle) -> Arc<InFlight> {
        let in_flight = Arc::new(InFlight::default());
        self.lock().members.push(Member { in_flight: Arc::clone(&in_flight), home });
        in_flight
    }

    pub(crate) fn leave(&self, in_flight: &Arc<InFlight>) {
        self.lock().members.retain(|member| !Arc::ptr_eq(&member.in_flight, in_flight));
    }

    /// Lets a request in, after waiting for the end of any drain (contract: C76).
    #[inline]
    pub(crate) fn enter<'a>(&'a self, co: &Co<'_>, in_flight: &'a InFlight) -> Request<'a> {
        if self.is_draining() {
            self.wait_for_drain_end(co);
        }
        in_flight.add(1);
        Request { gate: self, in_flight }
    }

    #[cold]
    fn wait_for_drain_end(&self, co: &Co<'_>) {
        while self.is_draining() {
            trace_event!("blk_wait_while_drained");
            co.suspend_for("the end of a drain", |waker| {
                let mut state = self.lock();
                // Looked at again under the lock that the end of a drain takes.
                if self.is_draining() {
                    state.held.push_back(waker);
                } else {
                    drop(state);
                    co.context().schedule(move |_| waker.wake());
                }
            });
        }
    }

    /// Opens a drained section; `on_first` runs if no other is open (contract: C77).
    pub(crate) fn begin_drain(&self, on_first: impl FnOnce()) {
        let _state = self.lock();
        if self.drains.fetch_add(1, Ordering::SeqCst) == 0 {
            on_first();
        }
    }

    /// Closes a drained section. If it was the last, runs `on_last`, and then lets the held
    /// requests go on (contract: C76, C77).
    pub(crate) fn end_drain(&self, on_last: impl FnOnce()) {
        let held = {
            let mut state = self.lock();
            if self.drains.load(Ordering::SeqCst) > 1 {
                self.drains.fetch_sub(1, Ordering::SeqCst);
                return;
            }
            // Still closed: a request that goes on must find the driver running.
            on_last();
            self.drains.store(0, Ordering::SeqCst);
            std::mem::take(&mut state.held)
        };
        wake_all(held);
    }

    /// Waits until nothing is in flight. Call between `begin_drain` and `end_drain`.
    pub(crate) fn wait_until_idle(&self, co: &Co<'_>) {
        self.let_all_contexts_see(co);
        loop {
            let mut state = self.lock();
            if state.members.iter().all(|member| member.in_flight.count() == 0) {
                return;
            }
            // The lock is held until the waker is stored: a request that ends meanwhile finds it.
            co.suspend_for("requests in flight", |waker| {
                state.drainers.push(waker);
                drop(state);
            });
        }
    }

    fn let_all_contexts_see(&self, co: &Co<'_>) {
        let others: Vec<AioHandle> = self
            .lock()
            .members
            .iter()
            .filter(|member| !member.home.is_home_thread())
            .map(|member| member.home.clone())
            .collect();
        for home in others.into_iter().filter(|home| !home.is_closed()) {
            co.suspend_for("another context", |waker| {
                let seen = Seen { waker: Some(waker), drainer: co.context().handle() };
                home.schedule(move |_| seen.tell());
            });
        }
    }
}

/// The answer of another context that a drain waits for. If that context ends instead, and so
/// drops this, that is an answer too: no request of it can come any more.
struct Seen {
    waker: Option<CoWaker>,
    drainer: AioHandle,
}

impl Seen {
    fn tell(mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Drop for Seen {
    fn drop(&mut self) {
        if let Some(waker) = self.waker.take() {
            // Perhaps inside the very call that is about to suspend, which may not wake itself.
            self.drainer.schedule(move |_| waker.wake());
        }
    }
}

/// A request in flight; it ends when this is dropped.
pub(crate) struct Request<'a> {
    gate: &'a Gate,
    in_flight: &'a InFlight,
}

impl Drop for Request<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.in_flight.add(-1) == 0 && self.gate.is_draining() {
            wake_drainers(self.gate);
        }
    }
}

#[cold]
fn wake_drainers(gate: &Gate) {
    let drainers = std::mem::take(&mut gate.lock().drainers);
    wake_all(drainers);
}

/// Wakes all. A coroutine that runs at once may panic, which must not cost the others their wake;
/// its panic goes on afterwards.
pub(crate) fn wake_all(wakers: impl IntoIterator<Item = CoWaker>) {
    let mut first_panic = None;
    for waker in wakers {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| waker.wake())) {
            first_panic.get_or_insert(panic);
        }
    }
    match first_panic {
        None => {}
        // This runs in destructors, and a second panic there would end the process.
        Some(_) if std::thread::panicking() => {
            tracing::error!("a request panicked when a drain ended during a panic");
        }
        Some(panic) => resume_unwind(panic),
    }
}
