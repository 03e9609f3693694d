//! [`Connection`]: a client, from its connection to its end.

use std::cell::{Cell, RefCell};
use std::io::{self, ErrorKind};
use std::rc::Rc;

use coblk_aio::net::Stream;
use coblk_aio::{BottomHalf, Co, CoWaker, FdInterest, trace_event};

use crate::export::NbdExport;
use crate::handshake;
use crate::memory::{Buffer, PIECE, SMALL};
use crate::outbox::Outbox;
use crate::protocol::*;
use crate::receiver::Receiver;
use crate::reply::{Message, Style};
use crate::request::{self, Request, Rules};
use crate::server::Shared;
use crate::transport::Transport;
use crate::{pieces, serve};

/// Requests, options and pieces that a client may have read in a row, while other clients wait for their turn.
const MAX_TURN: usize = 64;

/// What was agreed on with a client.
#[derive(Clone)]
pub struct Session {
    pub export: Rc<NbdExport>,
    pub style: Style,
    pub rules: Rules,
}

/// What becomes of a request.
enum Plan {
    /// A coroutine of its own carries it out, in this memory.
    Run(Option<Buffer>),
    /// There is no room for all of its data.
    InPieces,
    /// It is answered with this errno.
    Refuse(i32),
}

/// A client. Its own coroutine reads; everything else may send.
pub struct Connection {
    pub server: Rc<Shared>,
    pub transport: Transport,
    /// Set once it has chosen one.
    pub export: RefCell<Option<Rc<NbdExport>>>,
    /// There may be something to read.
    pub readable: Cell<bool>,
    /// The client has closed its end.
    pub closed: Cell<bool>,
    /// How to resume its own coroutine, while that waits.
    pub waker: Cell<Option<CoWaker>>,
    pub outbox: RefCell<Outbox>,
    /// The socket is full; its handler looks for room.
    pub is_full: Cell<bool>,
    /// Sends what has gathered in one iteration of the loop.
    pub sender: RefCell<Option<BottomHalf>>,
    /// Requests that are not answered yet.
    pub in_flight: Cell<usize>,
    /// No request is read any more.
    pub ending: Cell<bool>,
    /// Nothing can be sent any more.
    pub failed: Cell<bool>,
    /// Bytes of shared memory it holds.
    pub held: Cell<usize>,
    /// Requests, options and pieces read since its coroutine has last let others run.
    pub turn: Cell<usize>,
    pub send_stuck_since_ns: Cell<Option<i64>>,
    pub receive_stuck_since_ns: Cell<Option<i64>>,
}

impl Connection {
    pub fn new(server: &Rc<Shared>, socket: Stream) -> Rc<Connection> {
        Rc::new(Connection {
            server: Rc::clone(server),
            transport: Transport::new(socket),
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
            turn: Cell::new(0),
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
        ctx.unset_fd_handler(&self.transport);
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
            self.give_way(co);
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
            match self.prepare(co, receiver, session, &request)? {
                Plan::Run(buffer) => {
                    self.in_flight.set(self.in_flight.get() + 1);
                    serve::start(co, self, session, request, buffer);
                }
                Plan::InPieces => pieces::serve(co, self, receiver, session, &request)?,
                Plan::Refuse(errno) => {
                    self.in_flight.set(self.in_flight.get() + 1);
                    self.answer(Message::error(session.style, &request, errno), co.context());
                }
            }
        }
    }

    /// Lets others run if that was long ago: what a client sends may come as fast as it is served, and
    /// then nothing else makes its coroutine wait. Called for every option, request and piece of data.
    pub fn give_way(&self, co: &Co<'_>) {
        self.turn.set(self.turn.get() + 1);
        if self.turn.get() > MAX_TURN {
            self.turn.set(0);
            self.flush(co.context());
            co.reschedule();
        }
    }

    /// Checks a request, makes room for its payload, and reads it if it comes from the client.
    ///
    /// # Errors
    /// If the connection cannot go on.
    fn prepare(
        self: &Rc<Self>,
        co: &Co<'_>,
        receiver: &mut Receiver,
        session: &Session,
        request: &Request,
    ) -> io::Result<Plan> {
        let payload = request.payload_len(session.style == Style::Extended);
        let plan = match request.check(&session.rules) {
            Ok(()) => self.room_for(request).unwrap_or(Plan::Refuse(libc::ENOMEM)),
            Err(errno) => Plan::Refuse(errno),
        };
        match plan {
            Plan::Run(Some(mut buffer)) if payload > 0 => {
                receiver.fill(co, self, &mut buffer)?;
                Ok(Plan::Run(Some(buffer)))
            }
            Plan::InPieces => Ok(Plan::InPieces),
            plan => {
                // Otherwise the payload would be taken for requests.
                receiver.skip(co, self, payload)?;
                Ok(plan)
            }
        }
    }

    /// # Errors
    /// If the system has no memory.
    fn room_for(self: &Rc<Self>, request: &Request) -> io::Result<Plan> {
        let memory = &self.server.memory;
        // At most 32 MiB, as was checked.
        let len = request.length as usize;
        Ok(match request.command {
            CMD_READ | CMD_WRITE => match memory.take(self, len)? {
                None => Plan::InPieces,
                buffer => Plan::Run(buffer),
            },
            CMD_CACHE => match memory.take(self, len.min(PIECE))? {
                None => Plan::Run(Some(memory.uncounted(self, SMALL)?)),
                buffer => Plan::Run(buffer),
            },
            _ => Plan::Run(None),
        })
    }

    /// Waits for what is in flight, and until all replies have gone.
    fn finish(&self, co: &Co<'_>) {
        loop {
            let sent = self.flush(co.context());
            let has_replies = !self.failed.get() && !self.has_sent_all();
            if self.in_flight.get() == 0 && !has_replies {
                return;
            }
            if !sent {
                self.suspend(co);
            }
        }
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
