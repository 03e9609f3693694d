//! [`MetricsServer`]: listens, and lets in a few clients at once.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::time::Duration;

use coblk::aio::sync::CoSleep;
use coblk::{AioContext, Co, FdInterest};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with};

use super::client::Client;
use super::{Sample, encode};
use crate::daemon::Daemon;
use crate::sockets::StreamListener;

/// Clients at once; others wait to be accepted.
const MOST_CLIENTS: usize = 8;
/// How long nobody is accepted after that has failed, for want of descriptors for one.
const PAUSE: Duration = Duration::from_millis(200);
/// Until something wakes the coroutine.
const LONG: Duration = Duration::from_secs(3600);

/// Serves the metrics of a daemon as long as it lives.
pub(crate) struct MetricsServer {
    shared: Rc<Shared>,
}

struct Shared {
    daemon: Weak<Daemon>,
    acceptor: CoSleep,
    clients: RefCell<Vec<Rc<Client>>>,
    stopping: Cell<bool>,
}

impl MetricsServer {
    /// Serves on a socket that listens.
    ///
    /// # Errors
    /// If the loop cannot wait for it.
    pub(crate) fn start(
        ctx: &AioContext,
        daemon: Weak<Daemon>,
        listener: StreamListener,
    ) -> io::Result<MetricsServer> {
        let shared = Rc::new(Shared {
            daemon,
            acceptor: CoSleep::new(),
            clients: RefCell::default(),
            stopping: Cell::new(false),
        });
        let acceptor = shared.acceptor.clone();
        let watched = ctx.fd_handler(listener, FdInterest::Read, move |_, _| acceptor.wake())?;
        let own = Rc::clone(&shared);
        ctx.spawn("metrics_accept", move |co| {
            own.accept_clients(co, watched.descriptor());
        });
        Ok(MetricsServer { shared })
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.shared.stopping.set(true);
        self.shared.acceptor.wake();
        let clients = self.shared.clients.borrow().clone();
        clients.iter().for_each(|client| client.end());
    }
}

impl Shared {
    fn accept_clients(self: &Rc<Self>, co: &Co<'_>, listener: &StreamListener) {
        while !self.stopping.get() {
            if self.clients.borrow().len() >= MOST_CLIENTS {
                self.acceptor.sleep(co, LONG);
                continue;
            }
            match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => self.adopt(co.context(), socket),
                Err(Errno::AGAIN) => drop(self.acceptor.sleep(co, LONG)),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a client for metrics");
                    co.sleep(PAUSE);
                }
            }
        }
    }

    /// Serves a client in a coroutine of its own.
    fn adopt(self: &Rc<Self>, ctx: &AioContext, socket: OwnedFd) {
        if let Err(error) = ctx.ensure_stack() {
            tracing::warn!(%error, "no coroutine for a client for metrics; it is disconnected");
            return;
        }
        let (shared, client) = (Rc::clone(self), Rc::new(Client::new(socket)));
        self.clients.borrow_mut().push(Rc::clone(&client));
        ctx.spawn("metrics_client", move |co| {
            if let Err(error) = client.serve(co, || shared.page(co)) {
                tracing::debug!(%error, "a client for metrics is gone");
            }
            shared.leave(&client);
        });
    }

    fn leave(&self, client: &Rc<Client>) {
        let mut clients = self.clients.borrow_mut();
        clients.retain(|other| !Rc::ptr_eq(other, client));
        drop(clients);
        self.acceptor.wake();
    }

    /// The numbers of this moment; none while the daemon ends.
    fn page(&self, co: &Co<'_>) -> String {
        let daemon = self.daemon.upgrade();
        daemon.map(|daemon| encode(Sample::take(&daemon, co))).unwrap_or_default()
    }
}
