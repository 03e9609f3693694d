//! [`NbdServer`]: listens, knows the exports and the clients, and ends in order.

mod client;
mod contexts;
pub mod export;
mod exports;
mod handshake;
mod link;
mod memory;
mod message;
pub mod options;
mod outbox;
mod pace;
mod pending_read;
mod pieces;
mod receiver;
mod refusals;
mod rules;
mod serve;
mod session;
mod sparse;
mod starttls;
mod status;
mod turn;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use coblk_aio::net::{AcceptOptions, Acceptor, Listener, Slot, SocketAddress, Stream};
use coblk_aio::{AioContext, Co, Timer};
use coblk_export::RemoveMode;

use crate::server::client::Client;
use crate::server::export::{NbdExport, NbdExportError};
use crate::server::exports::Exports;
use crate::server::link::Link;
use crate::server::memory::Memory;
use crate::server::options::NbdOptions;
use crate::server::pace::Verdict;
use crate::server::refusals::Refusals;

/// How often clients are looked at that hold memory when others got none.
const LOOK: Duration = Duration::from_secs(1);

/// An NBD server on the loop of one context.
///
/// It and its exports stay on the context's thread. Dropping it stops it as
/// [`disconnect_all`](Self::disconnect_all) does; [`co_shutdown`](Self::co_shutdown) lets clients
/// have their replies first.
///
/// ```
/// use coblk_aio::AioContext;
/// use coblk_block::{BackendOptions, BlockNode, drivers::Null};
/// use coblk_nbd::{NbdExport, NbdOptions, NbdServer, SocketAddress};
///
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("nbd.sock");
/// let ctx = AioContext::new()?;
/// let disk = BlockNode::new("disk0", Null::new(1 << 30));
/// let backend = BackendOptions::new("drive").open(&ctx, disk)?;
/// let server = NbdServer::listen(&ctx, &SocketAddress::unix(path), NbdOptions::default())?;
/// server.add_export(NbdExport::new("disk", backend).description("a disk of zeroes"))?;
/// ctx.run(|co| server.co_shutdown(co, std::time::Duration::from_secs(1)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct NbdServer {
    shared: Rc<Shared>,
    acceptor: Acceptor,
    addresses: Vec<SocketAddress>,
}

impl fmt::Debug for NbdServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NbdServer")
            .field("addresses", &self.addresses)
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}

impl NbdServer {
    /// Listens at `address`. Clients find no exports before some are added.
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
        options: NbdOptions,
    ) -> io::Result<NbdServer> {
        Self::from_listener(ctx, Listener::bind(address)?, options)
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
        options: NbdOptions,
    ) -> io::Result<NbdServer> {
        let addresses = listener.addresses().to_vec();
        let mut accept = AcceptOptions::new("an NBD client");
        accept.max_clients = options.max_connections;
        accept.paused = options.paused;
        let shared = Shared::new(ctx, options);
        let server = Rc::clone(&shared);
        let acceptor = Acceptor::start(ctx, listener, accept, move |co, stream, slot| {
            server.adopt(co.context(), stream, slot);
        })?;
        Ok(NbdServer { shared, acceptor, addresses })
    }

    /// Where it listens, with the port that the system chose: several addresses if the host that it
    /// was given has several.
    pub fn addresses(&self) -> &[SocketAddress] {
        &self.addresses
    }

    /// Offers an export to clients.
    ///
    /// # Errors
    /// If the name is taken, name or description are longer than 4096 bytes, or there is no medium.
    pub fn add_export(&self, export: NbdExport) -> Result<(), NbdExportError> {
        self.shared.exports.add(export)
    }

    /// Takes an export away (contract: C86). After a hard removal its backend is in use until the
    /// requests in flight are done.
    ///
    /// # Errors
    /// If there is none, or clients use it and the mode is [`RemoveMode::Safe`].
    pub fn remove_export(&self, name: &str, mode: RemoveMode) -> Result<(), NbdExportError> {
        let not_found = || NbdExportError::NotFound(name.to_owned());
        let export = self.shared.exports.get(name).ok_or_else(not_found)?;
        let users = self.shared.users(&export);
        if mode == RemoveMode::Safe && !users.is_empty() {
            return Err(NbdExportError::InUse { name: name.to_owned(), connections: users.len() });
        }
        self.shared.exports.remove(name);
        users.iter().for_each(|client| client.link.fail());
        Ok(())
    }

    /// How many clients use an export; 0 if there is none of that name.
    pub fn export_users(&self, name: &str) -> usize {
        self.shared.exports.get(name).map_or(0, |export| self.shared.users(&export).len())
    }

    /// How many clients are connected.
    pub fn connections(&self) -> usize {
        self.shared.connections()
    }

    /// Accepts clients, if it was made [paused](NbdOptions::paused).
    pub fn begin(&self) {
        self.acceptor.begin();
    }

    /// Accepts no more clients.
    pub fn stop_accepting(&self) {
        self.acceptor.stop();
    }

    /// Accepts no more clients, and disconnects all at once. Requests in flight go on, and are not
    /// answered.
    pub fn disconnect_all(&self) {
        self.stop_accepting();
        self.shared.all().iter().for_each(|client| client.link.fail());
    }

    /// Ends in order: accepts no more clients, reads no more requests, answers those in flight, and
    /// disconnects. A client that has not taken its replies after `limit` is disconnected all the same.
    /// Returns when no client, and no request of one, is left.
    pub fn co_shutdown(&self, co: &Co<'_>, limit: Duration) {
        self.stop_accepting();
        self.shared.all().iter().for_each(|client| client.link.end());
        let deadline =
            co.context().now_ns() + i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX / 2);
        while self.connections() > 0 || self.acceptor.is_running() {
            if co.context().now_ns() >= deadline {
                self.disconnect_all();
            }
            co.sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        self.disconnect_all();
    }
}

/// What the server and its clients have in common.
pub struct Shared {
    options: Rc<NbdOptions>,
    memory: Rc<Memory>,
    exports: Rc<Exports>,
    refusals: Rc<Refusals>,
    clients: RefCell<Vec<Rc<Client>>>,
    /// How many these are, for each of them.
    count: Rc<Cell<usize>>,
    /// Armed while clients keep memory of which others got none.
    look: Timer,
}

impl Shared {
    fn new(ctx: &AioContext, options: NbdOptions) -> Rc<Shared> {
        Rc::new_cyclic(|own: &std::rc::Weak<Shared>| {
            let looking = std::rc::Weak::clone(own);
            let look = ctx.timer(move |ctx| {
                if let Some(own) = looking.upgrade() {
                    own.look_after_memory(ctx);
                }
            });
            Shared {
                options: Rc::new(options),
                memory: Memory::new({
                    let own = std::rc::Weak::clone(own);
                    move || {
                        if let Some(own) = own.upgrade() {
                            own.memory_is_short();
                        }
                    }
                }),
                exports: Rc::default(),
                refusals: Rc::default(),
                clients: RefCell::default(),
                count: Rc::default(),
                look,
            }
        })
    }

    /// Serves a client in a coroutine of its own. Its place is free when that has ended.
    fn adopt(self: &Rc<Self>, ctx: &AioContext, stream: Stream, slot: Slot) {
        let link = Link::new(stream, Rc::clone(&self.count));
        let client = Client::new(link, &self.memory, &self.exports, &self.options, &self.refusals);
        self.clients.borrow_mut().push(Rc::clone(&client));
        self.count.set(self.connections());
        let server = Rc::clone(self);
        ctx.spawn("nbd_client", move |co| {
            // Given back when the client is off the list.
            let _slot = slot;
            let _leave = LeaveOnDrop { server, client: Rc::clone(&client) };
            session::run(co, &client);
        });
    }

    /// A client is gone.
    fn leave(&self, client: &Rc<Client>) {
        let mut clients = self.clients.borrow_mut();
        let place = clients.iter().position(|other| Rc::ptr_eq(other, client));
        let gone = place.map(|place| clients.swap_remove(place));
        self.count.set(clients.len());
        drop(clients);
        drop(gone);
    }

    pub fn connections(&self) -> usize {
        self.clients.borrow().len()
    }

    /// A client got no memory: from now on those that hold some are watched.
    pub fn memory_is_short(&self) {
        if !self.look.is_armed() {
            self.clients.borrow().iter().for_each(|client| client.pace.forget());
            self.look.arm_after(LOOK);
        }
    }

    fn look_after_memory(&self, ctx: &AioContext) {
        let mut again = false;
        for client in self.all() {
            match client.judge(ctx.now_ns()) {
                Verdict::Fine => {}
                Verdict::Open => again = true,
                Verdict::TooSlow => {
                    tracing::warn!("an NBD client that keeps memory from others is disconnected");
                    client.link.fail();
                }
            }
        }
        if again {
            self.look.arm_after(LOOK);
        }
    }

    /// All clients, to be called: they may leave meanwhile.
    fn all(&self) -> Vec<Rc<Client>> {
        self.clients.borrow().clone()
    }

    fn users(&self, export: &Rc<NbdExport>) -> Vec<Rc<Client>> {
        let uses = |client: &Rc<Client>| {
            client.export.borrow().as_ref().is_some_and(|used| Rc::ptr_eq(used, export))
        };
        self.clients.borrow().iter().filter(|client| uses(client)).cloned().collect()
    }
}

/// Takes a client off the server's list, also when its context ends before it does.
struct LeaveOnDrop {
    server: Rc<Shared>,
    client: Rc<Client>,
}

impl Drop for LeaveOnDrop {
    fn drop(&mut self) {
        self.client.link.close();
        self.server.leave(&self.client);
    }
}
