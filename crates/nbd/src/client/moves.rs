//! Requests of contexts that have no connection, and connections that come to other contexts.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::{AioHandle, Co, IoVector};

use crate::client::link::Sink;
use crate::client::making::{self, Reason, Waited};
use crate::client::session::Facts;
use crate::client::shared::Shared;
use crate::client::{keeper, lanes};
use crate::protocol::request::Request;
use crate::transport::Transport;

/// Carries a request out by a new connection of this context's own, if there may be another, or in a context
/// that has one.
///
/// # Errors
/// Those of [`Connection::co_request`](crate::client::connection::Connection::co_request).
#[cold]
pub fn co_request_elsewhere(
    co: &Co<'_>,
    shared: &Arc<Shared>,
    request: Request,
    payload: Option<&IoVector<'_>>,
    sink: &mut Sink<'_, '_>,
) -> io::Result<()> {
    let own = co.context().handle();
    loop {
        if let Waited::Cancelled = co_add(co, shared)? {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        if let Some(connection) = lanes::find(shared.number, co.context()) {
            return connection.co_request(co, request, payload, sink);
        }
        let mut is_any = false;
        for home in shared.homes().into_iter().filter(|home| *home != own) {
            let number = shared.number;
            let done = co.call_at(&home, "nbd_request", |co| {
                match lanes::find(number, co.context()) {
                    Some(connection) => {
                        Elsewhere::Done(connection.co_request(co, request, payload, sink))
                    }
                    // While one is made it is of no use yet.
                    None if making::is_there(number, co.context()) => Elsewhere::NotYet,
                    None => Elsewhere::Gone,
                }
            });
            match done {
                Ok(Elsewhere::Done(result)) => return result,
                Ok(Elsewhere::NotYet) => {}
                Ok(Elsewhere::Gone) | Err(_) => {
                    shared.leave(&home);
                    is_any = true;
                }
            }
        }
        if !is_any {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
    }
}

/// What another context has done with a request.
enum Elsewhere {
    Done(io::Result<()>),
    NotYet,
    Gone,
}

/// Makes a connection in this context, if there may be another one.
///
/// # Errors
/// If the loop cannot wait for the only one.
fn co_add(co: &Co<'_>, shared: &Arc<Shared>) -> io::Result<Waited> {
    let home = co.context().handle();
    if shared.is_quiesced() || !shared.enter(&home) {
        return Ok(Waited::GoOn);
    }
    // A drain that has begun meanwhile did not tell this context.
    if shared.is_quiesced() {
        shared.leave(&home);
        return Ok(Waited::GoOn);
    }
    if shared.homes() != [home.clone()] {
        return Ok(making::co_make(co, shared));
    }
    // The only one: requests wait for it.
    match keeper::start(co.context(), shared, None) {
        Ok(_) => Ok(Waited::GoOn),
        Err(error) => {
            shared.leave(&home);
            Err(error)
        }
    }
}

/// Takes the connection of `from` to `to`, with its socket if that is possible. Nothing is in flight.
pub fn co_move(co: &Co<'_>, shared: &Arc<Shared>, from: &AioHandle, to: &AioHandle) {
    let number = shared.number;
    let has_one = co.call_at(to, "nbd_look", |co| lanes::find(number, co.context()).is_some());
    if !matches!(has_one, Ok(false)) {
        return;
    }
    // A server that has still to close the link before is not to be forgotten.
    let must_stay = co.call_at(from, "nbd_look", |co| {
        lanes::find(number, co.context()).is_some_and(|connection| connection.has_open_old())
    });
    if matches!(must_stay, Ok(true)) {
        return;
    }
    let taken = co.call_at(from, "nbd_leave", |co| detach(co, number));
    shared.leave(from);
    shared.enter(to);
    let made = taken.ok().flatten();
    let arrived = co.call_at(to, "nbd_arrive", move |co| {
        let made = made.map(|(transport, facts)| (Rc::new(transport), facts));
        keeper::start(co.context(), shared, made).map(drop)
    });
    match arrived {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            shared.leave(to);
            tracing::warn!(%error, "an NBD connection is left behind");
        }
        Err(_) => shared.leave(to),
    }
}

fn detach(co: &Co<'_>, number: usize) -> Option<(Transport, Facts)> {
    let connection = lanes::find(number, co.context())?;
    let made = connection.take_link().and_then(|link| {
        let facts = link.facts;
        Some((link.detach()?, facts))
    });
    connection.close();
    lanes::remove(co.context(), &connection);
    made
}

/// Ends all connections.
pub fn co_close(co: &Co<'_>, shared: &Shared) {
    let number = shared.number;
    for home in shared.homes() {
        // One that has ended has no connection any more.
        let _ = co.call_at(&home, "nbd_close", |co| {
            making::give_up(number, co.context(), Reason::Drained);
            if let Some(connection) = lanes::find(number, co.context()) {
                connection.close();
            }
        });
    }
}
