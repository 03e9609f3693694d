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
use crate::client::silence::{Cancelled, Silence};
use crate::client::wire::Wire;
use crate::protocol::request::Request;
use crate::protocol::*;

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
    pub(super) waiting: Cell<bool>,
    /// They would, but for a drain.
    pub(super) interrupted: Cell<bool>,
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
    pub(super) tick: OnceCell<Timer>,
    pub(super) silence: Cell<Silence>,
    /// What was in flight at that time is to end, though its server may not answer.
    pub(super) cancelled: Cell<Option<Cancelled>>,
    /// How long the next attempt is put off: a server that takes connections and is of no use there would
    /// otherwise keep the loop busy.
    pub pause: Cell<Duration>,
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
            cancelled: Cell::new(None),
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
        self.cancelled.set(None);
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
                if link.facts.context.is_none() {
                    // A server that took the place of another one, and does not know.
                    **extent = Some((request.length, 0));
                    return Ok(());
                }
            }
            match link.co_transact(co, request, payload, sink) {
                Ok(()) => return Ok(()),
                Err(Fault::Lost) => {}
                // It ends, and another one may take its place.
                Err(Fault::Refused(libc::ESHUTDOWN)) if self.may_wait() => {
                    link.fail(&io::Error::from_raw_os_error(libc::ESHUTDOWN));
                }
                Err(Fault::Refused(errno)) => return Err(io::Error::from_raw_os_error(errno)),
            }
            // A server that breaks the protocol each time, or is always about to end, is not asked for ever.
            let now_ns = co.context().now_ns();
            let lost_ns = now_ns - *first_lost_ns.get_or_insert(now_ns);
            if lost_ns > self.shared.reconnect_delay.as_nanos() as i64 {
                break io::Error::from_raw_os_error(libc::EIO);
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
        let has_delay = !self.shared.reconnect_delay.is_zero();
        has_delay && !self.closing.get() && !self.is_cancelled()
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
        self.forget_cancel(link);
        *self.old.borrow_mut() = self.link.take();
        if !self.may_be_open.replace(true) {
            self.shared.count_lost();
        }
        if self.closing.get() {
            return;
        }
        tracing::warn!(server = %self.shared.target.server, %why, "an NBD connection is lost");
        let is_unfit =
            why.kind() == io::ErrorKind::InvalidData || why.raw_os_error() == Some(libc::ESHUTDOWN);
        self.pause.set(match (link.was_of_use(LONGEST_PAUSE), is_unfit) {
            (true, false) => Duration::ZERO,
            // It has carried requests out before.
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
