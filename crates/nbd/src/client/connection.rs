//! [`Connection`]: the link of one context with a server, and what becomes of requests while there is none.
//!
//! ```text
//!   connected --- the link is lost ---> waiting --- reconnect-delay is over, ---> failing
//!       ^                                  |        a drain, a cancel                |
//!       +------- a new link is made -------+------------ a new link is made --------+
//! ```
//!
//! While it waits, requests do: those that were in flight, and new ones. They are sent, again or for the first
//! time, when there is a link ([`claims`](crate::client::claims) says why no older write ends above a newer
//! one). While it fails, they fail.

use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use coblk_aio::sync::{CoQueue, CoSleep};
use coblk_aio::{AioContext, AioHandle, Co, IoVector, Timer};

use crate::client::claims::Claims;
use crate::client::link::{Fault, Link, Sink, Watcher};
use crate::client::shared::Shared;
use crate::client::wire::Wire;
use crate::protocol::request::Request;
use crate::protocol::*;

/// How long a server may be silent once its requests are to be given up.
const CANCEL_PATIENCE: Duration = Duration::from_secs(1);
/// How long a server may be silent while the node is drained: a slow disk has answered by then, and a command that
/// drains has not given up yet.
const DRAIN_PATIENCE: Duration = Duration::from_secs(5);
/// How often a silent server is looked at, at least.
const MAX_TICK: Duration = Duration::from_secs(1);

/// Requests of one context. Stays on its thread.
pub struct Connection {
    own: Weak<Connection>,
    pub shared: Arc<Shared>,
    pub home: AioHandle,
    link: RefCell<Option<Rc<Link>>>,
    /// The [era](Shared::era) of the link.
    era: Cell<u64>,
    /// The one before, until its server has closed it.
    old: RefCell<Option<Rc<Link>>>,
    /// That is not known yet, to [`Shared`].
    may_be_open: Cell<bool>,
    /// Requests wait for the next link.
    waiting: Cell<bool>,
    /// They would, but for a drain.
    interrupted: Cell<bool>,
    waiters: CoQueue,
    claims: Claims,
    /// Wakes the coroutine that keeps the link.
    pub keeper: CoSleep,
    pub closing: Cell<bool>,
    /// What is being negotiated.
    pub attempt: RefCell<Weak<Wire>>,
    /// Fires when requests have waited long enough.
    deadline: OnceCell<Timer>,
    /// Looks whether a server is silent, while requests are in flight.
    tick: OnceCell<Timer>,
    silence: Cell<Silence>,
    /// What is in flight is to end, though its server may not answer.
    cancelling: Cell<bool>,
    /// How long the next attempt is put off: a server that takes connections and is of no use there would
    /// otherwise keep the loop busy.
    pub pause: Cell<Duration>,
}

/// Since when nothing has been received.
#[derive(Clone, Copy, Default)]
struct Silence {
    received: u64,
    since_ns: i64,
}

impl Connection {
    /// One without a link.
    pub fn new(ctx: &AioContext, shared: Arc<Shared>) -> Rc<Connection> {
        let connection = Rc::new_cyclic(|own| Connection {
            own: Weak::clone(own),
            shared,
            home: ctx.handle(),
            link: RefCell::new(None),
            era: Cell::new(0),
            old: RefCell::new(None),
            may_be_open: Cell::new(false),
            waiting: Cell::new(false),
            interrupted: Cell::new(false),
            waiters: CoQueue::new(),
            claims: Claims::default(),
            keeper: CoSleep::new(),
            closing: Cell::new(false),
            attempt: RefCell::new(Weak::new()),
            deadline: OnceCell::new(),
            tick: OnceCell::new(),
            silence: Cell::default(),
            cancelling: Cell::new(false),
            pause: Cell::new(Duration::ZERO),
        });
        let timer = |then: fn(&Connection, &AioContext)| {
            let own = Weak::clone(&connection.own);
            ctx.timer(move |ctx| {
                if let Some(own) = own.upgrade() {
                    then(&own, ctx);
                }
            })
        };
        let _ = connection.deadline.set(timer(|own, _| own.stop_waiting()));
        let _ = connection.tick.set(timer(Connection::look_at_silence));
        connection
    }

    pub fn watcher(&self) -> Weak<dyn Watcher> {
        Weak::clone(&self.own) as Weak<dyn Watcher>
    }

    pub fn link(&self) -> Option<Rc<Link>> {
        self.link.borrow().clone()
    }

    /// Requests go there from now on, if no newer era begins.
    pub fn set_link(&self, link: Rc<Link>, era: u64) {
        *self.link.borrow_mut() = Some(link);
        self.era.set(era);
        self.waiting.set(false);
        self.interrupted.set(false);
        self.cancelling.set(false);
        self.with_deadline(Timer::cancel);
        self.waiters.wake_all();
    }

    /// Requests wait until there is a link, for so long or for as long as they do when one is lost.
    pub fn wait_for_link(&self, limit: Duration) {
        self.waiting.set(true);
        let limit = limit.max(self.shared.reconnect_delay);
        self.with_deadline(|timer| timer.arm_after(limit));
    }

    pub fn take_link(&self) -> Option<Rc<Link>> {
        self.link.take()
    }

    /// Carries a request out.
    ///
    /// # Errors
    /// That of the server; EIO if there is no connection.
    pub fn co_request(
        &self,
        co: &Co<'_>,
        request: Request,
        payload: Option<&IoVector<'_>>,
        sink: &mut Sink<'_, '_>,
    ) -> io::Result<()> {
        let changes = matches!(request.command, CMD_WRITE | CMD_WRITE_ZEROES | CMD_TRIM);
        let range = request.offset..request.offset + request.length;
        let _claim = changes.then(|| self.claims.co_claim(co, range));
        let mut first_lost_ns = None;
        let fault = loop {
            let link = match self.co_link(co) {
                Ok(link) => link,
                Err(error) => break error,
            };
            self.watch_for_silence(co.context(), &link);
            if let Sink::Extent(extent) = sink {
                **extent = None;
            }
            match link.co_transact(co, request, payload, sink) {
                Ok(()) => return Ok(()),
                // A server that breaks the protocol each time is not asked for ever.
                Err(Fault::Lost) => {
                    let now_ns = co.context().now_ns();
                    let lost_ns = now_ns - *first_lost_ns.get_or_insert(now_ns);
                    if lost_ns > self.shared.reconnect_delay.as_nanos() as i64 {
                        break io::Error::from_raw_os_error(libc::EIO);
                    }
                }
                // It ends, and another one may take its place.
                Err(Fault::Refused(libc::ESHUTDOWN)) if self.may_wait() => {
                    link.fail(&io::Error::from_raw_os_error(libc::ESHUTDOWN));
                }
                Err(Fault::Refused(errno)) => return Err(io::Error::from_raw_os_error(errno)),
            }
        };
        if changes && first_lost_ns.is_some() && self.has_open_old() {
            self.shared.begin_era();
        }
        Err(fault)
    }

    /// Lets go of the link before.
    pub fn forget_old(&self) {
        let Some(old) = self.old.take() else { return };
        if !old.is_closed() {
            old.unsend();
        }
        old.abandon();
        self.see_old_closed();
    }

    /// Other contexts may wait for that.
    fn see_old_closed(&self) {
        if self.may_be_open.replace(false) {
            self.shared.count_closed();
            self.shared.tell(|connection, _| connection.keeper.wake());
        }
    }

    /// Whether the server may still carry out what it has received on the link before.
    pub fn has_open_old(&self) -> bool {
        self.old.borrow().as_ref().is_some_and(|old| !old.is_closed())
    }

    /// The link, when there is one.
    ///
    /// # Errors
    /// If requests do not wait for one.
    fn co_link(&self, co: &Co<'_>) -> io::Result<Rc<Link>> {
        loop {
            if let Some(link) = self.link().filter(|link| !link.is_lost()) {
                if self.era.get() == self.shared.era() {
                    return Ok(link);
                }
                let why = "the server left requests of another connection unanswered";
                link.fail(&io::Error::new(io::ErrorKind::TimedOut, why));
            }
            if !self.waiting.get() {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            self.waiters.wait(co);
        }
    }

    fn may_wait(&self) -> bool {
        !self.shared.reconnect_delay.is_zero() && !self.closing.get() && !self.cancelling.get()
    }

    /// Requests that wait for a link fail, and so do new ones until there is one.
    pub fn stop_waiting(&self) {
        self.with_deadline(Timer::cancel);
        if self.waiting.replace(false) {
            tracing::warn!(
                server = %self.shared.target.server,
                "requests to an NBD server that does not come back fail"
            );
        }
        self.waiters.wake_all();
    }

    /// Requests that wait for a server fail at once, and those at a server that is silent for a second.
    pub fn cancel(&self, ctx: &AioContext) {
        self.stop_waiting();
        if let Some(link) = self.link().filter(|link| link.in_flight() > 0) {
            self.cancelling.set(true);
            self.look_soon(ctx, &link);
        }
    }

    /// The node is being drained: requests that wait for a server fail at once, and those at a server that is silent
    /// for [`DRAIN_PATIENCE`].
    pub fn quiesce(&self, ctx: &AioContext) {
        self.interrupted.set(self.interrupted.get() || self.waiting.get());
        self.stop_waiting();
        if let Some(link) = self.link() {
            self.look_soon(ctx, &link);
        }
    }

    /// The drain is over: requests wait again where only that kept them from it.
    pub fn resume(&self) {
        if self.interrupted.replace(false) && self.may_wait() {
            self.wait_for_link(self.shared.reconnect_delay);
        }
        self.keeper.wake();
    }

    /// Ends it: nothing is in flight.
    pub fn close(&self) {
        self.closing.set(true);
        self.stop_waiting();
        self.end_attempt();
        self.keeper.wake();
    }

    /// Ends what is being negotiated.
    pub fn end_attempt(&self) {
        if let Some(wire) = self.attempt.borrow().upgrade() {
            wire.end("the connection is given up");
        }
    }

    fn with_deadline(&self, then: impl FnOnce(&Timer)) {
        if let Some(timer) = self.deadline.get() {
            then(timer);
        }
    }
}

/// Servers that are silent.
impl Connection {
    /// How long one may be, while requests are in flight. `None` if for ever.
    fn patience(&self) -> Option<Duration> {
        let delay = self.shared.reconnect_delay;
        let usual = Some(delay).filter(|delay| !delay.is_zero());
        let drained = self.shared.is_quiesced().then_some(DRAIN_PATIENCE);
        let cancelled = self.cancelling.get().then_some(CANCEL_PATIENCE);
        [usual, drained, cancelled].into_iter().flatten().min()
    }

    fn watch_for_silence(&self, ctx: &AioContext, link: &Link) {
        if self.patience().is_some() && self.tick.get().is_some_and(|tick| !tick.is_armed()) {
            self.look_soon(ctx, link);
        }
    }

    /// Looks as often as it takes from now on, as the patience may have become shorter.
    fn look_soon(&self, ctx: &AioContext, link: &Link) {
        let (Some(patience), Some(tick)) = (self.patience(), self.tick.get()) else { return };
        if !tick.is_armed() {
            self.silence.set(Silence { received: link.received(), since_ns: ctx.now_ns() });
        }
        tick.arm_after((patience / 8).min(MAX_TICK));
    }

    fn look_at_silence(&self, ctx: &AioContext) {
        let Some(link) = self.link().filter(|link| link.in_flight() > 0) else {
            self.cancelling.set(false);
            return;
        };
        let (Some(patience), Some(tick)) = (self.patience(), self.tick.get()) else { return };
        let mut silence = self.silence.get();
        if silence.received != link.received() {
            silence = Silence { received: link.received(), since_ns: ctx.now_ns() };
            self.silence.set(silence);
        }
        let silent_ns = u64::try_from(ctx.now_ns() - silence.since_ns).unwrap_or(0);
        let left = patience.saturating_sub(Duration::from_nanos(silent_ns));
        if !left.is_zero() {
            return tick.arm_after((patience / 8).min(MAX_TICK).min(left));
        }
        // Its requests have waited long enough.
        self.cancelling.set(true);
        link.fail(&io::Error::new(io::ErrorKind::TimedOut, "the server is silent"));
        self.cancelling.set(false);
    }
}

/// The first pause between two attempts, which doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(16);

/// The pause that follows one.
pub fn longer(pause: Duration) -> Duration {
    (pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE)
}

impl Watcher for Connection {
    fn lost(&self, link: &Link, why: &io::Error) {
        let is_ours = self.link.borrow().as_ref().is_some_and(|it| std::ptr::eq(&**it, link));
        if !is_ours {
            return;
        }
        *self.old.borrow_mut() = self.link.take();
        if !self.may_be_open.replace(true) {
            self.shared.count_lost();
        }
        if self.closing.get() {
            return;
        }
        tracing::warn!(server = %self.shared.target.server, %why, "an NBD connection is lost");
        self.pause.set(match (link.received() > 0, why.kind() == io::ErrorKind::InvalidData) {
            (true, false) => Duration::ZERO,
            // It has answered before it broke the protocol.
            (true, true) => FIRST_PAUSE,
            (false, _) => longer(self.pause.get()),
        });
        match self.may_wait() {
            true if self.shared.is_quiesced() => self.interrupted.set(true),
            true => self.wait_for_link(self.shared.reconnect_delay),
            false => {}
        }
        self.keeper.wake();
    }

    fn closed(&self, link: &Link) {
        if self.old.borrow().as_ref().is_some_and(|old| std::ptr::eq(&**old, link)) {
            self.see_old_closed();
        }
        self.keeper.wake();
    }
}
