//! [`NbdServer`]: listens, knows the exports and the clients, and ends in order.

mod branch;
mod budget;
mod client;
mod contexts;
pub mod export;
mod exports;
mod handshake;
mod link;
mod members;
mod memory;
mod message;
pub mod options;
mod outbox;
mod pace;
mod pending_read;
mod pieces;
mod receiver;
mod reception;
mod refusals;
mod rules;
pub mod seats;
mod serve;
mod session;
mod sparse;
mod starttls;
mod status;
mod turn;

use std::fmt;
use std::io;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use coblk_aio::net::{AcceptOptions, Acceptor, Listener, Slot, SocketAddress, Stream};
use coblk_aio::{AioContext, BottomHalf, Co};
use coblk_export::RemoveMode;

use crate::server::branch::Branch;
use crate::server::budget::Budget;
use crate::server::client::Client;
use crate::server::export::{NbdExport, NbdExportError, Place};
use crate::server::handshake::Chosen;
use crate::server::members::{Absent, Mail, Member, Members};
use crate::server::options::NbdOptions;
use crate::server::receiver::Receiver;
use crate::server::reception::Reception;
use crate::server::rules::Session;
use crate::server::seats::{Arrival, Seat};
use crate::server::session::End;
use crate::transport::Transport;

/// An NBD server on the loop of one context, where it accepts clients. Those of an export that has [contexts
/// of its own](NbdExport::on_contexts) are served there once they have chosen it.
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
        self.shared.reception.exports.add(export)
    }

    /// Takes an export away (contract: C86). After a hard removal its backend is in use until the
    /// requests in flight are done.
    ///
    /// # Errors
    /// If there is none, or clients use it and the mode is [`RemoveMode::Safe`].
    pub fn remove_export(&self, name: &str, mode: RemoveMode) -> Result<(), NbdExportError> {
        let not_found = || NbdExportError::NotFound(name.to_owned());
        let export = self.shared.reception.exports.get(name).ok_or_else(not_found)?;
        let users = self.shared.members.users(&export);
        if mode == RemoveMode::Safe && !users.is_empty() {
            return Err(NbdExportError::InUse { name: name.to_owned(), connections: users.len() });
        }
        self.shared.reception.exports.remove(name);
        users.iter().for_each(|member| self.shared.fail(member));
        Ok(())
    }

    /// How many clients use an export; 0 if there is none of that name.
    pub fn export_users(&self, name: &str) -> usize {
        let export = self.shared.reception.exports.get(name);
        export.map_or(0, |export| self.shared.members.users(&export).len())
    }

    /// How many clients are connected, in all contexts.
    pub fn connections(&self) -> usize {
        self.shared.members.len()
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
        self.shared.members.all().iter().for_each(|member| self.shared.fail(member));
    }

    /// Ends in order: accepts no more clients, reads no more requests, answers those in flight, and
    /// disconnects. A client that has not taken its replies after `limit` is disconnected all the same.
    /// Returns when no client, and no request of one, is left.
    pub fn co_shutdown(&self, co: &Co<'_>, limit: Duration) {
        self.stop_accepting();
        self.shared.members.all().iter().for_each(|member| self.shared.end(member));
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

/// What the server and its clients have in common, in the server's context.
pub struct Shared {
    reception: Reception,
    members: Members,
    /// The clients that this context serves: all, before they have chosen an export.
    branch: Rc<Branch>,
    budget: Arc<Budget>,
    mail: Arc<Mail>,
    /// Runs when there is some.
    _arrived: BottomHalf,
}

impl Shared {
    fn new(ctx: &AioContext, options: NbdOptions) -> Rc<Shared> {
        Rc::new_cyclic(|own: &Weak<Shared>| {
            let own = Weak::clone(own);
            let arrived = ctx.bottom_half("nbd_client_gone", move |_| {
                if let Some(own) = own.upgrade() {
                    own.mail.take().into_iter().for_each(|id| own.members.leave(id));
                }
            });
            let budget = Arc::default();
            Shared {
                reception: Reception::new(options),
                members: Members::default(),
                branch: Branch::new(ctx, &budget),
                budget,
                mail: Mail::new(arrived.remote()),
                _arrived: arrived,
            }
        })
    }

    /// Serves a client in a coroutine of its own. Its place is free when that has ended, here or in
    /// another context.
    fn adopt(self: &Rc<Self>, ctx: &AioContext, stream: Stream, slot: Slot) {
        let member = self.members.enter(slot);
        let client = self.branch.welcome(member.id, Transport::new(stream));
        let server = Rc::clone(self);
        ctx.spawn("nbd_client", move |co| {
            let leave = LeaveOnDrop { server, member, client };
            session::run(co, &leave.client, |co| leave.server.converse(co, &leave));
        });
    }

    fn converse(&self, co: &Co<'_>, own: &LeaveOnDrop) -> io::Result<End> {
        let LeaveOnDrop { member, client, .. } = own;
        let mut receiver = Receiver::new();
        let chosen = session::negotiate(co, &self.reception, client, &mut receiver)?;
        let Some(Chosen { export, terms }) = chosen else { return Ok(End::Gone) };
        tracing::debug!(export = export.name, "an NBD client has chosen an export");
        *member.export.borrow_mut() = Some(Rc::clone(&export));
        let seats = match export.place() {
            Place::Here(backend) => {
                let session = Session { backend: backend.clone(), terms };
                return session::transmit(co, client, &mut receiver, &Rc::new(session));
            }
            Place::Contexts(contexts) => contexts.seats(),
        };
        let place = self.members.least_busy(seats).ok_or(io::ErrorKind::NotFound)?;
        // From here on what is asked of the client is asked of the seat, where it arrives before.
        member.move_to(place);
        let (transport, absent) = (client.link.part(), Absent::new(member.id, &self.mail));
        let budget = Arc::clone(&self.budget);
        seats[place].adopt(Arrival { id: member.id, transport, receiver, terms, budget, absent });
        Ok(End::Moved)
    }

    /// Disconnects a client at once.
    fn fail(&self, member: &Member) {
        self.ask(member, |client| client.link.fail());
    }

    /// Reads no more requests of a client, answers those in flight, and disconnects.
    fn end(&self, member: &Member) {
        self.ask(member, |client| client.link.end());
    }

    fn ask(&self, member: &Member, command: fn(&Client)) {
        let id = member.id;
        let told = member.at_seat(|seat: &Seat| seat.tell(id, command));
        if !told && let Some(client) = self.branch.find(id) {
            command(&client);
        }
    }
}

/// Takes a client off the lists of the server's context, also when that ends before it does. One that has
/// moved is still a member.
struct LeaveOnDrop {
    server: Rc<Shared>,
    member: Rc<Member>,
    client: Rc<Client>,
}

impl Drop for LeaveOnDrop {
    fn drop(&mut self) {
        self.client.link.close();
        self.server.branch.leave(self.member.id);
        if !self.member.has_moved() {
            self.server.members.leave(self.member.id);
        }
    }
}
