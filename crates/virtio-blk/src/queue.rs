//! One running queue of the device, from its start to its end: its rings, its requests in flight, its
//! two bottom halves.
//!
//! How requests get in is in `device.rs`, how answers get out in `completion.rs`.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use coblk_aio::{
    AioContext, BottomHalf, BusyPoll, Co, CoWaker, EventHandler, EventNotifier, FdInterest, Wanted,
};

use crate::chain::Chain;
use crate::dirty::QueueLog;
use crate::interrupt::Interrupt;
use crate::kind::BlkStatus;
use crate::memory::GuestMap;
use crate::pace::Pace;
use crate::request::PendingRequest;
use crate::ring::Ring;
use crate::shared::{Shared, Stopping};
use crate::unanswered::{PausedQueue, StoppedAt};
use crate::virtqueue::VirtqueueError;

/// What a queue does with kicks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It takes requests.
    Running,
    /// It only lets those in flight finish.
    Stopping,
    /// The driver broke the rules; it takes nothing any more. Those in flight still finish.
    Broken,
}

/// One queue of a device, from its start to the end of its last request. Home thread only.
pub(crate) struct DeviceQueue {
    index: u16,
    pub(crate) shared: Rc<Shared>,
    /// Keeps the memory mapped for as long as a request may touch it.
    pub(crate) mem: GuestMap,
    pub(crate) ring: RefCell<Ring>,
    /// Room for the chain that is being parsed; away while it is in use.
    pub(crate) chain: Cell<Chain>,
    /// When so many are done during a kick, they are published before its end.
    pub(crate) early_at: Cell<u16>,
    pub(crate) pace: Pace,
    /// A kick is being handled. It publishes what is done at its end.
    pub(crate) in_kick: Cell<bool>,
    phase: Cell<Phase>,
    error: RefCell<Option<VirtqueueError>>,
    pub(crate) in_flight: Cell<usize>,
    pub(crate) interrupt: RefCell<Rc<Interrupt>>,
    kick_bh: BottomHalf,
    pub(crate) completion_bh: BottomHalf,
    notifier: RefCell<Option<EventHandler>>,
    /// The loop looks at the ring by itself, so the driver need not kick.
    pub(crate) is_polled: Cell<bool>,
    /// Coroutines that wait until nothing is in flight.
    waiters: RefCell<Vec<CoWaker>>,
    /// Heads that were taken, and that the backend has given back. What becomes of them is decided
    /// when the queue has ended.
    put_back: RefCell<Vec<u16>>,
    /// The driver waits for what its requests do.
    pub(crate) wanted: Wanted,
    /// The device was dropped with requests in flight.
    abandoned: Cell<bool>,
    /// Until they have ended the backend holds nothing.
    giving_back: Cell<Option<Stopping>>,
}

impl DeviceQueue {
    pub(crate) fn new(
        ctx: &AioContext,
        index: u16,
        shared: &Rc<Shared>,
        mem: GuestMap,
        ring: Ring,
        interrupt: Interrupt,
    ) -> Rc<DeviceQueue> {
        Rc::new_cyclic(|me: &Weak<DeviceQueue>| {
            let bottom_half = |name, callback: fn(&Rc<DeviceQueue>, &AioContext)| {
                let me = Weak::clone(me);
                ctx.bottom_half(name, move |ctx| {
                    if let Some(queue) = me.upgrade() {
                        callback(&queue, ctx);
                    }
                })
            };
            DeviceQueue {
                index,
                shared: Rc::clone(shared),
                mem,
                ring: RefCell::new(ring),
                chain: Cell::default(),
                early_at: Cell::new(u16::MAX),
                pace: Pace::default(),
                in_kick: Cell::new(false),
                phase: Cell::new(Phase::Running),
                error: RefCell::new(None),
                in_flight: Cell::new(0),
                interrupt: RefCell::new(Rc::new(interrupt)),
                kick_bh: bottom_half("virtio-blk-kick", DeviceQueue::handle_output),
                completion_bh: bottom_half("virtio-blk-completion", |queue, ctx| {
                    queue.raise_interrupt(ctx);
                }),
                notifier: RefCell::new(None),
                is_polled: Cell::new(false),
                waiters: RefCell::new(Vec::new()),
                put_back: RefCell::default(),
                wanted: Wanted::new(),
                abandoned: Cell::new(false),
                giving_back: Cell::new(None),
            }
        })
    }

    pub(crate) fn index(&self) -> u16 {
        self.index
    }

    pub(crate) fn device_name(&self) -> &str {
        &self.shared.config.name
    }

    pub(crate) fn set_interrupt(&self, interrupt: Interrupt) {
        self.interrupt.replace(Rc::new(interrupt));
    }

    /// From now on what is written is marked in `log`, or nowhere: also by requests that are in flight.
    pub(crate) fn set_dirty_log(&self, log: Option<&QueueLog>) {
        self.ring.borrow_mut().set_dirty_log(log);
        let data = log.filter(|it| it.data).map(|it| Arc::clone(&it.log));
        self.mem.set_log(data);
    }

    pub(crate) fn kick_bh(&self) -> &BottomHalf {
        &self.kick_bh
    }

    pub(crate) fn is_running(&self) -> bool {
        self.phase.get() == Phase::Running
    }

    pub(crate) fn error_message(&self) -> Option<String> {
        self.error.borrow().as_ref().map(ToString::to_string)
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    /// Takes kicks from `notifier` too, until the queue stops.
    pub(crate) fn watch(
        self: &Rc<Self>,
        ctx: &AioContext,
        notifier: &EventNotifier,
    ) -> std::io::Result<()> {
        self.unwatch();
        // A descriptor of our own, so that the caller may close its own.
        let own = Rc::new(notifier.try_clone()?);
        let kicked = Rc::clone(&own);
        let me = Rc::downgrade(self);
        let on_kick = Weak::clone(&me);
        let callback = move |ctx: &AioContext, _| {
            if kicked.test_and_clear().unwrap_or(true)
                && let Some(queue) = on_kick.upgrade()
            {
                queue.handle_output(ctx);
            }
        };
        let handler = ctx.polled_fd_handler(own, FdInterest::Read, callback, QueuePoll(me))?;
        self.notifier.replace(Some(handler));
        Ok(())
    }

    fn unwatch(&self) {
        drop(self.notifier.take());
    }

    /// The driver is asked not to kick, from now on until [`end_polling`](Self::end_polling).
    fn begin_polling(&self) {
        if self.is_running() {
            self.is_polled.set(true);
            let ring = self.ring.borrow();
            // A ring that cannot be accessed is found out when it is looked at next.
            let _ = ring.map(&self.mem).and_then(|rings| ring.disable_notification(&rings));
        }
    }

    /// The ring is not looked at any more unless the driver kicks.
    fn end_polling(&self) {
        if self.is_polled.replace(false) && self.is_running() {
            let ring = self.ring.borrow();
            let enabled = ring.map(&self.mem).and_then(|rings| ring.enable_notification(&rings));
            drop(ring);
            match enabled {
                Ok(false) => {}
                // Came before we asked for a kick, so none may come.
                Ok(true) => self.kick_bh.schedule(),
                Err(error) => self.fail(error),
            }
        }
    }

    /// Whether something is available. A ring that is in disorder has it too: taking it finds that.
    fn is_busy(&self) -> bool {
        let ring = self.ring.borrow();
        // During a kick the outer call looks itself.
        self.is_running()
            && !self.in_kick.get()
            && ring.map(&self.mem).and_then(|it| ring.available(&it)).ok() != Some(0)
    }

    /// Takes no more requests, and waits for those in flight; those that the backend holds come
    /// back.
    fn co_end(&self, co: &Co<'_>) {
        self.unwatch();
        if self.phase.get() == Phase::Running {
            self.phase.set(Phase::Stopping);
        }
        let stopping = self.shared.begin_stop();
        while self.in_flight.get() > 0 {
            co.suspend_with(|waker| self.waiters.borrow_mut().push(waker));
        }
        drop(stopping);
    }

    /// Ends the queue. Returns where to go on.
    pub(crate) fn co_stop(&self, co: &Co<'_>) -> StoppedAt {
        self.co_end(co);
        self.settle();
        // The last interrupts, before the driver is told that the queue has stopped.
        self.raise_interrupt(co.context());
        self.ring.borrow().stopped_at()
    }

    /// [`co_stop`](Self::co_stop) when the driver has gone. A request that goes on in pieces comes back behind the
    /// piece at hand, as those do that the backend holds.
    pub(crate) fn co_give_up(&self, co: &Co<'_>) -> StoppedAt {
        // Before anything else runs: what comes back finds a queue that stops.
        self.wanted.give_up();
        self.co_stop(co)
    }

    /// Ends the queue, to go on with it.
    pub(crate) fn co_pause(&self, co: &Co<'_>) -> PausedQueue {
        self.co_end(co);
        self.raise_interrupt(co.context());
        self.ring.borrow_mut().pause(self.put_back.take())
    }

    /// Ends the queue because the driver resets.
    pub(crate) fn co_forget(&self, co: &Co<'_>) {
        self.co_end(co);
        self.put_back.take();
        if let Err(error) = self.ring.borrow_mut().forget() {
            tracing::error!(queue = self.index, %error, "the log of requests is not cleared");
        }
    }

    /// The device was dropped: takes no more requests. Those in flight are answered when
    /// they end; those that the backend holds come back at once.
    pub(crate) fn abandon(&self) {
        if self.phase.get() == Phase::Running {
            self.phase.set(Phase::Stopping);
        }
        self.unwatch();
        self.abandoned.set(true);
        let stopping = self.shared.begin_stop();
        if self.in_flight.get() > 0 {
            self.giving_back.set(Some(stopping));
        } else {
            self.settle();
        }
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.get()
    }

    /// Nothing is in flight, and nothing will be. Heads that the next device cannot find are
    /// answered.
    fn settle(&self) {
        if self.phase.get() != Phase::Stopping {
            return;
        }
        let put_back = self.put_back.take();
        let outcome = self.ring.borrow_mut().stop(&self.mem, put_back);
        let failed = outcome.and_then(|heads| self.fail_requests(&heads));
        if let Err(error) = failed {
            // It was accessible when the queue started, so this does not happen.
            tracing::error!(queue = self.index, %error, "requests are lost");
        }
    }

    /// Answers requests that will not be served, with an I/O error.
    fn fail_requests(&self, heads: &[u16]) -> Result<(), VirtqueueError> {
        let mut chain = self.chain.take();
        for &head in heads {
            tracing::warn!(
                device = self.device_name(),
                queue = self.index,
                head,
                "a request that was held fails: its queue stops, and later ones were answered"
            );
            // The chain was followed before. A driver that has changed it gets its head back.
            let walked = self.ring.borrow().walk(&self.mem, head, &mut chain);
            let status = walked.ok().and_then(|()| chain.take_status());
            if let Some(place) = status {
                self.write_status(place, BlkStatus::IoErr);
            }
            let answer = (head, u32::from(status.is_some()));
            self.ring.borrow_mut().push_all(&self.mem, std::iter::once(answer))?;
        }
        self.chain.set(chain);
        self.publish();
        Ok(())
    }

    /// After the backend has given a request back: false if this queue stops, and so takes it back
    /// too. Otherwise waits while others do.
    #[cold]
    pub(crate) fn co_goes_on(&self, co: &Co<'_>) -> bool {
        while self.is_running() && self.shared.co_wait_for_stop(co) {}
        self.is_running()
    }

    /// Takes requests back, for the device that serves the queue next.
    #[cold]
    pub(crate) fn put_back(&self, requests: impl Iterator<Item = PendingRequest>) {
        let mut put_back = self.put_back.borrow_mut();
        let before = put_back.len();
        put_back.extend(requests.map(PendingRequest::put_back));
        let left = self.in_flight.get() - (put_back.len() - before);
        drop(put_back);
        self.in_flight.set(left);
        if left == 0 {
            self.is_idle();
        }
    }

    /// The driver broke the rules: no more requests from this queue until the device is reset.
    #[cold]
    pub(crate) fn fail(&self, error: VirtqueueError) {
        tracing::error!(
            device = self.device_name(),
            queue = self.index,
            %error,
            "the driver broke its queue; the device needs a reset"
        );
        self.phase.set(Phase::Broken);
        self.shared.needs_reset.set(true);
        self.shared.config_changed.set(true);
        self.error.borrow_mut().get_or_insert(error);
        self.completion_bh.schedule();
    }

    /// One more request in flight.
    #[inline]
    pub(crate) fn request_started(&self) {
        self.in_flight.set(self.in_flight.get() + 1);
    }

    /// Nothing is in flight. Matters once the queue has begun to end.
    #[inline]
    pub(crate) fn is_idle(&self) {
        if !self.is_running() {
            self.wake_waiters();
        }
    }

    #[cold]
    fn wake_waiters(&self) {
        if self.abandoned.get() {
            self.settle();
            self.giving_back.take();
        }
        if !self.waiters.borrow().is_empty() {
            for waiter in self.waiters.take() {
                waiter.wake();
            }
        }
    }
}

/// How a loop that polls adaptively sees requests before the kick (contract: C46).
struct QueuePoll(Weak<DeviceQueue>);

impl BusyPoll for QueuePoll {
    fn is_busy(&self, _ctx: &AioContext) -> bool {
        self.0.upgrade().is_some_and(|queue| queue.is_busy())
    }

    fn ready(&self, ctx: &AioContext) {
        if let Some(queue) = self.0.upgrade() {
            queue.handle_output(ctx);
        }
    }

    fn begin(&self, _ctx: &AioContext) {
        if let Some(queue) = self.0.upgrade() {
            queue.begin_polling();
        }
    }

    fn end(&self, _ctx: &AioContext) {
        if let Some(queue) = self.0.upgrade() {
            queue.end_polling();
        }
    }
}
