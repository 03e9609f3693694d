//! [`Monitor`]: serves clients, one at a time, for as long as the daemon wants.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use coblk_aio::net::{AcceptOptions, Acceptor, Listener, SocketAddress, Stream};
use coblk_aio::sync::CoSleep;
use coblk_aio::{AioContext, Co, PoolShare, Timer};
use serde::Serialize;

use crate::channel::{Channel, Pair};
use crate::command::CommandTable;
use crate::event::{Event, Limits};
use crate::session::Session;

/// A sleep that only a wake ends.
const LONG: Duration = Duration::from_secs(24 * 3600);

/// How a monitor speaks.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
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
#[non_exhaustive]
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

/// Serves one client after the other on the loop of one context. Others that come while there is one
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
/// let address = SocketAddress::unix(path);
/// let monitor = Monitor::listen(&ctx, &address, table.into(), QmpOptions::default())?;
/// ctx.run(|co| monitor.co_shutdown(co, std::time::Duration::from_secs(1)));
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Monitor {
    shared: Rc<Shared>,
    acceptor: Option<Acceptor>,
    addresses: Vec<SocketAddress>,
}

struct Shared {
    table: Rc<CommandTable>,
    options: QmpOptions,
    session: RefCell<Option<Rc<Session>>>,
    /// Its coroutines that live: sessions, and what connects.
    coroutines: Cell<usize>,
    /// Commands that have not ended.
    running: Rc<Cell<usize>>,
    is_stopping: Cell<bool>,
    is_paused: Cell<bool>,
    /// What the coroutine that connects does while there is no client.
    idle: CoSleep,
    limits: Limits,
    /// Armed while events are kept back.
    tick: Timer,
}

impl Monitor {
    /// Listens at an address.
    ///
    /// # Errors
    /// If the system refuses the address, for instance because a process listens there; the error
    /// wraps a [`SocketError`](coblk_aio::net::SocketError).
    ///
    /// # Panics
    /// If there is no memory for a coroutine's stack.
    pub fn listen(
        ctx: &AioContext,
        address: &SocketAddress,
        table: Rc<CommandTable>,
        options: QmpOptions,
    ) -> io::Result<Monitor> {
        Self::from_listener(ctx, Listener::bind(address)?, table, options)
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
        listener: Listener,
        table: Rc<CommandTable>,
        options: QmpOptions,
    ) -> io::Result<Monitor> {
        let addresses = listener.addresses().to_vec();
        let mut accept = AcceptOptions::new("a QMP client");
        accept.max_clients = 1;
        accept.paused = options.paused;
        let shared = Shared::new(ctx, table, options);
        let own = Rc::clone(&shared);
        let acceptor = Acceptor::start(ctx, listener, accept, move |co, stream, slot| {
            own.spawn(co.context(), "qmp_session", move |own, co| {
                let _slot = slot;
                own.serve(co, Channel::Socket(stream));
            });
        })?;
        Ok(Monitor { shared, acceptor: Some(acceptor), addresses })
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
        let first = if reconnect.is_none() { Some(Stream::connect(address)?) } else { None };
        let shared = Shared::new(ctx, table, options);
        let target = address.clone();
        shared.spawn(ctx, "qmp_monitor", move |own, co| {
            own.wait_to_begin(co);
            if let Some(stream) = first {
                own.serve(co, Channel::Socket(stream));
            }
            if let Some(pause) = reconnect {
                own.reconnect(co, &target, pause);
            }
        });
        Ok(Monitor { shared, acceptor: None, addresses: vec![address.clone()] })
    }

    /// Serves one client over two descriptors, as the standard input and output: pipes, terminals or
    /// files. The end of the input is the monitor's.
    ///
    /// # Errors
    /// If one of them is a socket, or cannot be used without blocking.
    ///
    /// # Panics
    /// If there is no memory for a coroutine's stack.
    pub fn over(
        ctx: &AioContext,
        input: OwnedFd,
        output: OwnedFd,
        table: Rc<CommandTable>,
        options: QmpOptions,
    ) -> io::Result<Monitor> {
        let pair = Pair::new(input, output)?;
        let shared = Shared::new(ctx, table, options);
        shared.spawn(ctx, "qmp_monitor", move |own, co| {
            own.wait_to_begin(co);
            own.serve(co, Channel::Pair(pair));
        });
        Ok(Monitor { shared, acceptor: None, addresses: Vec::new() })
    }

    /// Where it listens, with the port that the system chose: several addresses if its host has
    /// several; or where it connects to.
    pub fn addresses(&self) -> &[SocketAddress] {
        &self.addresses
    }

    /// Lets clients in, if it was [paused](QmpOptions::paused).
    pub fn begin(&self) {
        self.shared.is_paused.set(false);
        self.shared.idle.wake();
        self.acceptor.iter().for_each(Acceptor::begin);
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
    /// same. Returns when no command runs, of clients that have gone included.
    ///
    /// Not to be called by one of its own commands, which it would wait for.
    pub fn co_shutdown(&self, co: &Co<'_>, limit: Duration) {
        self.acceptor.iter().for_each(Acceptor::stop);
        self.shared.stop(Session::end);
        let limit = i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX / 2);
        let deadline = co.context().now_ns() + limit;
        let accepts = || self.acceptor.as_ref().is_some_and(Acceptor::is_running);
        let lives = || self.shared.coroutines.get() > 0 || self.shared.running.get() > 0;
        while accepts() || lives() {
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
                coroutines: Cell::new(0),
                running: Rc::default(),
                is_stopping: Cell::new(false),
                idle: CoSleep::new(),
                limits: Limits::default(),
                tick,
            }
        })
    }

    /// Runs code in a coroutine that the end of the monitor waits for.
    fn spawn(
        self: &Rc<Self>,
        ctx: &AioContext,
        name: &'static str,
        code: impl FnOnce(&Rc<Shared>, &Co<'_>) + 'static,
    ) {
        self.coroutines.set(self.coroutines.get() + 1);
        // Also dropped if the coroutine never runs.
        let ended = EndedOnDrop(Rc::clone(self));
        ctx.spawn(name, move |co| code(&ended.0, co));
    }

    fn wait_to_begin(&self, co: &Co<'_>) {
        while self.is_paused.get() && !self.is_stopping.get() {
            self.rest(co, LONG);
        }
    }

    /// Serves the client at an address, again and again, until the monitor stops.
    fn reconnect(&self, co: &Co<'_>, address: &SocketAddress, pause: Duration) {
        while !self.is_stopping.get() {
            match PoolShare::once(co, || Stream::connect(address)) {
                Ok(stream) => self.serve(co, Channel::Socket(stream)),
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

    fn serve(&self, co: &Co<'_>, channel: Channel) {
        let running = Rc::clone(&self.running);
        let session = Session::new(channel, self.options.clone(), running);
        *self.session.borrow_mut() = Some(Rc::clone(&session));
        let _forget = ForgetOnDrop(self);
        // The monitor may have been stopped while it connected.
        if self.is_stopping.get() {
            session.end();
        }
        match session.run(co, &self.table) {
            Ok(()) => tracing::debug!("a QMP client has disconnected"),
            Err(error) => tracing::debug!(%error, "a QMP client is gone"),
        }
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

/// Forgets a session that has ended, also when its context ends before it does.
struct ForgetOnDrop<'a>(&'a Shared);

impl Drop for ForgetOnDrop<'_> {
    fn drop(&mut self) {
        let session = self.0.session.take();
        drop(session);
    }
}

/// Says that a coroutine of a monitor has ended, also when its context ends before it does.
struct EndedOnDrop(Rc<Shared>);

impl Drop for EndedOnDrop {
    fn drop(&mut self) {
        self.0.coroutines.set(self.0.coroutines.get() - 1);
    }
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}
