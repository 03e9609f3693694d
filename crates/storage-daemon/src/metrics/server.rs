//! [`MetricsServer`]: lets in a few clients at once.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use coblk::aio::net::{AcceptOptions, Acceptor, Listener, Slot, Stream};
use coblk::{AioContext, Co};

use super::client::Client;

/// Clients at once; others wait to be accepted.
const MAX_CLIENTS: usize = 8;

/// Makes the page of a moment; may suspend.
type Page = Box<dyn Fn(&Co<'_>) -> String>;

/// Serves metrics as long as it lives.
pub(crate) struct MetricsServer {
    shared: Rc<Shared>,
    /// Ends with this.
    _acceptor: Acceptor,
}

struct Shared {
    page: Page,
    clients: RefCell<Vec<Rc<Client>>>,
}

impl MetricsServer {
    /// Serves on a socket that listens what `page` makes.
    ///
    /// # Errors
    /// If the loop cannot wait for it.
    pub(crate) fn start(
        ctx: &AioContext,
        page: impl Fn(&Co<'_>) -> String + 'static,
        listener: Listener,
    ) -> io::Result<MetricsServer> {
        let shared = Rc::new(Shared { page: Box::new(page), clients: RefCell::default() });
        let own = Rc::clone(&shared);
        let mut options = AcceptOptions::new("a client for metrics");
        options.max_clients = MAX_CLIENTS;
        let acceptor = Acceptor::start(ctx, listener, options, move |co, stream, slot| {
            own.adopt(co.context(), stream, slot);
        })?;
        Ok(MetricsServer { shared, _acceptor: acceptor })
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        let clients = self.shared.clients.borrow().clone();
        clients.iter().for_each(|client| client.end());
    }
}

impl Shared {
    /// Serves a client in a coroutine of its own.
    fn adopt(self: &Rc<Self>, ctx: &AioContext, stream: Stream, slot: Slot) {
        let (shared, client) = (Rc::clone(self), Rc::new(Client::new(stream)));
        self.clients.borrow_mut().push(Rc::clone(&client));
        ctx.spawn("metrics_client", move |co| {
            let _slot = slot;
            if let Err(error) = client.serve(co, || (shared.page)(co)) {
                tracing::debug!(%error, "a client for metrics is gone");
            }
            shared.leave(&client);
        });
    }

    fn leave(&self, client: &Rc<Client>) {
        let mut clients = self.clients.borrow_mut();
        clients.retain(|other| !Rc::ptr_eq(other, client));
    }
}
