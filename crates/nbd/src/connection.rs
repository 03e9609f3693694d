//! [`Connection`]: a client, from its connection to its end.

use std::cell::{Cell, RefCell};
use std::io::{self, ErrorKind};
use std::rc::{Rc, Weak};

use coblk_aio::{AioContext, BottomHalf, Co, CoWaker, FdInterest, Readiness, trace_event};

use crate::export::NbdExport;
use crate::handshake;
use crate::memory::Buffer;
use crate::outbox::{Outbox, Sent};
use crate::protocol::*;
use crate::receiver::Receiver;
use crate::reply::{Message, Style};
use crate::request::{self, Request, Rules};
use crate::serve;
use crate::server::Shared;
use crate::socket::Socket;

/// What was agreed on with a client.
#[derive(Clone)]
pub struct Session {
    pub export: Rc<NbdExport>,
    pub style: Style,
    pub rules: Rules,
}

/// A client. Its own coroutine reads; everything else may send.
pub struct Connection {
    pub server: Rc<Shared>,
    socket: Socket,
    /// Set once it has chosen one.
    pub export: RefCell<Option<Rc<NbdExport>>>,
    /// There may be something to read.
    readable: Cell<bool>,
    /// The client has closed its end.
    closed: Cell<bool>,
    /// How to resume its own coroutine, while that waits.
    waker: Cell<Option<CoWaker>>,
    outbox: RefCell<Outbox>,
    /// The socket is full; its handler looks for room.
    is_full: Cell<bool>,
    /// Sends what has gathered in one iteration of the loop.
    sender: RefCell<Option<BottomHalf>>,
    /// Requests that are not answered yet.
    in_flight: Cell<usize>,
    /// No request is read any more.
    ending: Cell<bool>,
    /// Nothing can be sent any more.
    failed: Cell<bool>,
    /// Bytes of shared memory it holds.
    pub held: Cell<usize>,
    /// It was given the memory it waited for.
    pub granted: Cell<bool>,
    send_stuck_since_ns: Cell<Option<i64>>,
    receive_stuck_since_ns: Cell<Option<i64>>,
}

impl Connection {
    pub fn new(server: &Rc<Shared>, socket: Socket) -> Rc<Connection> {
        Rc::new(Connection {
            server: Rc::clone(server),
            socket,
            export: RefCell::new(None),
            readable: Cell::new(true),
            closed: Cell::new(false),
            waker: Cell::new(None),
            outbox: RefCell::default(),
            is_full: Cell::new(false),
            sender: RefCell::new(None),
            in_flight: Cell::new(0),
            ending: Cell::new(false),
            failed: Cell::new(false),
            held: Cell::new(0),
            granted: Cell::new(false),
            send_stuck_since_ns: Cell::new(None),
            receive_stuck_since_ns: Cell::new(None),
        })
    }

    /// Serves the client to its end. The body of its coroutine.
    pub fn run(self: &Rc<Self>, co: &Co<'_>) {
        let ctx = co.context();
        let _leave = LeaveOnDrop(self);
        let own = Rc::downgrade(self);
        *self.sender.borrow_mut() = Some(ctx.bottom_half("nbd_send", move |ctx| {
            if let Some(own) = own.upgrade() {
                own.flush(ctx);
            }
        }));
        let result = self.watch(ctx, FdInterest::Read).and_then(|()| self.converse(co));
        match &result {
            Ok(()) => tracing::debug!("an NBD client has disconnected"),
            Err(error) => tracing::debug!(%error, "an NBD client is gone"),
        }
        self.ending.set(true);
        self.finish(co);
        self.fail();
        ctx.unset_fd_handler(&self.socket);
    }

    fn converse(self: &Rc<Self>, co: &Co<'_>) -> io::Result<()> {
        let mut receiver = Receiver::new();
        let own = Rc::downgrade(self);
        let timer = co.context().timer(move |_| {
            if let Some(own) = own.upgrade() {
                tracing::debug!("an NBD client did not negotiate in time");
                own.fail();
            }
        });
        timer.arm_after(self.server.options.handshake_timeout);
        let session = handshake::negotiate(co, self, &mut receiver)?;
        timer.cancel();
        match session {
            Some(session) => self.transmit(co, &mut receiver, &session),
            None => Ok(()),
        }
    }

    /// Reads requests, and starts each, until the client says that it disconnects.
    fn transmit(
        self: &Rc<Self>,
        co: &Co<'_>,
        receiver: &mut Receiver,
        session: &Session,
    ) -> io::Result<()> {
        let extended = session.style == Style::Extended;
        loop {
            self.wait_until(co, || self.in_flight.get() < MAX_REQUESTS)?;
            let request = if extended {
                Request::parse_extended(receiver.exact(co, self, request::EXTENDED_LEN)?)
            } else {
                Request::parse_compact(receiver.exact(co, self, request::COMPACT_LEN)?)
            };
            let request = request.ok_or_else(|| broken("not a request"))?;
            trace_event!(
                "nbd_receive_request",
                command = request.command,
                offset = request.offset,
                length = request.length
            );
            if request.command == CMD_DISC {
                return Ok(());
            }
            let prepared = self.prepare(co, receiver, session, &request)?;
            self.in_flight.set(self.in_flight.get() + 1);
            match prepared {
                Ok(buffer) => serve::start(co, self, session, request, buffer),
                Err(errno) => {
                    self.answer(Message::error(session.style, &request, errno), co.context());
                }
            }
        }
    }

    /// Checks a request, makes room for its payload, and reads it if it comes from the client. The
    /// inner error is the errno to answer with; the outer one ends the connection.
    fn prepare(
        self: &Rc<Self>,
        co: &Co<'_>,
        receiver: &mut Receiver,
        session: &Session,
        request: &Request,
    ) -> io::Result<Result<Option<Buffer>, i32>> {
        let payload = request.payload_len(session.style == Style::Extended);
        let room = match request.check(&session.rules) {
            Ok(()) if matches!(request.command, CMD_READ | CMD_WRITE) => {
                // At most 32 MiB, as was checked.
                match self.server.memory.take(co, self, request.length as usize) {
                    Ok(buffer) => Ok(Some(buffer)),
                    Err(error) if self.failed.get() => return Err(error),
                    Err(_) => Err(libc::ENOMEM),
                }
            }
            Ok(()) => Ok(None),
            Err(errno) => Err(errno),
        };
        match room {
            Ok(Some(mut buffer)) if payload > 0 => {
                receiver.fill(co, self, &mut buffer)?;
                Ok(Ok(Some(buffer)))
            }
            room => {
                // Otherwise the payload would be taken for requests.
                receiver.skip(co, self, payload)?;
                Ok(room)
            }
        }
    }

    /// Waits for what is in flight, and until all replies have gone.
    fn finish(&self, co: &Co<'_>) {
        loop {
            let sent = self.flush(co.context());
            let has_replies = !self.failed.get() && !self.outbox.borrow().is_empty();
            if self.in_flight.get() == 0 && !has_replies {
                return;
            }
            if !sent {
                self.suspend(co);
            }
        }
    }
}

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
        self.wait_until(co, || self.outbox.borrow().is_empty())
    }

    /// Reads at least one byte.
    pub fn read(&self, co: &Co<'_>, target: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.ending.get() {
                return Err(ErrorKind::ConnectionAborted.into());
            }
            self.wait_until(co, || self.readable.get() || self.ending.get())?;
            match self.socket.read(target) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(bytes) => {
                    // A short read has emptied the socket, and what comes later is reported. Not so
                    // the end, if it was there already.
                    self.readable.set(bytes == target.len() || self.closed.get());
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

    fn suspend(&self, co: &Co<'_>) {
        struct ForgetOnUnwind<'a>(&'a Cell<Option<CoWaker>>);
        impl Drop for ForgetOnUnwind<'_> {
            fn drop(&mut self) {
                drop(self.0.take());
            }
        }
        let _forget = ForgetOnUnwind(&self.waker);
        co.suspend_for("an NBD client", |waker| self.waker.set(Some(waker)));
    }

    fn watch(self: &Rc<Self>, ctx: &AioContext, interest: FdInterest) -> io::Result<()> {
        let own: Weak<Connection> = Rc::downgrade(self);
        ctx.set_fd_handler(&self.socket, interest, move |ctx, readiness| {
            if let Some(own) = own.upgrade() {
                own.ready(ctx, readiness);
            }
        })
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
            self.socket.shutdown();
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

    fn is_waiting(&self) -> bool {
        let waker = self.waker.take();
        let is_waiting = waker.is_some();
        self.waker.set(waker);
        is_waiting
    }

    /// Sends what the socket takes. Returns whether it took anything, or has failed.
    fn flush(&self, ctx: &AioContext) -> bool {
        let mut progress = false;
        loop {
            if self.failed.get() || self.outbox.borrow().is_empty() {
                break;
            }
            let result = self.outbox.borrow_mut().send(&self.socket);
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

/// Takes a client off the server's list, also when its context ends before it does.
struct LeaveOnDrop<'a>(&'a Rc<Connection>);

impl Drop for LeaveOnDrop<'_> {
    fn drop(&mut self) {
        let sender = self.0.sender.borrow_mut().take();
        drop(sender);
        self.0.server.leave(self.0);
    }
}

/// The client broke the protocol.
pub fn broken(what: &'static str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}
