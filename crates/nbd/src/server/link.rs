//! [`Link`]: the connection with a client, to wait at and to send by.

use std::cell::{Cell, RefCell};
use std::io::{self, ErrorKind};
use std::rc::{Rc, Weak};

use coblk_aio::{
    AioContext, BottomHalf, BusyPoll, Co, CoWaker, FdHandler, FdInterest, Readiness, Wanted,
};

use crate::server::message::Message;
use crate::server::outbox::{Outbox, Sent};
use crate::server::pace::Direction;
use crate::server::pending_read::PendingRead;
use crate::server::receiver::Receiver;
use crate::server::turn::{MAX_BYTES, Turn};
use crate::transport::Transport;

/// With more clients than these none is polled: asking each takes longer than being told of one.
const MAX_POLLED: usize = 8;

/// A connection. The client's own coroutine reads; everything else may send.
pub struct Link {
    own: Weak<Link>,
    pub transport: Rc<Transport>,
    /// Watches the socket while the client is served.
    watched: RefCell<Option<FdHandler<Rc<Transport>>>>,
    /// There may be something to read.
    pub readable: Cell<bool>,
    /// The client has closed its end.
    closed: Cell<bool>,
    /// The client's own coroutine waits for input, and for nothing else.
    expects: Cell<bool>,
    /// The room that it has lent for that to a loop that polls.
    lent: RefCell<Option<PendingRead>>,
    /// How to resume the client's own coroutine, while that waits.
    waker: Cell<Option<CoWaker>>,
    outbox: RefCell<Outbox>,
    /// The socket is full; its handler looks for room. Only then: a unix socket tells of room after
    /// each reply that the client takes, and that would wake the loop for nothing.
    is_full: Cell<bool>,
    /// Sends what has gathered in one iteration of the loop.
    sender: RefCell<Option<BottomHalf>>,
    /// Requests that are not answered yet.
    pub in_flight: Cell<usize>,
    /// No request is read any more.
    ending: Cell<bool>,
    /// Nothing can be sent any more.
    failed: Cell<bool>,
    /// The client waits for what its requests do.
    pub wanted: Wanted,
    pub turn: Turn,
    /// Bytes received since the beginning.
    received: Cell<u64>,
    /// How many clients the server has in this context.
    clients: Rc<Cell<usize>>,
}

impl Link {
    pub fn new(transport: Transport, clients: Rc<Cell<usize>>) -> Rc<Link> {
        Rc::new_cyclic(|own| Link {
            own: Weak::clone(own),
            transport: Rc::new(transport),
            watched: RefCell::default(),
            readable: Cell::new(true),
            closed: Cell::new(false),
            expects: Cell::new(false),
            lent: RefCell::new(None),
            waker: Cell::new(None),
            outbox: RefCell::default(),
            is_full: Cell::new(false),
            sender: RefCell::new(None),
            in_flight: Cell::new(0),
            ending: Cell::new(false),
            failed: Cell::new(false),
            wanted: Wanted::new(),
            turn: Turn::default(),
            received: Cell::new(0),
            clients,
        })
    }

    /// Lets the loop tell of the socket.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn open(&self, ctx: &AioContext) -> io::Result<()> {
        let own = Weak::clone(&self.own);
        *self.sender.borrow_mut() = Some(ctx.bottom_half("nbd_send", move |_| {
            if let Some(own) = own.upgrade() {
                own.flush();
            }
        }));
        self.watch(ctx)
    }

    /// Waits for the requests in flight, and until all replies have gone; then disconnects.
    pub fn finish(&self, co: &Co<'_>) {
        self.ending.set(true);
        loop {
            let sent = self.flush();
            let has_replies = !self.failed.get() && !self.has_sent_all();
            if self.in_flight.get() == 0 && !has_replies {
                break;
            }
            match sent {
                true => self.give_way_if_over(co),
                false => self.suspend(co),
            }
        }
        self.fail();
        drop(self.watched.take());
    }

    /// Gives the connection away, to be served in another context: nothing is done with it here any more. All
    /// that was to be sent has gone.
    pub fn part(&self) -> Transport {
        debug_assert!(self.has_sent_all() && self.in_flight.get() == 0);
        drop(self.watched.take());
        self.failed.set(true);
        self.transport.take_over()
    }

    /// Sends nothing more from the loop.
    pub fn close(&self) {
        let sender = self.sender.borrow_mut().take();
        drop(sender);
    }
}

/// Waiting, and what ends it. Only the client's own coroutine waits.
impl Link {
    /// Sends what there is, and waits until `condition` holds.
    ///
    /// # Errors
    /// If nothing can be sent any more.
    pub fn wait_until(&self, co: &Co<'_>, condition: impl Fn() -> bool) -> io::Result<()> {
        loop {
            if self.failed.get() {
                return Err(ErrorKind::ConnectionAborted.into());
            }
            if condition() {
                return Ok(());
            }
            match self.flush() {
                true => self.give_way_if_over(co),
                false => self.suspend(co),
            }
        }
    }

    /// Lets others run if that was long ago: what a client sends may come as fast as it is served, and
    /// then nothing else makes its coroutine wait. Called for every option, request and piece of data.
    pub fn give_way(&self, co: &Co<'_>) {
        self.turn.step();
        self.give_way_if_over(co);
    }

    /// The same for bytes, which are not steps.
    pub fn give_way_if_over(&self, co: &Co<'_>) {
        if self.turn.is_over() {
            self.turn.begin();
            self.flush();
            co.yield_now();
        }
    }

    /// Waits until fewer than `most` requests are in flight. A client that goes meanwhile is noticed, though it
    /// may send no more: its long requests end then.
    ///
    /// # Errors
    /// If nothing can be sent any more, or the client has gone.
    pub fn wait_for_requests(
        &self,
        co: &Co<'_>,
        receiver: &mut Receiver,
        most: usize,
    ) -> io::Result<()> {
        let is_due = || self.in_flight.get() < most;
        self.wait_until(co, || is_due() || self.closed.get())?;
        if is_due() {
            return Ok(());
        }
        receiver.look_for_end(self)?;
        self.wait_until(co, is_due)
    }

    /// Waits until all has been sent, so that a client that asks and never reads asks once.
    pub fn wait_sent(&self, co: &Co<'_>) -> io::Result<()> {
        self.wait_until(co, || self.has_sent_all())
    }

    fn has_sent_all(&self) -> bool {
        self.outbox.borrow().is_empty() && !self.transport.has_unsent()
    }

    /// Waits until there may be something to read, or the loop's polling has read it.
    ///
    /// # Errors
    /// If nothing is to be read any more.
    pub fn wait_readable(&self, co: &Co<'_>) -> io::Result<()> {
        if !self.ending.get() {
            self.expects.set(true);
            let has_come = || self.readable.get() || self.has_received();
            let waited = self.wait_until(co, || has_come() || self.ending.get());
            self.expects.set(false);
            waited?;
        }
        if self.ending.get() {
            return Err(ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }

    /// Reads at least one byte.
    pub fn read(&self, co: &Co<'_>, target: &mut [u8]) -> io::Result<usize> {
        loop {
            self.wait_readable(co)?;
            if let Some(result) = self.receive(target) {
                return result;
            }
        }
    }

    /// Reads at least one byte to `buffer[from..]`. A loop that polls for it does that itself.
    pub fn read_ahead(&self, co: &Co<'_>, buffer: &mut Vec<u8>, from: usize) -> io::Result<usize> {
        loop {
            *self.lent.borrow_mut() = Some(PendingRead::new(std::mem::take(buffer), from));
            let waited = self.wait_readable(co);
            let came = self.lent.take().and_then(|read| read.end(buffer));
            waited?;
            if let Some(result) = came.or_else(|| self.receive(&mut buffer[from..])) {
                return result;
            }
        }
    }

    /// Reads once. `None` if there was nothing.
    pub fn receive(&self, target: &mut [u8]) -> Option<io::Result<usize>> {
        match self.transport.read(target) {
            Ok(0) => Some(Err(ErrorKind::UnexpectedEof.into())),
            Ok(bytes) => {
                // A short read has emptied the socket, and what comes later is reported. Not so
                // the end, if it was there already. Of TLS a part may be here and no further.
                let is_all = bytes < target.len() && !self.transport.is_secure();
                self.readable.set(!is_all || self.closed.get());
                self.received.set(self.received.get() + bytes as u64);
                Some(Ok(bytes))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.readable.set(false);
                None
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => None,
            Err(error) => Some(Err(error)),
        }
    }

    fn has_received(&self) -> bool {
        self.lent.borrow().as_ref().is_some_and(PendingRead::is_done)
    }

    /// Looks for what the coroutine waits for, and receives it where room was lent. Whether there is
    /// something: also if an earlier look has found it, and the coroutine does not know yet.
    pub fn look(&self) -> bool {
        if !self.expects.get() || !self.is_waiting() || self.ending.get() || self.failed.get() {
            return false;
        }
        if let Some(read) = &mut *self.lent.borrow_mut() {
            return read.try_now(|target| self.receive(target));
        }
        // The coroutine does the rest.
        self.readable.set(self.readable.get() || self.transport.has_input());
        self.readable.get()
    }

    /// Resumes the coroutine, if it waits, to look again.
    pub fn poke(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn suspend(&self, co: &Co<'_>) {
        struct ForgetOnUnwind<'a>(&'a Cell<Option<CoWaker>>);
        impl Drop for ForgetOnUnwind<'_> {
            fn drop(&mut self) {
                drop(self.0.take());
            }
        }
        let _forget = ForgetOnUnwind(&self.waker);
        self.turn.begin();
        co.suspend_for("an NBD client", |waker| self.waker.set(Some(waker)));
    }

    fn watch(&self, ctx: &AioContext) -> io::Result<()> {
        let own = Weak::clone(&self.own);
        let poll = SocketPoll(Weak::clone(&own));
        let ready = move |_: &AioContext, readiness| {
            if let Some(own) = own.upgrade() {
                own.ready(readiness);
            }
        };
        let transport = Rc::clone(&self.transport);
        let handler = ctx.polled_fd_handler(transport, FdInterest::Read, ready, poll)?;
        self.watched.replace(Some(handler));
        Ok(())
    }

    fn ready(&self, readiness: Readiness) {
        if readiness.closed {
            self.closed.set(true);
        }
        if readiness.readable {
            self.readable.set(true);
        }
        if readiness.writable && self.is_full.get() {
            self.flush();
        }
        self.poke();
    }
}

/// Sending, and the end of it.
impl Link {
    /// Sends a reply: at once if it is the only one to come, else with the others of this iteration.
    pub fn answer(&self, message: Message) {
        self.post(message);
        if !self.is_waiting() {
            // Its own coroutine runs, and sends before it waits.
            return;
        }
        if self.in_flight.get() == 1 {
            self.flush();
        } else {
            self.send_later();
        }
    }

    /// Sends in the next iteration of the loop, if not before.
    fn send_later(&self) {
        if let Some(sender) = &*self.sender.borrow() {
            sender.schedule();
        }
    }

    /// Puts a message among those to be sent.
    pub fn post(&self, message: Message) {
        if self.failed.get() {
            return self.retire(vec![message]);
        }
        self.outbox.borrow_mut().push(message);
    }

    /// Reads no more requests, answers those in flight, and disconnects.
    pub fn end(&self) {
        self.ending.set(true);
        self.poke();
    }

    /// Disconnects at once. Requests in flight go on, and are not answered.
    pub fn fail(&self) {
        if !self.failed.replace(true) {
            self.transport.shutdown();
            self.wanted.give_up();
            let unsent = self.outbox.borrow_mut().clear();
            self.retire(unsent);
        }
    }

    /// What was sent, and what the client is to take before more can be.
    pub fn sending(&self) -> Direction {
        let outbox = self.outbox.borrow();
        let waiting = if self.is_full.get() { outbox.len() } else { 0 };
        Direction { moved: outbox.total(), waiting }
    }

    /// Bytes received since the beginning.
    pub fn received(&self) -> u64 {
        self.received.get()
    }

    fn is_waiting(&self) -> bool {
        let waker = self.waker.take();
        let is_waiting = waker.is_some();
        self.waker.set(waker);
        is_waiting
    }

    /// Sends as much as the socket takes, but no more than is due in a turn: the rest follows in the next.
    /// Returns whether it took anything, or has failed.
    pub fn flush(&self) -> bool {
        let mut progress = false;
        let enough = self.outbox.borrow().total() + MAX_BYTES as u64;
        loop {
            if self.failed.get() || self.has_sent_all() {
                break;
            }
            if self.outbox.borrow().total() >= enough {
                self.turn.charge(MAX_BYTES);
                self.send_later();
                return true;
            }
            let result = self.outbox.borrow_mut().send(&self.transport);
            match result {
                Ok(sent) => {
                    progress = true;
                    self.retire(sent);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if !self.is_full.replace(true) {
                        self.rewatch(FdInterest::ReadWrite);
                    }
                    return progress;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    self.fail();
                    return true;
                }
            }
        }
        if self.is_full.replace(false) {
            self.rewatch(FdInterest::Read);
        }
        progress
    }

    fn rewatch(&self, interest: FdInterest) {
        // Only a connection that is served is watched.
        let watched = self.watched.borrow();
        if watched.as_ref().is_none_or(|watched| watched.set_interest(interest).is_err()) {
            drop(watched);
            self.fail();
        }
    }

    /// Lets go of messages that were sent, or never will be.
    fn retire(&self, mut messages: Sent) {
        let answers = messages.iter().filter(|message| message.answers).count();
        self.in_flight.set(self.in_flight.get() - answers);
        messages.clear();
        self.outbox.borrow_mut().recycle(messages);
        self.poke();
    }
}

/// How a loop that polls adaptively sees that a client has sent something, before it sleeps
/// (contract: C46).
struct SocketPoll(Weak<Link>);

impl BusyPoll for SocketPoll {
    fn is_busy(&self, ctx: &AioContext) -> bool {
        self.pays(ctx) && self.0.upgrade().is_some_and(|client| client.look())
    }

    fn pays(&self, _ctx: &AioContext) -> bool {
        self.0.upgrade().is_some_and(|client| client.clients.get() <= MAX_POLLED)
    }

    fn ready(&self, _ctx: &AioContext) {
        if let Some(client) = self.0.upgrade() {
            client.poke();
        }
    }
}
