//! [`Acceptor`]: lets the clients of a listener in, up to a limit.

use std::cell::Cell;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;

use super::address::KeepAlive;
use super::listener::{Listener, ListeningSocket};
use super::stream::Stream;
use crate::co::Co;
use crate::context::AioContext;
use crate::context::{FdHandler, FdInterest};
use crate::sync::CoSleep;

/// How long no client is accepted after that has failed, as when the process has no descriptors left.
const PAUSE: Duration = Duration::from_millis(200);
/// A sleep that only a wake ends.
const LONG: Duration = Duration::from_secs(24 * 3600);
/// Clients accepted in a row, while others wait for the loop.
const MAX_TURN: usize = 16;

/// How clients are let in.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AcceptOptions {
    /// What the clients are, for messages: `an NBD client`.
    pub what: &'static str,
    /// Clients at once; others wait in the queue of the socket. 0: any number.
    pub max_clients: usize,
    /// None is accepted before [`Acceptor::begin`].
    pub paused: bool,
}

impl AcceptOptions {
    /// Any number of clients, from now on.
    pub fn new(what: &'static str) -> AcceptOptions {
        AcceptOptions { what, max_clients: 0, paused: false }
    }
}

/// Accepts the clients of a [`Listener`] on the loop of one context, until it is stopped or dropped;
/// then the listener is closed. It stays on the context's thread.
///
/// An error of the system, such as too few descriptors or no memory for the stack of a client's
/// coroutine, is logged, and accepting goes on after 200 ms.
#[derive(Debug)]
#[must_use = "dropping it closes the listener"]
pub struct Acceptor {
    shared: Rc<Shared>,
}

/// The place of one client. Dropping it gives the place to the next.
#[derive(Debug)]
#[must_use = "dropping it gives the place to the next client"]
pub struct Slot {
    shared: Rc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: AcceptOptions,
    clients: Cell<usize>,
    paused: Cell<bool>,
    stopping: Cell<bool>,
    /// The coroutine lives, and with it the listener.
    running: Cell<bool>,
    /// For each socket, whether a client may wait there.
    ready: Vec<Cell<bool>>,
    idle: Idle,
}

/// What the coroutine does while there is nothing to accept.
#[derive(Default)]
struct Idle(CoSleep);

impl std::fmt::Debug for Idle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Idle")
    }
}

impl Acceptor {
    /// Calls `on_client` for each client, in a coroutine that accepts none meanwhile. There is a stack
    /// then for the next coroutine of the thread: the client's.
    ///
    /// # Errors
    /// If the loop cannot wait for the sockets; the listener is closed then.
    ///
    /// # Panics
    /// If there is no memory for a coroutine's stack.
    pub fn start(
        ctx: &AioContext,
        listener: Listener,
        options: AcceptOptions,
        on_client: impl FnMut(&Co<'_>, Stream, Slot) + 'static,
    ) -> io::Result<Acceptor> {
        let (sockets, keep_alive) = listener.into_sockets();
        let shared = Rc::new(Shared {
            clients: Cell::new(0),
            paused: Cell::new(options.paused),
            stopping: Cell::new(false),
            running: Cell::new(true),
            ready: sockets.iter().map(|_| Cell::new(true)).collect(),
            idle: Idle::default(),
            options,
        });
        let weak = Rc::downgrade(&shared);
        let sockets = watch(ctx, sockets, move |index| {
            if let Some(own) = weak.upgrade() {
                own.ready[index].set(true);
                own.idle.0.wake();
            }
        })?;
        let open = Open { sockets, keep_alive };
        let own = Rc::clone(&shared);
        ctx.spawn("accept", move |co| {
            let _ended = EndedOnDrop(&own);
            // Closed before that is told.
            let open = open;
            own.accept_clients(co, &open, on_client);
        });
        Ok(Acceptor { shared })
    }

    /// Lets clients in, if it was [paused](AcceptOptions::paused).
    pub fn begin(&self) {
        self.shared.paused.set(false);
        self.shared.idle.0.wake();
    }

    /// Accepts no more clients. The listener is closed, and its path removed, when the loop runs next.
    pub fn stop(&self) {
        self.shared.stopping.set(true);
        self.shared.idle.0.wake();
    }

    /// Whether the listener is open.
    pub fn is_running(&self) -> bool {
        self.shared.running.get()
    }

    /// How many clients have a place.
    pub fn clients(&self) -> usize {
        self.shared.clients.get()
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.shared.clients.set(self.shared.clients.get() - 1);
        self.shared.idle.0.wake();
    }
}

impl Shared {
    fn accept_clients(
        self: &Rc<Self>,
        co: &Co<'_>,
        open: &Open,
        mut on_client: impl FnMut(&Co<'_>, Stream, Slot),
    ) {
        let mut turn = 0;
        while !self.stopping.get() {
            let Some(index) = self.next() else {
                self.idle.0.sleep(co, LONG);
                turn = 0;
                continue;
            };
            let accepted = co.context().ensure_stack().and_then(|()| open.accept(index));
            match accepted {
                Ok(Some(stream)) => {
                    self.clients.set(self.clients.get() + 1);
                    on_client(co, stream, Slot { shared: Rc::clone(self) });
                }
                Ok(None) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.ready[index].set(false),
                Err(error) if is_of_one_client(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept {}", self.options.what);
                    self.rest(co);
                }
            }
            turn += 1;
            if turn >= MAX_TURN {
                turn = 0;
                co.yield_now();
            }
        }
    }

    /// The socket to accept at next, if any client may be let in.
    fn next(&self) -> Option<usize> {
        let most = self.options.max_clients;
        let is_crowded = most > 0 && self.clients.get() >= most;
        if is_crowded || self.paused.get() {
            return None;
        }
        self.ready.iter().position(Cell::get)
    }

    /// Pauses after an error, whatever wakes it but the end.
    fn rest(&self, co: &Co<'_>) {
        let deadline_ns = co.context().now_ns() + PAUSE.as_nanos() as i64;
        while !self.stopping.get() {
            match u64::try_from(deadline_ns - co.context().now_ns()) {
                Ok(left_ns @ 1..) => drop(self.idle.0.sleep(co, Duration::from_nanos(left_ns))),
                _ => return,
            }
        }
    }
}

/// Whether the connection itself is at fault, which is gone then: the next one may be better.
fn is_of_one_client(error: &io::Error) -> bool {
    const ERRORS: [i32; 9] = [
        libc::EINTR,
        libc::ECONNABORTED,
        libc::EPROTO,
        libc::ENOPROTOOPT,
        libc::ENETDOWN,
        libc::ENETUNREACH,
        libc::EHOSTDOWN,
        libc::EHOSTUNREACH,
        libc::ENONET,
    ];
    error.raw_os_error().is_some_and(|errno| ERRORS.contains(&errno))
}

/// The sockets of a listener, with their handlers.
struct Open {
    sockets: Vec<FdHandler<ListeningSocket>>,
    keep_alive: KeepAlive,
}

impl Open {
    fn accept(&self, index: usize) -> io::Result<Option<Stream>> {
        self.sockets[index].descriptor().accept(&self.keep_alive)
    }
}

impl Listener {
    /// Waits until a client can be accepted, for as long as `limit`; whether there is one. It is not
    /// accepted.
    ///
    /// # Errors
    /// If the loop cannot wait for the sockets.
    pub fn co_wait_for_client(&self, co: &Co<'_>, limit: Duration) -> io::Result<bool> {
        let (sleep, found) = (CoSleep::new(), Rc::new(Cell::new(false)));
        let (waker, seen) = (sleep.clone(), Rc::clone(&found));
        let _watched = watch(co.context(), self.sockets(), move |_| {
            seen.set(true);
            waker.wake();
        })?;
        sleep.sleep(co, limit);
        Ok(found.get())
    }
}

/// Has the loop look at sockets as long as what this returns lives: at all of them or none.
fn watch<F: AsFd>(
    ctx: &AioContext,
    sockets: impl IntoIterator<Item = F>,
    ready: impl Fn(usize) + Clone + 'static,
) -> io::Result<Vec<FdHandler<F>>> {
    let watch_one = |(index, socket)| {
        let ready = ready.clone();
        ctx.fd_handler(socket, FdInterest::Read, move |_, _| ready(index))
    };
    sockets.into_iter().enumerate().map(watch_one).collect()
}

/// Says that the coroutine has ended, also when its context ends before it does.
struct EndedOnDrop<'a>(&'a Rc<Shared>);

impl Drop for EndedOnDrop<'_> {
    fn drop(&mut self) {
        self.0.running.set(false);
    }
}
