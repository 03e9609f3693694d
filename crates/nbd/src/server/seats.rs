//! [`NbdContexts`]: the backends of an export on several contexts, and the clients that are served there.
//!
//! A connection belongs to one context. It is accepted, and its client negotiates, in the context of the
//! server. Once the client has chosen an export that has contexts of its own, the connection moves to the
//! least busy of these, and stays there: its socket, what was read ahead, and TLS. Nothing is left to be sent
//! then, and no request has begun, so that all that is of one request is on one thread.
//!
//! The server keeps a [`Member`](super::members::Member) for each client, wherever it is. What it asks of a
//! client that has moved is a command of the seat, in order behind the client's arrival. How a client ends is
//! told by the drop of its [`Absent`], also if its context ends.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use coblk_aio::{AioContext, AioHandle, Co, CoWaker};
use coblk_block::{
    BackendOptions, BlockBackend, BlockNode, Device, ErrorEvent, ErrorPolicies, IoStatus,
    PermissionError, ReportErrors,
};
use coblk_export::{Resident, ResidentError};

use crate::server::branch::Branch;
use crate::server::budget::Budget;
use crate::server::client::Client;
use crate::server::members::Absent;
use crate::server::receiver::Receiver;
use crate::server::rules::{Session, Terms};
use crate::server::session;
use crate::transport::Transport;

/// The backends of an export on several contexts, which are one device: each client of the export is served
/// by one of them. On the thread of the server.
///
/// ```
/// use coblk_aio::{AioContext, IoThread};
/// use coblk_block::{BackendOptions, BlockNode, drivers::Null};
/// use coblk_nbd::{NbdContexts, NbdExport, NbdOptions, NbdServer, SocketAddress};
///
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("nbd.sock");
/// let ctx = AioContext::new()?;
/// let threads = [IoThread::new("a")?, IoThread::new("b")?];
/// let homes = threads.each_ref().map(|thread| thread.handle().clone());
/// let disk = BlockNode::new("disk0", Null::new(1 << 30));
/// let server = NbdServer::listen(&ctx, &SocketAddress::unix(path), NbdOptions::default())?;
/// ctx.run(|co| {
///     let options = BackendOptions::new("drive");
///     let contexts = NbdContexts::co_open(co, &disk, &options, &homes)?;
///     server.add_export(NbdExport::on_contexts("disk", &contexts))?;
///     server.co_shutdown(co, std::time::Duration::from_secs(1));
///     contexts.co_close(co);
///     Ok::<(), Box<dyn std::error::Error>>(())
/// })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct NbdContexts {
    seats: Rc<[Seat]>,
    device: Device,
}

/// Why an export cannot be served by a context.
pub type NbdContextError = ResidentError<PermissionError>;

/// One of the contexts.
pub(crate) struct Seat {
    served: Resident<Served>,
    status: Arc<Status>,
}

/// What a context says of its backend.
#[derive(Default)]
struct Status {
    /// An [`IoStatus`].
    io: AtomicU8,
    read_only: AtomicBool,
}

impl Status {
    fn set(&self, status: IoStatus) {
        self.io.store(status as u8, Ordering::Relaxed);
    }

    fn load(&self) -> IoStatus {
        let all = [IoStatus::Ok, IoStatus::Failed, IoStatus::NoSpace];
        let number = self.io.load(Ordering::Relaxed);
        all.into_iter().find(|status| *status as u8 == number).unwrap_or_default()
    }
}

impl fmt::Debug for NbdContexts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.seats.iter().map(|seat| seat.served.home())).finish()
    }
}

impl NbdContexts {
    /// Opens a backend of `node` on each of `contexts`, of which one that is named twice counts once.
    /// Suspends.
    ///
    /// # Errors
    /// If other users of the node do not agree, or a context is gone.
    pub fn co_open(
        co: &Co<'_>,
        node: &Arc<BlockNode>,
        options: &BackendOptions,
        contexts: &[AioHandle],
    ) -> Result<NbdContexts, NbdContextError> {
        let mut seats = Vec::<Seat>::new();
        for home in contexts {
            if !seats.iter().any(|seat| seat.served.home() == home) {
                seats.push(Seat::co_open(co, node, options, home)?);
            }
        }
        Ok(NbdContexts { seats: seats.into(), device: options.device() })
    }

    /// The device of all the backends in the block graph: the node, and what was counted.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Sets what the backends do when a request fails.
    pub fn set_error_policies(&self, policies: ErrorPolicies) {
        self.tell_all(move |_, served| served.backend.set_error_policies(policies));
    }

    /// Sets the listener that is told of requests that fail, on their threads.
    pub fn set_error_listener(&self, listener: impl Fn(ErrorEvent) + Send + Sync + 'static) {
        let listener = Arc::new(listener);
        for seat in self.seats.iter() {
            let (status, listener) = (Arc::clone(&seat.status), Arc::clone(&listener));
            seat.served.tell(move |_, served| {
                served.backend.set_error_listener(move |_, backend, event| {
                    status.set(backend.io_status());
                    listener(event);
                });
            });
        }
    }

    /// Whether all of them run, and if not, which kind of error stopped one.
    pub fn io_status(&self) -> IoStatus {
        let mut all = self.seats.iter().map(|seat| seat.status.load());
        all.find(|status| *status != IoStatus::Ok).unwrap_or_default()
    }

    /// Requests that an error stopped are tried again.
    pub fn resume(&self) {
        for seat in self.seats.iter() {
            let status = Arc::clone(&seat.status);
            seat.served.tell(move |_, served| {
                status.set(IoStatus::Ok);
                served.backend.resume();
            });
        }
    }

    /// Requests that an error stopped fail, and those to come, for they will not be resumed any more.
    pub fn report_errors(&self) {
        self.tell_all(|_, served| served.report_errors());
    }

    /// Disconnects the clients that there are, and returns when their last request is done and the node is
    /// free. No more can be served.
    pub fn co_close(&self, co: &Co<'_>) {
        // Side by side: each may have requests to wait for.
        self.tell_all(|co, served| served.co_close(co));
        self.seats.iter().for_each(|seat| seat.served.co_end(co));
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.seats.iter().any(|seat| seat.status.read_only.load(Ordering::Relaxed))
    }

    pub(crate) fn seats(&self) -> &[Seat] {
        &self.seats
    }

    fn tell_all(&self, command: impl Fn(&Co<'_>, &Rc<Served>) + Clone + Send + 'static) {
        self.seats.iter().for_each(|seat| seat.served.tell(command.clone()));
    }
}

impl Seat {
    fn co_open(
        co: &Co<'_>,
        node: &Arc<BlockNode>,
        options: &BackendOptions,
        home: &AioHandle,
    ) -> Result<Seat, NbdContextError> {
        let (node, options) = (Arc::clone(node), options.clone());
        let status = Arc::<Status>::default();
        let told = Arc::clone(&status);
        let served = Resident::co_start(co, home, move |co| {
            let backend = options.co_open(co, node)?;
            told.read_only.store(backend.is_read_only(), Ordering::Relaxed);
            backend.set_error_listener(move |_, backend, _| told.set(backend.io_status()));
            Ok(Served {
                backend,
                branches: RefCell::default(),
                closing: Cell::new(false),
                reporting: RefCell::default(),
                waiting: Cell::new(None),
            })
        })?;
        Ok(Seat { served, status })
    }

    /// The context that it is.
    pub fn home(&self) -> &AioHandle {
        self.served.home()
    }

    /// Serves a client from now on.
    pub fn adopt(&self, arrival: Arrival) {
        self.served.tell(move |co, served| served.adopt(co, arrival));
    }

    /// Does something with a client, unless it has gone.
    pub fn tell(&self, id: u64, command: impl FnOnce(&Client) + Send + 'static) {
        self.served.tell(move |_, served| {
            if let Some(client) = served.find(id) {
                command(&client);
            }
        });
    }
}

/// A client on its way from the context of the server.
pub struct Arrival {
    pub id: u64,
    pub transport: Transport,
    /// With the requests that were read ahead.
    pub receiver: Receiver,
    pub terms: Terms,
    pub budget: Arc<Budget>,
    pub absent: Absent,
}

/// What is in one of the contexts.
struct Served {
    backend: BlockBackend,
    /// The clients, by the budgets of their servers: an export may be offered by several.
    branches: RefCell<Vec<(Arc<Budget>, Rc<Branch>)>>,
    closing: Cell<bool>,
    /// Set once errors of the backend will not be resumed any more.
    reporting: RefCell<Option<ReportErrors>>,
    /// Its end waits for clients to go.
    waiting: Cell<Option<CoWaker>>,
}

impl Served {
    fn adopt(self: &Rc<Self>, co: &Co<'_>, arrival: Arrival) {
        let Arrival { id, transport, mut receiver, terms, budget, absent } = arrival;
        if self.closing.get() {
            return;
        }
        if let Err(error) = co.context().ensure_stack() {
            tracing::warn!(%error, "an NBD client cannot be served");
            return;
        }
        let branch = self.branch(co.context(), &budget);
        let client = branch.welcome(id, transport);
        let served = Rc::clone(self);
        let leave = Leave { served, branch, id, client: Rc::clone(&client), _absent: absent };
        co.context().spawn("nbd_client", move |co| {
            let session = Session { backend: leave.served.backend.clone(), terms };
            session::run(co, &client, |co| {
                session::transmit(co, &client, &mut receiver, &Rc::new(session))
            });
            drop(leave);
        });
    }

    /// The clients of one server.
    fn branch(&self, ctx: &AioContext, budget: &Arc<Budget>) -> Rc<Branch> {
        let mut branches = self.branches.borrow_mut();
        if let Some((_, branch)) = branches.iter().find(|(of, _)| Arc::ptr_eq(of, budget)) {
            return Rc::clone(branch);
        }
        let branch = Branch::new(ctx, budget);
        branches.push((Arc::clone(budget), Rc::clone(&branch)));
        branch
    }

    fn find(&self, id: u64) -> Option<Rc<Client>> {
        self.branches.borrow().iter().find_map(|(_, branch)| branch.find(id))
    }

    fn report_errors(&self) {
        // Not before it has been stored: it lets coroutines run.
        let reporting = self.backend.report_errors();
        self.reporting.replace(Some(reporting));
    }

    fn co_close(&self, co: &Co<'_>) {
        self.closing.set(true);
        let branches: Vec<_> = self.branches.borrow().iter().map(|(_, it)| Rc::clone(it)).collect();
        branches.iter().for_each(|branch| branch.fail_all());
        drop(branches);
        self.report_errors();
        self.backend.co_remove_medium(co);
        while !self.branches.borrow().is_empty() {
            co.suspend_for("the end of clients", |waker| self.waiting.set(Some(waker)));
        }
    }
}

/// Takes a client off the list of its context, also when that ends before it does; then its server hears of it.
struct Leave {
    served: Rc<Served>,
    branch: Rc<Branch>,
    id: u64,
    client: Rc<Client>,
    _absent: Absent,
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.client.link.close();
        self.branch.leave(self.id);
        if self.branch.is_empty() {
            self.served.branches.borrow_mut().retain(|(_, it)| !Rc::ptr_eq(it, &self.branch));
            if let Some(waker) = self.served.waiting.take() {
                waker.wake();
            }
        }
    }
}
