//! [`NbdServer`]: listens, knows the exports and the clients, and ends in order.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use coblk_aio::net::{AcceptOptions, Acceptor, Listener, Slot, SocketAddress, Stream};
use coblk_aio::{AioContext, Co, Timer};

use crate::TlsCredentials;
use crate::connection::Connection;
use crate::export::{NbdExport, NbdExportError, RemoveMode};
use crate::memory::Memory;
use crate::protocol::MAX_STRING;

/// How long a client may keep memory and do nothing with it when others got none.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often that is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Limits of a server.
#[derive(Clone, Debug)]
pub struct NbdOptions {
    /// Clients at once; others wait to be accepted. 0: any number.
    pub max_connections: usize,
    /// How long a client may take until it has chosen an export.
    pub handshake_timeout: Duration,
    /// Clients wait to be accepted until [`NbdServer::begin`]: for a daemon that has more to do
    /// before it serves.
    pub paused: bool,
    /// How clients encrypt what they say; `None`, and always without the feature `tls`: they cannot.
    pub tls: Option<TlsCredentials>,
}

impl NbdOptions {
    /// The same with TLS: a client can do nothing before it has begun that, unless the credentials are
    /// optional.
    #[must_use]
    pub fn tls(self, credentials: TlsCredentials) -> NbdOptions {
        NbdOptions { tls: Some(credentials), ..self }
    }
}

impl Default for NbdOptions {
    /// 100 clients, 10 seconds, at once, no TLS.
    fn default() -> NbdOptions {
        NbdOptions {
            max_connections: 100,
            handshake_timeout: Duration::from_secs(10),
            paused: false,
            tls: None,
        }
    }
}

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
        if export.name.len() > MAX_STRING {
            return Err(NbdExportError::TooLong("name"));
        }
        if export.description.as_ref().is_some_and(|text| text.len() > MAX_STRING) {
            return Err(NbdExportError::TooLong("description"));
        }
        if export.backend.length().is_err() {
            return Err(NbdExportError::NoMedium(export.name));
        }
        let mut exports = self.shared.exports.borrow_mut();
        if exports.contains_key(&export.name) {
            return Err(NbdExportError::NameTaken(export.name));
        }
        exports.insert(export.name.clone(), Rc::new(export));
        Ok(())
    }

    /// Takes an export away (contract: C86). After a hard removal its backend is in use until the
    /// requests in flight are done.
    ///
    /// # Errors
    /// If there is none, or clients use it and the mode is [`RemoveMode::Safe`].
    pub fn remove_export(&self, name: &str, mode: RemoveMode) -> Result<(), NbdExportError> {
        let not_found = || NbdExportError::NotFound(name.to_owned());
        let export = self.shared.export(name).ok_or_else(not_found)?;
        let users = self.shared.users(&export);
        if mode == RemoveMode::Safe && !users.is_empty() {
            return Err(NbdExportError::InUse { name: name.to_owned(), connections: users.len() });
        }
        self.shared.exports.borrow_mut().remove(name);
        users.iter().for_each(|client| client.fail());
        Ok(())
    }

    /// How many clients use an export; 0 if there is none of that name.
    pub fn export_users(&self, name: &str) -> usize {
        self.shared.export(name).map_or(0, |export| self.shared.users(&export).len())
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
        self.shared.all().iter().for_each(|client| client.fail());
    }

    /// Ends in order: accepts no more clients, reads no more requests, answers those in flight, and
    /// disconnects. Who has not taken its replies after `limit` is disconnected all the same.
    /// Returns when no client, and no request of one, is left.
    pub fn co_shutdown(&self, co: &Co<'_>, limit: Duration) {
        self.stop_accepting();
        self.shared.all().iter().for_each(|client| client.end());
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
    pub options: NbdOptions,
    pub memory: Rc<Memory>,
    exports: RefCell<BTreeMap<String, Rc<NbdExport>>>,
    clients: RefCell<Vec<Rc<Connection>>>,
    /// Armed while clients keep memory of which others got none.
    look: Timer,
}

impl Shared {
    fn new(ctx: &AioContext, options: NbdOptions) -> Rc<Shared> {
        Rc::new_cyclic(|own: &std::rc::Weak<Shared>| {
            let own = own.clone();
            let look = ctx.timer(move |ctx| {
                if let Some(own) = own.upgrade() {
                    own.look_after_memory(ctx);
                }
            });
            Shared {
                options,
                memory: Memory::new(),
                exports: RefCell::default(),
                clients: RefCell::default(),
                look,
            }
        })
    }

    pub fn export(&self, name: &str) -> Option<Rc<NbdExport>> {
        self.exports.borrow().get(name).cloned()
    }

    /// The names of all exports, with their descriptions.
    pub fn export_names(&self) -> Vec<(String, String)> {
        let exports = self.exports.borrow();
        let names = exports
            .values()
            .map(|export| (export.name.clone(), export.description.clone().unwrap_or_default()));
        names.collect()
    }

    /// Serves a client in a coroutine of its own. Its place is free when that has ended.
    fn adopt(self: &Rc<Self>, ctx: &AioContext, stream: Stream, slot: Slot) {
        let client = Connection::new(self, stream);
        self.clients.borrow_mut().push(Rc::clone(&client));
        ctx.spawn("nbd_client", move |co| {
            let _slot = slot;
            client.run(co);
        });
    }

    /// A client is gone.
    pub fn leave(&self, client: &Connection) {
        let mut clients = self.clients.borrow_mut();
        let place = clients.iter().position(|other| std::ptr::eq(&**other, client));
        let gone = place.map(|place| clients.swap_remove(place));
        drop(clients);
        drop(gone);
    }

    /// The counted reference to a client that is being served.
    pub fn find(&self, client: &Connection) -> Option<Rc<Connection>> {
        let clients = self.clients.borrow();
        clients.iter().find(|other| std::ptr::eq(&***other, client)).cloned()
    }

    pub fn connections(&self) -> usize {
        self.clients.borrow().len()
    }

    /// Somebody got no memory: sees to it that nobody sits on it for ever.
    pub fn memory_is_short(&self) {
        if !self.look.is_armed() {
            self.look.arm_after(LOOK);
        }
    }

    fn look_after_memory(&self, ctx: &AioContext) {
        let patience = i64::try_from(PATIENCE.as_nanos()).unwrap_or(i64::MAX);
        let limit = ctx.now_ns() - patience;
        for client in self.all() {
            if let Some(since) = client.stuck_since_ns() {
                if since <= limit {
                    tracing::warn!("an NBD client that keeps memory from others is disconnected");
                    client.fail();
                } else {
                    self.memory_is_short();
                }
            }
        }
    }

    /// All clients, to be called: they may leave meanwhile.
    fn all(&self) -> Vec<Rc<Connection>> {
        self.clients.borrow().clone()
    }

    fn users(&self, export: &Rc<NbdExport>) -> Vec<Rc<Connection>> {
        let uses = |client: &Rc<Connection>| {
            client.export.borrow().as_ref().is_some_and(|used| Rc::ptr_eq(used, export))
        };
        self.clients.borrow().iter().filter(|client| uses(client)).cloned().collect()
    }
}
