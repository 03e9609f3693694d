//! Requests of contexts that have no connection, and connections that come to other contexts.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::{AioHandle, Co, IoVector};

use crate::client::link::Sink;
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
    loop {
        co_add(co, shared);
        if let Some(connection) = lanes::find(shared.number, co.context()) {
            return connection.co_request(co, request, payload, sink);
        }
        // While one is made it is of no use yet.
        let other = shared.homes().into_iter().find(|home| *home != co.context().handle());
        let Some(home) = other else {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        };
        let number = shared.number;
        let done = co.call_at(&home, "nbd_request", |co| {
            let connection = lanes::find(number, co.context())?;
            Some(connection.co_request(co, request, payload, sink))
        });
        match done {
            Ok(Some(result)) => return result,
            // It has gone meanwhile.
            _ => shared.leave(&home),
        }
    }
}

/// Makes a connection in this context, if there may be another one.
fn co_add(co: &Co<'_>, shared: &Arc<Shared>) {
    let home = co.context().handle();
    if shared.is_quiesced() || !shared.enter(&home) {
        return;
    }
    let started = match shared.homes() == [home.clone()] {
        // The only one: requests wait for it.
        true => keeper::start(co.context(), shared, None),
        false => keeper::co_connect(co, &shared.target, |_| {})
            .and_then(|made| shared.check(&made.1).map(|()| made))
            .and_then(|made| keeper::start(co.context(), shared, Some(made))),
    };
    if let Err(error) = started {
        tracing::debug!(%error, "no further connection with an NBD server");
        shared.leave(&home);
        shared.have_no_more();
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
            if let Some(connection) = lanes::find(number, co.context()) {
                connection.close();
            }
        });
    }
}
