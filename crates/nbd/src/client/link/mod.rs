//! [`Link`]: a connection with a server that has chosen an export, to send requests by.
//!
//! No coroutine reads all that comes. What comes is read ahead, and the first header in it says for which
//! request the bytes behind it are: that request's own coroutine takes these, straight to where they belong,
//! looks for the next header, and resumes the request that it is for. So a reply costs one wake, which the
//! request would need anyway, and data of more than a few KiB is not copied.
//!
//! A server that breaks the protocol, in whatever way, ends the link. What it can make the client hold is the
//! inbox, and 64 requests.

mod coverage;
mod inbox;
mod receive;
mod send;
mod slots;
mod transact;

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use coblk_aio::sync::CoQueue;
use coblk_aio::{AioContext, BottomHalf, BusyPoll, Co, FdHandler, FdInterest, Readiness};

use crate::client::link::inbox::Inbox;
use crate::client::link::receive::Turn;
use crate::client::link::send::Sender;
use crate::client::link::slots::Slots;
use crate::client::session::Facts;
use crate::transport::Transport;

pub use transact::{Fault, Sink};

/// Told when a link is lost, or its server has closed it after that.
pub trait Watcher {
    /// No request of the link is answered any more.
    fn lost(&self, link: &Link, why: &io::Error);
    /// The server has closed a link that was lost.
    fn closed(&self, link: &Link);
}

/// A connection. Stays on the thread of its context.
pub struct Link {
    pub facts: Facts,
    transport: Rc<Transport>,
    watched: RefCell<Option<FdHandler<Rc<Transport>>>>,
    /// There may be something to read.
    readable: Cell<bool>,
    /// The loop has told that the server has closed its end: no other event follows.
    hung_up: Cell<bool>,
    /// That has been seen after the link was lost.
    closed: Cell<bool>,
    inbox: RefCell<Inbox>,
    /// The answer at the front of the inbox, and the request that takes it.
    turn: Cell<Option<Turn>>,
    slots: RefCell<Slots>,
    /// Requests that wait for a slot.
    room: CoQueue,
    /// How many do.
    waiting: Cell<usize>,
    sender: Sender,
    /// Sends what has gathered in one iteration of the loop.
    flusher: RefCell<Option<BottomHalf>>,
    /// Nothing is sent or received any more.
    lost: Cell<bool>,
    /// Bytes received since the beginning.
    received: Cell<u64>,
    /// A request was answered by other than that the server ends.
    carried_out: Cell<bool>,
    opened: Instant,
    watcher: Weak<dyn Watcher>,
}

impl Link {
    /// # Errors
    /// If the loop cannot wait for the socket.
    pub fn open(
        ctx: &AioContext,
        transport: Rc<Transport>,
        facts: Facts,
        watcher: Weak<dyn Watcher>,
    ) -> io::Result<Rc<Link>> {
        let link = Rc::new(Link {
            facts,
            transport: Rc::clone(&transport),
            watched: RefCell::default(),
            readable: Cell::new(true),
            hung_up: Cell::new(false),
            closed: Cell::new(false),
            inbox: RefCell::new(Inbox::new()),
            turn: Cell::new(None),
            slots: RefCell::default(),
            room: CoQueue::new(),
            waiting: Cell::new(0),
            sender: Sender::default(),
            flusher: RefCell::default(),
            lost: Cell::new(false),
            received: Cell::new(0),
            carried_out: Cell::new(false),
            opened: Instant::now(),
            watcher,
        });
        let own = Rc::downgrade(&link);
        let flush = move |_: &AioContext| {
            if let Some(own) = own.upgrade() {
                match own.lost.get() {
                    true => own.look_for_end(),
                    false => own.flush(),
                }
            }
        };
        *link.flusher.borrow_mut() = Some(ctx.bottom_half("nbd_client_send", flush));
        let own = Rc::downgrade(&link);
        let poll = SocketPoll(Weak::clone(&own));
        let ready = move |_: &AioContext, readiness| {
            if let Some(own) = own.upgrade() {
                own.ready(readiness);
            }
        };
        let watched = ctx.polled_fd_handler(transport, FdInterest::Read, ready, poll)?;
        *link.watched.borrow_mut() = Some(watched);
        Ok(link)
    }

    pub fn is_lost(&self) -> bool {
        self.lost.get()
    }

    /// Whether the server has closed its end too: it has received all that it ever will.
    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Requests that are not answered.
    pub fn in_flight(&self) -> usize {
        self.slots.borrow().len()
    }

    /// The cookie of the newest request, in flight or not.
    pub fn newest_cookie(&self) -> u64 {
        self.slots.borrow().newest_cookie()
    }

    /// Whether a request is not answered that is not newer than that with this cookie.
    pub fn waits_for_one_up_to(&self, cookie: u64) -> bool {
        self.slots.borrow().has_one_up_to(cookie)
    }

    /// Whether the server has carried a request out, or had none to carry out for so long.
    pub fn was_of_use(&self, long: Duration) -> bool {
        self.carried_out.get() || self.opened.elapsed() >= long
    }

    /// Bytes received since the beginning.
    pub fn received(&self) -> u64 {
        self.received.get()
    }

    /// Ends the link: each request in flight learns that it is lost. Nothing more is sent; the server is told,
    /// and may close its end.
    pub fn fail(&self, why: &io::Error) {
        if self.lost.replace(true) {
            return;
        }
        self.transport.shutdown_write();
        self.turn.set(None);
        // Told first: what wakes has to find that the link is no more.
        if let Some(watcher) = self.watcher.upgrade() {
            watcher.lost(self, why);
        }
        self.sender.give_up();
        let wakers = self.slots.borrow_mut().take_wakers();
        for waker in wakers {
            waker.wake();
        }
        self.room.wake_all();
        self.look_for_end();
    }

    /// Disconnects as the protocol has it, with nothing in flight.
    pub fn disconnect(&self) {
        if !self.lost.get() {
            self.say_goodbye();
        }
        self.abandon();
    }

    /// Lets go of the socket.
    pub fn abandon(&self) {
        self.fail(&io::ErrorKind::ConnectionAborted.into());
        self.transport.shutdown();
        drop(self.watched.take());
        drop(self.flusher.take());
    }

    /// Has what the server has not received yet never arrive, once the link is [abandoned](Self::abandon).
    pub fn unsend(&self) {
        self.transport.unsend_at_close();
    }

    /// Takes the socket to another context, while nothing is in flight and nothing was read ahead. `None` if
    /// the link is lost.
    pub fn detach(self: Rc<Link>) -> Option<Transport> {
        let is_idle = self.in_flight() == 0 && self.inbox.borrow().is_empty();
        if self.lost.get() || !is_idle || !self.has_sent_all() {
            return None;
        }
        self.lost.set(true);
        drop(self.watched.take());
        drop(self.flusher.take());
        let transport = Rc::clone(&self.transport);
        drop(self);
        Rc::into_inner(transport)
    }

    /// Waits until there is a slot, or the link is lost.
    fn co_wait_for_slot(&self, co: &Co<'_>) {
        struct Waiting<'a>(&'a Cell<usize>);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.set(self.0.get() - 1);
            }
        }
        while self.slots.borrow().is_full() && !self.lost.get() {
            self.waiting.set(self.waiting.get() + 1);
            let _waiting = Waiting(&self.waiting);
            self.room.wait(co);
        }
    }

    fn wake_for_room(&self) {
        if self.waiting.get() > 0 {
            self.room.wake_one();
        }
    }

    fn ready(&self, readiness: Readiness) {
        self.hung_up.set(self.hung_up.get() || readiness.closed);
        self.readable.set(self.readable.get() || readiness.readable || readiness.closed);
        if self.lost.get() {
            return self.look_for_end();
        }
        if readiness.writable && self.sender.is_full() {
            self.room_to_send();
        }
        if self.readable.get() {
            self.go_on();
        }
    }

    fn rewatch(&self, interest: FdInterest) {
        let watched = self.watched.borrow();
        let result = watched.as_ref().map(|watched| watched.set_interest(interest));
        drop(watched);
        if let Some(Err(error)) = result {
            self.fail(&error);
        }
    }

    /// Reads what a server still says on a link that is lost, to see it close.
    fn look_for_end(&self) {
        let mut waste = [0; 4096];
        for _ in 0..16 {
            match self.transport.read(&mut waste) {
                Ok(1..) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Ok(0) | Err(_) => {
                    self.closed.set(true);
                    if let Some(watcher) = self.watcher.upgrade() {
                        watcher.closed(self);
                    }
                    return;
                }
            }
        }
        // The loop tells of what is new, and not of what is left: others get their turn, then it goes on.
        self.flush_later();
    }
}

/// How a loop that polls adaptively sees that a server has answered, before it sleeps.
struct SocketPoll(Weak<Link>);

impl BusyPoll for SocketPoll {
    fn is_busy(&self, _: &AioContext) -> bool {
        self.0.upgrade().is_some_and(|link| link.look())
    }

    fn pays(&self, _: &AioContext) -> bool {
        self.0.upgrade().is_some_and(|link| !link.is_lost())
    }

    fn ready(&self, _: &AioContext) {
        if let Some(link) = self.0.upgrade() {
            link.go_on();
        }
    }
}
