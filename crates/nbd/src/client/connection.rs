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
/// How often a silent server is looked at, at least.
const MAX_TICK: Duration = Duration::from_secs(1);

/// Requests of one context. Stays on its thread.
pub struct Connection {
    own: Weak<Connection>,
    pub shared: Arc<Shared>,
    pub home: AioHandle,
    link: RefCell<Option<Rc<Link>>>,
    /// The one before, until its server has closed it.
    pub old: RefCell<Option<Rc<Link>>>,
    /// Requests wait for the next link.
    waiting: Cell<bool>,
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
            old: RefCell::new(None),
            waiting: Cell::new(false),
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

    /// Requests go there from now on.
    pub fn set_link(&self, link: Rc<Link>) {
        *self.link.borrow_mut() = Some(link);
        self.waiting.set(false);
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
        loop {
            let link = self.co_link(co)?;
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
                        return Err(io::Error::from_raw_os_error(libc::EIO));
                    }
                }
                // It ends, and another one may take its place.
                Err(Fault::Refused(libc::ESHUTDOWN)) if self.may_wait() => {
                    link.fail(&io::Error::from_raw_os_error(libc::ESHUTDOWN));
                }
                Err(Fault::Refused(errno)) => return Err(io::Error::from_raw_os_error(errno)),
            }
        }
    }

    /// The link, when there is one.
    ///
    /// # Errors
    /// If requests do not wait for one.
    fn co_link(&self, co: &Co<'_>) -> io::Result<Rc<Link>> {
        loop {
            if let Some(link) = self.link().filter(|link| !link.is_lost()) {
                return Ok(link);
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
            self.watch_for_silence(ctx, &link);
        }
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
        if self.cancelling.get() { Some(CANCEL_PATIENCE) } else { usual }
    }

    fn watch_for_silence(&self, ctx: &AioContext, link: &Link) {
        let Some(patience) = self.patience() else { return };
        let Some(tick) = self.tick.get().filter(|tick| !tick.is_armed()) else { return };
        self.silence.set(Silence { received: link.received(), since_ns: ctx.now_ns() });
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
        if Duration::from_nanos(silent_ns) < patience {
            return tick.arm_after((patience / 8).min(MAX_TICK));
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
        if self.may_wait() && !self.shared.is_quiesced() {
            self.wait_for_link(self.shared.reconnect_delay);
        }
        self.keeper.wake();
    }

    fn closed(&self) {
        self.keeper.wake();
    }
}
