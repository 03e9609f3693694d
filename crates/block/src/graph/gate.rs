//! Requests in flight, and drains: the door through which every request enters a node.
//!
//! A [`BlockBackend`](crate::BlockBackend) belongs to one context, so it counts its own requests
//! with plain loads and stores. A drain may come from any context. It closes the gate, and then
//! asks every other context that has a backend here to pass through its own loop once. After that
//! each of them has seen it closed, so new requests wait at the gate, and the counters are settled.
//! So a request pays for drains with one load, and no atomic read-modify-write.
//!
//! When a gate is closed and opened is for the graph to say (`graph/mod.rs`).

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coblk_aio::{AioHandle, Co, CoWaker, trace_event};

/// How long a change waits for requests that are in its way: then it fails, and has changed nothing,
/// so that a disk that does not answer stops no change of others for good.
pub const WAIT_LIMIT: Duration = Duration::from_secs(10);

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
    /// A drain holds.
    quiesced: bool,
    members: Vec<Member>,
    /// Requests that came during a drain, oldest first.
    held: VecDeque<CoWaker>,
    /// Drains that wait for requests in flight.
    drainers: Vec<CoWaker>,
    /// A driver's own I/O that is paused, and not counted until the gate opens.
    paused: Vec<u64>,
    /// The number of the next such.
    next_pause: u64,
}

/// The door of one node.
#[derive(Default)]
pub(crate) struct Gate {
    /// Requests do not pass: a drain holds, or the node is shut. Changed under the lock, read without it.
    closed: AtomicBool,
    /// The errno of requests to a node that is shut, or 0. Changed under the lock.
    shut: AtomicI32,
    /// A driver's own I/O, on any thread.
    own: AtomicUsize,
    state: Mutex<State>,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline]
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    pub(crate) fn join(&self, home: AioHandle) -> Arc<InFlight> {
        let in_flight = Arc::new(InFlight::default());
        self.lock().members.push(Member { in_flight: Arc::clone(&in_flight), home });
        in_flight
    }

    /// How many requests of backends, and how much of the driver's own I/O, are in flight as of a moment.
    pub(crate) fn in_flight(&self) -> usize {
        let requests =
            self.lock().members.iter().map(|member| member.in_flight.count()).sum::<usize>();
        requests + self.own.load(Ordering::SeqCst)
    }

    /// A backend leaves. Its requests that wait here go on, and look again where they belong; so
    /// do others, and come back.
    pub(crate) fn leave(&self, in_flight: &Arc<InFlight>) {
        let held = {
            let mut state = self.lock();
            state.members.retain(|member| !Arc::ptr_eq(&member.in_flight, in_flight));
            std::mem::take(&mut state.held)
        };
        wake_all(held);
    }

    /// Counts a request in. The gate is open, or the drain that closed it makes this request.
    #[inline]
    pub(crate) fn count_in(&self, in_flight: &InFlight) {
        in_flight.add(1);
    }

    /// Counts a request out.
    #[inline]
    pub(crate) fn count_out(&self, in_flight: &InFlight) {
        if in_flight.add(-1) == 0 && self.is_closed() {
            self.wake_drainers();
        }
    }

    /// Counts a driver's own I/O in.
    pub(crate) fn enter_own(&self) {
        self.own.fetch_add(1, Ordering::SeqCst);
    }

    /// [`enter_own`](Self::enter_own) at an open gate. Counted first and looked at then, while a
    /// drain closes first and counts then: one of the two sees the other.
    pub(crate) fn co_begin_own(&self, co: &Co<'_>) {
        loop {
            self.enter_own();
            if !self.is_closed() || !self.lock().quiesced {
                return;
            }
            self.leave_own();
            self.wait_until_open(co);
        }
    }

    /// Counts a driver's own I/O out.
    pub(crate) fn leave_own(&self) {
        if self.own.fetch_sub(1, Ordering::SeqCst) == 1 && self.is_closed() {
            self.wake_drainers();
        }
    }

    /// Counts a driver's own I/O out until the gate opens, and waits for that. It is counted in again by the opening
    /// itself, so that no drain that begins then misses it.
    #[cold]
    pub(crate) fn co_pause_own(&self, co: &Co<'_>, pauses: impl FnOnce()) {
        let Some(pause) = self.begin_pause(pauses) else { return };
        while !pause.is_over() {
            self.wait_until_open(co);
        }
    }

    /// `None` at an open gate.
    fn begin_pause(&self, pauses: impl FnOnce()) -> Option<Pause<'_>> {
        let mut state = self.lock();
        if !state.quiesced {
            return None;
        }
        pauses();
        let number = state.next_pause;
        state.next_pause += 1;
        state.paused.push(number);
        drop(state);
        self.leave_own();
        Some(Pause { gate: self, number })
    }

    /// Whether, as of a moment, a drain waits for this much of the driver's own I/O and for nothing else. Requests that
    /// have not seen the gate close are counted when this returns.
    pub(crate) fn co_has_only(&self, co: &Co<'_>, own: usize) -> bool {
        self.let_all_contexts_see(co);
        self.is_quiesced() && self.in_flight() == own
    }

    /// Has the drains that wait for the gate to be idle look again.
    #[cold]
    pub(crate) fn wake_drainers(&self) {
        let drainers = std::mem::take(&mut self.lock().drainers);
        wake_all(drainers);
    }

    /// Waits until the gate has opened. It may be closed again by then, or the wrong one (contract:
    /// C76).
    #[cold]
    pub(crate) fn wait_until_open(&self, co: &Co<'_>) {
        trace_event!("blk_wait_while_drained");
        co.suspend_for("the end of a drain", |waker| {
            let mut state = self.lock();
            // Looked at again under the lock that opening takes.
            if state.quiesced {
                state.held.push_back(waker);
            } else {
                drop(state);
                co.context().schedule(move |_| waker.wake());
            }
        });
    }

    /// From here on requests wait.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.quiesced = true;
        self.closed.store(true, Ordering::SeqCst);
    }

    /// Requests may come in again. Those that wait are for the caller to wake.
    pub(crate) fn open(&self) -> VecDeque<CoWaker> {
        let mut state = self.lock();
        state.quiesced = false;
        // Before any other drain can begin.
        self.own.fetch_add(std::mem::take(&mut state.paused).len(), Ordering::SeqCst);
        self.closed.store(self.shut.load(Ordering::SeqCst) != 0, Ordering::SeqCst);
        std::mem::take(&mut state.held)
    }

    /// From here on requests fail with an errno; 0 ends that. A driver's own I/O is the driver's
    /// affair. Requests that wait are for the caller to wake.
    pub(crate) fn shut(&self, errno: i32) -> VecDeque<CoWaker> {
        let mut state = self.lock();
        self.shut.store(errno, Ordering::SeqCst);
        self.closed.store(state.quiesced || errno != 0, Ordering::SeqCst);
        std::mem::take(&mut state.held)
    }

    /// Why requests to a node that is shut fail.
    #[cold]
    pub(crate) fn refusal(&self) -> Option<io::Error> {
        match self.shut.load(Ordering::SeqCst) {
            0 => None,
            errno => Some(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Waits until nothing is in flight, or the wait is over. The gate is closed. Returns whether
    /// nothing is in flight. The
    /// caller has [`wake_drainers`](Self::wake_drainers) called when it is over.
    pub(crate) fn wait_until_idle(&self, co: &Co<'_>, is_over: impl Fn() -> bool) -> bool {
        self.let_all_contexts_see(co);
        loop {
            let mut state = self.lock();
            let own = self.own.load(Ordering::SeqCst);
            if own == 0 && state.members.iter().all(|member| member.in_flight.count() == 0) {
                return true;
            }
            if is_over() {
                return false;
            }
            // The lock is held until the waker is stored: a request that ends meanwhile finds it.
            co.suspend_for("requests in flight", |waker| {
                state.drainers.push(waker);
                drop(state);
            });
        }
    }

    /// Whether a drain holds.
    pub(crate) fn is_quiesced(&self) -> bool {
        self.lock().quiesced
    }

    /// Whether the gate is closed for a drain and no request of a backend is in flight. To be relied on
    /// after the drain has waited.
    pub(crate) fn is_idle(&self) -> bool {
        let state = self.lock();
        state.quiesced && state.members.iter().all(|member| member.in_flight.count() == 0)
    }

    fn let_all_contexts_see(&self, co: &Co<'_>) {
        let others: Vec<AioHandle> = self
            .lock()
            .members
            .iter()
            .filter(|member| !member.home.is_home_thread())
            .map(|member| member.home.clone())
            .collect();
        co_visit_all(co, &others);
    }
}

/// A driver's own I/O that is not counted while the gate is closed. If it is dropped before, with its coroutine, it is
/// counted in again.
struct Pause<'a> {
    gate: &'a Gate,
    number: u64,
}

impl Pause<'_> {
    fn is_over(&self) -> bool {
        !self.gate.lock().paused.contains(&self.number)
    }
}

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        if let Some(at) = state.paused.iter().position(|it| *it == self.number) {
            state.paused.swap_remove(at);
            self.gate.own.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Has `visit` run on the thread of another context, and waits for that. If that context has ended,
/// there is nothing to visit.
pub(crate) fn co_visit(co: &Co<'_>, home: &AioHandle, visit: impl FnOnce() + Send + 'static) {
    if home.is_closed() {
        return;
    }
    if home.is_home_thread() {
        return visit();
    }
    co.suspend_for("another context", |waker| {
        let seen = Seen { waker: Some(waker), drainer: co.context().handle() };
        home.schedule(move |_| {
            visit();
            seen.tell();
        });
    });
}

/// Has each of these contexts go through its loop once, all at the same time, and waits for that. Those of
/// this thread need not, and those that have ended cannot.
pub(crate) fn co_visit_all(co: &Co<'_>, homes: &[AioHandle]) {
    let is_other = |home: &&AioHandle| !home.is_home_thread() && !home.is_closed();
    let others: Vec<&AioHandle> = homes.iter().filter(is_other).collect();
    if others.is_empty() {
        return;
    }
    co.suspend_for("other contexts", |waker| {
        // The last of them to drop it wakes.
        let seen = Arc::new(Seen { waker: Some(waker), drainer: co.context().handle() });
        for home in others {
            let seen = Arc::clone(&seen);
            home.schedule(move |_| drop(seen));
        }
    });
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
