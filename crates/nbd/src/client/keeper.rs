//! The coroutine that keeps a connection: makes a link anew when one is lost.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use coblk_aio::net::Stream;
use coblk_aio::{AioContext, Co};

use crate::client::connection::{Connection, longer};
use crate::client::handshake;
use crate::client::lanes;
use crate::client::link::Link;
use crate::client::session::Facts;
use crate::client::shared::Shared;
use crate::client::target::Target;
use crate::client::wire::Wire;
use crate::transport::Transport;

/// How long a host may take to answer.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long a server may take to negotiate.
const NEGOTIATE_LIMIT: Duration = Duration::from_secs(10);
/// How long a server may take to close a connection that was lost, before it is asked for another one.
const FIRST_CLOSE_LIMIT: Duration = Duration::from_secs(1);
/// How long one that has negotiated another connection, and so is there, may take. What it has received on the old one
/// it may carry out until then.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);
/// Room of a socket for requests: a long write goes with one call, and does not wait for the server in between.
const SEND_ROOM: usize = 2 << 20;
/// A sleep that only a wake ends.
const LONG: Duration = Duration::from_secs(24 * 3600);

/// A transport whose server has chosen the export.
pub type Made = (Rc<Transport>, Facts);

/// Connects and negotiates. `begun` gets what can be ended meanwhile.
///
/// # Errors
/// If no server is there, or it refuses, or takes too long.
pub fn co_connect(co: &Co<'_>, target: &Target, begun: impl FnOnce(&Rc<Wire>)) -> io::Result<Made> {
    let stream = Stream::co_connect(co, &target.server, CONNECT_LIMIT);
    let stream = stream.map_err(|error| io::Error::other(error.to_string()))?;
    let wire = Wire::new(co.context(), stream)?;
    begun(&wire);
    let own = wire.weak();
    let timer = co.context().timer(move |_| {
        if let Some(own) = own.upgrade() {
            own.end("the server did not negotiate in time");
        }
    });
    timer.arm_after(NEGOTIATE_LIMIT);
    let facts = handshake::negotiate(co, &wire, target)?;
    let transport = wire.into_transport();
    transport.ask_for_room(SEND_ROOM);
    Ok((transport, facts))
}

/// Keeps a connection in this context, from now until it is closed. Without `made` a link is made first.
///
/// # Errors
/// If the loop cannot wait for the socket.
pub fn start(
    ctx: &AioContext,
    shared: &Arc<Shared>,
    made: Option<(Rc<Transport>, Facts)>,
) -> io::Result<Rc<Connection>> {
    let connection = Connection::new(ctx, Arc::clone(shared));
    let era = shared.era();
    match made {
        // A server that has still to close others is not used before it has.
        Some((transport, facts)) if !shared.has_unclosed() => {
            connection.set_link(Link::open(ctx, transport, facts, connection.watcher())?, era);
        }
        _ => connection.wait_for_link(CONNECT_LIMIT + NEGOTIATE_LIMIT),
    }
    lanes::add(shared.number, ctx, Rc::clone(&connection));
    let kept = Rc::clone(&connection);
    ctx.spawn("nbd_client", move |co| {
        let kept = Kept { connection: kept, ctx: co.context() };
        kept.connection.co_keep(co);
    });
    Ok(connection)
}

/// The connection is known as long as its coroutine lives.
struct Kept<'a> {
    connection: Rc<Connection>,
    ctx: &'a AioContext,
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        let Kept { connection, ctx } = self;
        connection.close();
        if let Some(link) = connection.take_link() {
            link.disconnect();
        }
        connection.forget_old();
        // Another one may be there already.
        if lanes::remove(ctx, connection) {
            connection.shared.leave(&connection.home);
        }
    }
}

impl Connection {
    fn co_keep(&self, co: &Co<'_>) {
        while !self.closing.get() {
            match self.link().is_some_and(|link| !link.is_lost()) {
                true => _ = self.keeper.sleep(co, LONG),
                false => self.co_reconnect(co),
            }
        }
    }

    fn co_reconnect(&self, co: &Co<'_>) {
        self.co_see_closed(co, FIRST_CLOSE_LIMIT, || self.has_open_old());
        let mut pause = self.pause.get();
        while !self.closing.get() {
            self.co_pause(co, pause);
            while self.shared.is_quiesced() && !self.closing.get() {
                self.keeper.sleep(co, LONG);
            }
            match self.co_attempt(co) {
                Ok(link) => {
                    let era = self.shared.era();
                    self.co_see_all_closed(co);
                    if link.is_lost() {
                        pause = longer(pause);
                        continue;
                    }
                    tracing::info!(server = %self.shared.target.server, "reconnected to an NBD server");
                    return self.set_link(link, era);
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot reconnect to an NBD server");
                    pause = longer(pause);
                }
            }
        }
    }

    /// Waits for so long: what wakes the keeper meanwhile is no reason to be faster, but for the end.
    fn co_pause(&self, co: &Co<'_>, pause: Duration) {
        let end_ns = co.context().now_ns() + pause.as_nanos() as i64;
        while !self.closing.get() {
            let left_ns = u64::try_from(end_ns - co.context().now_ns()).unwrap_or(0);
            if left_ns == 0 {
                return;
            }
            self.keeper.sleep(co, Duration::from_nanos(left_ns));
        }
    }

    /// Waits until the server has closed all links of the node that were lost, so that it carries nothing out any more
    /// that it has received there. It is there: a new one has been negotiated.
    fn co_see_all_closed(&self, co: &Co<'_>) {
        // Those of other contexts are their keepers' to see.
        if !self.co_see_closed(co, CLOSE_LIMIT, || self.shared.has_unclosed()) {
            tracing::warn!(
                server = %self.shared.target.server,
                "an NBD server does not close a connection that was lost"
            );
        }
        self.forget_old();
    }

    /// Waits while there `is_open` one that the server has not closed, for so long. False if there is still.
    fn co_see_closed(&self, co: &Co<'_>, limit: Duration, is_open: impl Fn() -> bool) -> bool {
        let end_ns = co.context().now_ns() + limit.as_nanos() as i64;
        loop {
            if !self.has_open_old() {
                self.forget_old();
            }
            let left_ns = u64::try_from(end_ns - co.context().now_ns()).unwrap_or(0);
            if !is_open() || left_ns == 0 || self.closing.get() {
                return !is_open();
            }
            self.keeper.sleep(co, Duration::from_nanos(left_ns));
        }
    }

    fn co_attempt(&self, co: &Co<'_>) -> io::Result<Rc<Link>> {
        let begun = |wire: &Rc<Wire>| *self.attempt.borrow_mut() = wire.weak();
        let (transport, facts) = co_connect(co, &self.shared.target, begun)?;
        self.shared.check(&facts)?;
        Link::open(co.context(), transport, facts, self.watcher())
    }
}
