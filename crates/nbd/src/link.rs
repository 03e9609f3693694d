//! How a [`Connection`] waits for its socket, and sends.

use std::cell::Cell;
use std::io::{self, ErrorKind};
use std::rc::{Rc, Weak};

use coblk_aio::{AioContext, BusyPoll, Co, CoWaker, FdInterest, Readiness};

use crate::connection::Connection;
use crate::outbox::Sent;
use crate::reply::Message;

/// With more clients than these none is polled: asking each takes longer than being told of one.
const MAX_POLLED: usize = 8;

/// Waiting, and what ends it. The connection's own coroutine waits, and nobody else.
impl Connection {
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
            if !self.flush(co.context()) {
                self.suspend(co);
            }
        }
    }

    /// Waits until all has been sent, so that a client that asks and never reads asks once.
    pub fn wait_sent(&self, co: &Co<'_>) -> io::Result<()> {
        self.wait_until(co, || self.has_sent_all())
    }

    pub fn has_sent_all(&self) -> bool {
        self.outbox.borrow().is_empty() && !self.transport.has_unsent()
    }

    /// Waits until there may be something to read.
    ///
    /// # Errors
    /// If nothing is to be read any more.
    pub fn wait_readable(&self, co: &Co<'_>) -> io::Result<()> {
        if !self.ending.get() {
            self.wait_until(co, || self.readable.get() || self.ending.get())?;
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
            match self.transport.read(target) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(bytes) => {
                    // A short read has emptied the socket, and what comes later is reported. Not so
                    // the end, if it was there already. Of TLS a part may be here and no further.
                    let is_all = bytes < target.len() && !self.transport.is_secure();
                    self.readable.set(!is_all || self.closed.get());
                    self.receive_stuck_since_ns.set(None);
                    return Ok(bytes);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.readable.set(false);
                    self.receive_stuck_since_ns.set(Some(co.context().now_ns()));
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Resumes the coroutine, if it waits, to look again.
    pub fn poke(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    pub fn suspend(&self, co: &Co<'_>) {
        struct ForgetOnUnwind<'a>(&'a Cell<Option<CoWaker>>);
        impl Drop for ForgetOnUnwind<'_> {
            fn drop(&mut self) {
                drop(self.0.take());
            }
        }
        let _forget = ForgetOnUnwind(&self.waker);
        self.turn.set(0);
        co.suspend_for("an NBD client", |waker| self.waker.set(Some(waker)));
    }

    pub fn watch(self: &Rc<Self>, ctx: &AioContext, interest: FdInterest) -> io::Result<()> {
        let own: Weak<Connection> = Rc::downgrade(self);
        let poll = SocketPoll(Weak::clone(&own));
        let ready = move |ctx: &AioContext, readiness| {
            if let Some(own) = own.upgrade() {
                own.ready(ctx, readiness);
            }
        };
        ctx.set_polled_fd_handler(&self.transport, interest, ready, poll)
    }

    fn ready(self: &Rc<Self>, ctx: &AioContext, readiness: Readiness) {
        if readiness.closed {
            self.closed.set(true);
        }
        if readiness.readable {
            self.readable.set(true);
        }
        if readiness.writable && self.is_full.get() {
            self.flush(ctx);
        }
        self.poke();
    }
}

/// Sending, and the end of it.
impl Connection {
    /// Sends a reply: at once if it is the only one to come, else with the others of this iteration.
    pub fn answer(self: &Rc<Self>, message: Message, ctx: &AioContext) {
        self.post(message);
        if !self.is_waiting() {
            // Its own coroutine runs, and sends before it waits.
            return;
        }
        if self.in_flight.get() == 1 {
            self.flush(ctx);
        } else if let Some(sender) = &*self.sender.borrow() {
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

    /// Since when the client has kept us waiting, with memory in our hands.
    pub fn stuck_since_ns(&self) -> Option<i64> {
        if self.held.get() == 0 {
            return None;
        }
        let (send, receive) = (self.send_stuck_since_ns.get(), self.receive_stuck_since_ns.get());
        [send, receive].into_iter().flatten().min()
    }

    pub fn is_waiting(&self) -> bool {
        let waker = self.waker.take();
        let is_waiting = waker.is_some();
        self.waker.set(waker);
        is_waiting
    }

    /// Sends what the socket takes. Returns whether it took anything, or has failed.
    pub fn flush(&self, ctx: &AioContext) -> bool {
        let mut progress = false;
        loop {
            if self.failed.get() || self.has_sent_all() {
                break;
            }
            let result = self.outbox.borrow_mut().send(&self.transport);
            match result {
                Ok(sent) => {
                    progress = true;
                    self.send_stuck_since_ns.set(None);
                    self.retire(sent);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if self.send_stuck_since_ns.get().is_none() {
                        self.send_stuck_since_ns.set(Some(ctx.now_ns()));
                    }
                    if !self.is_full.replace(true) {
                        self.rewatch(ctx, FdInterest::ReadWrite);
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
            self.rewatch(ctx, FdInterest::Read);
        }
        progress
    }

    fn rewatch(&self, ctx: &AioContext, interest: FdInterest) {
        // Only a connection that is served has one to watch.
        let own = self.server.find(self);
        if own.is_none_or(|own| own.watch(ctx, interest).is_err()) {
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
struct SocketPoll(Weak<Connection>);

impl BusyPoll for SocketPoll {
    fn is_busy(&self, ctx: &AioContext) -> bool {
        self.0.upgrade().is_some_and(|client| {
            let expects = client.is_waiting() && !client.readable.get();
            expects && self.pays(ctx) && client.transport.has_input()
        })
    }

    fn pays(&self, _ctx: &AioContext) -> bool {
        self.0.upgrade().is_some_and(|client| client.server.connections() <= MAX_POLLED)
    }

    fn ready(&self, _ctx: &AioContext) {
        if let Some(client) = self.0.upgrade() {
            client.readable.set(true);
            client.poke();
        }
    }
}
