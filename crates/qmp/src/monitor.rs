//! [`Monitor`]: serves clients, one at a time, for as long as the daemon wants.

use std::cell::{Cell, RefCell};
use std::io::{self, ErrorKind};
use std::rc::Rc;
use std::time::{Duration, Instant};

use coblk_aio::sync::CoSleep;
use coblk_aio::{AioContext, Co, FdInterest, Timer};
use serde::Serialize;

use crate::command::CommandTable;
use crate::event::{Event, Limits};
use crate::session::Session;
use crate::socket::{Listener, QmpListener, SocketAddress, Stream, connect};

/// How long nobody is accepted after that has failed, for want of descriptors for one.
const PAUSE: Duration = Duration::from_millis(200);
/// A sleep that only a wake ends.
const LONG: Duration = Duration::from_secs(24 * 3600);

/// How a monitor speaks.
#[derive(Clone, Debug, Default)]
pub struct QmpOptions {
    /// Answers are spread over lines, for people.
    pub pretty: bool,
    /// What the greeting and `query-version` say.
    pub version: QmpVersion,
    /// Clients that come wait until [`Monitor::begin`]: for a daemon that is not ready yet.
    pub paused: bool,
}

/// A version, with QEMU's members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct QmpVersion {
    /// The version of QEMU whose commands these are.
    pub qemu: VersionTriple,
    /// What program this really is.
    pub package: String,
}

/// Three numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct VersionTriple {
    pub major: u32,
    pub minor: u32,
    pub micro: u32,
}

impl Default for QmpVersion {
    /// QEMU 10.0.2, whose words and answers the tests compare, by this library.
    fn default() -> QmpVersion {
        QmpVersion {
            qemu: VersionTriple { major: 10, minor: 0, micro: 2 },
            package: concat!("coblk ", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }
}

/// Serves one client after the other on the loop of one context. Those who come while there is one
/// wait, as with QEMU.
///
/// It stays on the context's thread. Dropping it disconnects the client;
/// [`co_shutdown`](Self::co_shutdown) lets it have its last answer first.
///
/// ```
/// use coblk_aio::AioContext;
/// use coblk_qmp::{CommandTable, Monitor, QmpError, QmpOptions, SocketAddress};
///
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("qmp.sock");
/// let ctx = AioContext::new()?;
/// let mut table = CommandTable::new();
/// table.command("quit", |_co, ()| {
///     // Tell the daemon.
///     Ok::<(), QmpError>(())
/// });
/// let address = SocketAddress::Unix(path);
/// let monitor = Monitor::listen(&ctx, &address, table.into(), QmpOptions::default())?;
/// ctx.run(|co| monitor.co_shutdown(co, std::time::Duration::from_secs(1)));
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Monitor {
    shared: Rc<Shared>,
    address: Option<SocketAddress>,
}

struct Shared {
    table: Rc<CommandTable>,
    options: QmpOptions,
    session: RefCell<Option<Rc<Session>>>,
    /// Its coroutine lives.
    is_running: Cell<bool>,
    is_stopping: Cell<bool>,
    is_paused: Cell<bool>,
    /// What its coroutine does while there is no client.
    idle: CoSleep,
    limits: Limits,
    /// Armed while events are kept back.
    tick: Timer,
}

impl Monitor {
    /// Listens at an address.
    ///
    /// # Errors
    /// If the system refuses the address, for instance because somebody else listens there.
    ///
    /// # Panics
    /// If there is no memory for a coroutine's stack.
    pub fn listen(
        ctx: &AioContext,
        address: &SocketAddress,
        table: Rc<CommandTable>,
        options: QmpOptions,
    ) -> io::Result<Monitor> {
        Self::start(ctx, Listener::bind(address)?, table, options)
    }

    /// Serves on a socket that listens already, as one that systemd has passed.
    ///
    /// # Errors
    /// If the socket cannot be used.
    ///
    /// # Panics
    /// If there is no memory for a coroutine's stack.
    pub fn from_listener(
        ctx: &AioContext,
        listener: QmpListener,
        table: Rc<CommandTable>,
        options: QmpOptions,
    ) -> io::Result<Monitor> {
        Self::start(ctx, Listener::from_open(listener)?, table, options)
    }

    fn start(
        ctx: &AioContext,
        listener: Listener,
        table: Rc<CommandTable>,
        options: QmpOptions,
    ) -> io::Result<Monitor> {
        let address = listener.local_address();
        let shared = Shared::new(ctx, table, options);
        let own = Rc::clone(&shared);
        let idle = shared.idle.clone();
        ctx.set_fd_handler(&listener, FdInterest::Read, move |_, _| idle.wake())?;
        ctx.spawn("qmp_monitor", move |co| {
            let _stopped = StoppedOnDrop(&own);
            own.wait_to_begin(co);
            own.accept(co, &listener);
            co.context().unset_fd_handler(&listener);
        });
        Ok(Monitor { shared, address })
    }

    /// Connects to a client that listens. With `reconnect`, a connection that cannot be made or has
    /// ended is tried again after that time, for ever; without, its end is the monitor's.
    ///
    /// # Errors
    /// Without `reconnect`, if the connection cannot be made; this call waits for it.
    ///
    /// # Panics
    /// If there is no memory for a coroutine's stack.
    pub fn connect(
        ctx: &AioContext,
        address: &SocketAddress,
        reconnect: Option<Duration>,
        table: Rc<CommandTable>,
        options: QmpOptions,
    ) -> io::Result<Monitor> {
        let first = if reconnect.is_none() { Some(connect(address)?) } else { None };
        let shared = Shared::new(ctx, table, options);
        let (own, target) = (Rc::clone(&shared), address.clone());
        ctx.spawn("qmp_monitor", move |co| {
            let _stopped = StoppedOnDrop(&own);
            own.wait_to_begin(co);
            if let Some(stream) = first {
                own.serve(co, stream);
            }
            if let Some(pause) = reconnect {
                own.reconnect(co, &target, pause);
            }
        });
        Ok(Monitor { shared, address: Some(address.clone()) })
    }

    /// Where it listens, with the port that the system chose, if that has a name; or where it
    /// connects to.
    pub fn address(&self) -> Option<&SocketAddress> {
        self.address.as_ref()
    }

    /// Lets clients in, if it was [paused](QmpOptions::paused).
    pub fn begin(&self) {
        self.shared.is_paused.set(false);
        self.shared.idle.wake();
    }

    /// Whether there is a client.
    pub fn is_connected(&self) -> bool {
        self.shared.session.borrow().is_some()
    }

    /// Tells the client, if there is one that has negotiated. A client that does not read for long
    /// misses events; it costs no more than 256 KiB and one answer.
    pub fn emit(&self, event: Event) {
        self.shared.emit(event);
    }

    /// Ends in order: accepts no more clients, and disconnects the one there is when it has the answer
    /// to the command that runs. If it has not taken that after `limit` it is disconnected all the
    /// same. Returns when no command runs.
    ///
    /// Not to be called by one of its own commands, which it would wait for.
    pub fn co_shutdown(&self, co: &Co<'_>, limit: Duration) {
        self.shared.stop(Session::end);
        let limit = i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX / 2);
        let deadline = co.context().now_ns() + limit;
        while self.shared.is_running.get() {
            if co.context().now_ns() >= deadline {
                self.shared.stop(Session::fail);
            }
            co.sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.shared.stop(Session::fail);
    }
}

impl Shared {
    fn new(ctx: &AioContext, table: Rc<CommandTable>, options: QmpOptions) -> Rc<Shared> {
        Rc::new_cyclic(|own: &std::rc::Weak<Shared>| {
            let own = own.clone();
            let tick = ctx.timer(move |_| {
                if let Some(own) = own.upgrade() {
                    own.tell_due();
                }
            });
            let is_paused = Cell::new(options.paused);
            Shared {
                table,
                options,
                is_paused,
                session: RefCell::default(),
                is_running: Cell::new(true),
                is_stopping: Cell::new(false),
                idle: CoSleep::new(),
                limits: Limits::default(),
                tick,
            }
        })
    }

    fn wait_to_begin(&self, co: &Co<'_>) {
        while self.is_paused.get() && !self.is_stopping.get() {
            self.rest(co, LONG);
        }
    }

    /// Serves clients that come, until the monitor stops.
    fn accept(&self, co: &Co<'_>, listener: &Listener) {
        while !self.is_stopping.get() {
            match listener.accept() {
                Ok(stream) => self.serve(co, stream),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => self.rest(co, LONG),
                    ErrorKind::Interrupted | ErrorKind::ConnectionAborted => {}
                    _ => {
                        tracing::warn!(%error, "cannot accept a QMP client");
                        self.rest(co, PAUSE);
                    }
                },
            }
        }
    }

    /// Serves the client at an address, again and again, until the monitor stops.
    fn reconnect(&self, co: &Co<'_>, address: &SocketAddress, pause: Duration) {
        while !self.is_stopping.get() {
            let pool = co.context().thread_pool();
            match pool.submit_co(co, || connect(address)) {
                Ok(stream) => self.serve(co, stream),
                Err(error) => tracing::debug!(%error, "cannot connect to a QMP client"),
            }
            self.rest(co, pause);
        }
    }

    fn rest(&self, co: &Co<'_>, duration: Duration) {
        if !self.is_stopping.get() {
            self.idle.sleep(co, duration);
        }
    }

    fn serve(&self, co: &Co<'_>, stream: Stream) {
        let session = Session::new(stream, self.options.clone());
        *self.session.borrow_mut() = Some(Rc::clone(&session));
        // The monitor may have been stopped while it connected.
        if self.is_stopping.get() {
            session.end();
        }
        match session.run(co, &self.table) {
            Ok(()) => tracing::debug!("a QMP client has disconnected"),
            Err(error) => tracing::debug!(%error, "a QMP client is gone"),
        }
        let session = self.session.take();
        drop(session);
    }

    fn emit(&self, event: Event) {
        if let Some(event) = self.limits.pass(event, Instant::now()) {
            self.tell(&event);
        }
        self.arm();
    }

    fn tell_due(&self) {
        self.limits.due(Instant::now()).iter().for_each(|event| self.tell(event));
        self.arm();
    }

    fn tell(&self, event: &Event) {
        let session = self.session.borrow().clone();
        if let Some(session) = session {
            session.tell(event);
        }
    }

    fn arm(&self) {
        if let Some(next) = self.limits.next() {
            self.tick.arm_after(next.saturating_duration_since(Instant::now()));
        }
    }

    fn stop(&self, how: impl FnOnce(&Session)) {
        self.is_stopping.set(true);
        self.idle.wake();
        let session = self.session.borrow().clone();
        if let Some(session) = session {
            how(&session);
        }
    }
}

/// Says that a monitor's coroutine has ended, also when its context ends before it does.
struct StoppedOnDrop<'a>(&'a Rc<Shared>);

impl Drop for StoppedOnDrop<'_> {
    fn drop(&mut self) {
        let session = self.0.session.take();
        drop(session);
        self.0.is_running.set(false);
    }
}
