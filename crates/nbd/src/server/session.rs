//! A client's conversation with the server, from its connection to its end: the body of its coroutine.

use std::io;
use std::rc::Rc;

use coblk_aio::{Co, trace_event};

use crate::protocol::reply::Style;
use crate::protocol::request::{self, Request};
use crate::protocol::*;
use crate::server::client::Client;
use crate::server::handshake::{self, Chosen};
use crate::server::memory::{Buffer, PIECE, SMALL};
use crate::server::message::Message;
use crate::server::receiver::Receiver;
use crate::server::reception::Reception;
use crate::server::rules::Session;
use crate::server::{pieces, serve};

/// What becomes of a request.
enum Plan {
    /// A coroutine of its own carries it out, in this memory.
    Run(Option<Buffer>),
    /// There is no room for all of its data.
    InPieces,
    /// It is answered with this errno.
    Refuse(i32),
}

/// How a conversation ends.
pub enum End {
    /// With the connection.
    Gone,
    /// It goes on in another context.
    Moved,
}

/// Has a conversation with a client, to its end or until it moves.
pub fn run(
    co: &Co<'_>,
    client: &Rc<Client>,
    conversation: impl FnOnce(&Co<'_>) -> io::Result<End>,
) {
    match client.link.open(co.context()).and_then(|()| conversation(co)) {
        Ok(End::Gone) => tracing::debug!("an NBD client has disconnected"),
        Ok(End::Moved) => return,
        Err(error) => {
            tracing::debug!(%error, "an NBD client is gone");
            // Long requests end with their next piece.
            client.link.wanted.give_up();
        }
    }
    client.link.finish(co);
}

/// Negotiates, within the time that there is for that. `None` if the client wants nothing more.
pub fn negotiate(
    co: &Co<'_>,
    reception: &Reception,
    client: &Rc<Client>,
    receiver: &mut Receiver,
) -> io::Result<Option<Chosen>> {
    let own = Rc::downgrade(&client.link);
    let timer = co.context().timer(move |_| {
        if let Some(own) = own.upgrade() {
            tracing::debug!("an NBD client did not negotiate in time");
            own.fail();
        }
    });
    timer.arm_after(reception.options.handshake_timeout);
    let chosen = handshake::negotiate(co, reception, client, receiver)?;
    if chosen.as_ref().is_some_and(|chosen| chosen.export.seats().is_some()) {
        // Nothing is left to be sent from here.
        client.link.wait_sent(co)?;
    }
    timer.cancel();
    Ok(chosen)
}

/// Reads requests, and starts each, until the client says that it disconnects.
pub fn transmit(
    co: &Co<'_>,
    client: &Rc<Client>,
    receiver: &mut Receiver,
    session: &Rc<Session>,
) -> io::Result<End> {
    let extended = session.terms.style == Style::Extended;
    loop {
        client.link.give_way(co);
        client.link.wait_for_requests(co, receiver, MAX_REQUESTS)?;
        let request = if extended {
            Request::parse_extended(receiver.exact(co, &client.link, request::EXTENDED_LEN)?)
        } else {
            Request::parse_compact(receiver.exact(co, &client.link, request::COMPACT_LEN)?)
        };
        let request = request.ok_or_else(|| broken("not a request"))?;
        trace_event!(
            "nbd_receive_request",
            command = request.command,
            offset = request.offset,
            length = request.length
        );
        if request.command == CMD_DISC {
            return Ok(End::Gone);
        }
        match prepare(co, client, receiver, session, &request)? {
            Plan::Run(buffer) => {
                client.link.in_flight.set(client.link.in_flight.get() + 1);
                serve::start(co, client, session, request, buffer);
            }
            Plan::InPieces => pieces::serve(co, client, receiver, session, &request)?,
            Plan::Refuse(errno) => {
                client.link.in_flight.set(client.link.in_flight.get() + 1);
                client.link.answer(Message::error(session.terms.style, &request, errno));
            }
        }
    }
}

/// Checks a request, makes room for its payload, and reads it if it comes from the client.
///
/// # Errors
/// If the connection cannot go on.
fn prepare(
    co: &Co<'_>,
    client: &Rc<Client>,
    receiver: &mut Receiver,
    session: &Session,
    request: &Request,
) -> io::Result<Plan> {
    let payload = request.payload_len(session.terms.style == Style::Extended);
    let plan = match session.terms.rules.check(request) {
        Ok(()) => room_for(client, request).unwrap_or(Plan::Refuse(libc::ENOMEM)),
        Err(errno) => Plan::Refuse(errno),
    };
    match plan {
        Plan::Run(Some(mut buffer)) if payload > 0 => {
            client.filling.set(if buffer.is_shared() { payload } else { 0 });
            receiver.fill(co, &client.link, &mut buffer)?;
            client.filling.set(0);
            Ok(Plan::Run(Some(buffer)))
        }
        Plan::InPieces => Ok(Plan::InPieces),
        plan => {
            // Otherwise the payload would be taken for requests.
            receiver.skip(co, &client.link, payload)?;
            Ok(plan)
        }
    }
}

/// # Errors
/// If the system has no memory.
fn room_for(client: &Rc<Client>, request: &Request) -> io::Result<Plan> {
    let memory = &client.memory;
    // At most 32 MiB, as was checked.
    let len = request.length as usize;
    if matches!(request.command, CMD_READ | CMD_CACHE) {
        // The data of a WRITE counts as it comes.
        client.link.turn.charge(len);
    }
    Ok(match request.command {
        CMD_READ | CMD_WRITE => match memory.take(&client.share, len)? {
            None => Plan::InPieces,
            buffer => Plan::Run(buffer),
        },
        CMD_CACHE => match memory.take(&client.share, len.min(PIECE))? {
            None => Plan::Run(Some(memory.uncounted(&client.share, SMALL)?)),
            buffer => Plan::Run(buffer),
        },
        _ => Plan::Run(None),
    })
}
