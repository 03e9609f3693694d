//! The NBD server: at most one.

use std::rc::Rc;
use std::time::Duration;

use coblk::Co;
use coblk::nbd::{NbdAddress, NbdListener, NbdOptions, NbdServer};

use super::{Daemon, DaemonError};
use crate::exports::Export;
use crate::options::{ExportKind, NbdServerOptions};
use crate::sockets::{self, Listening, SocketError};

/// How long clients may take to fetch their replies when the server ends.
const PATIENCE: Duration = Duration::from_secs(1);
/// For clients that may take any time: a year.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

pub(super) struct RunningNbdServer {
    pub(super) server: Rc<NbdServer>,
}

impl Daemon {
    /// `nbd-server-start`.
    ///
    /// # Errors
    /// If it runs, or if there cannot be a server at that address.
    pub fn nbd_server_start(
        &self,
        co: &Co<'_>,
        options: NbdServerOptions,
    ) -> Result<(), DaemonError> {
        self.check_running()?;
        self.check_no_nbd_server()?;
        let limits = NbdOptions {
            max_connections: options.max_connections.map_or(100, |most| most as usize),
            handshake_timeout: match options.handshake_max_seconds {
                None => Duration::from_secs(10),
                Some(0) => FOREVER,
                Some(seconds) => Duration::from_secs(seconds.into()),
            },
            paused: !self.serving.get(),
            ..NbdOptions::default()
        };
        let limits = self.with_tls(limits, options.tls_creds.as_deref())?;
        // To ask for the addresses of a host may take long.
        let pool = co.context().thread_pool();
        let listening = pool.submit_co(co, || sockets::open(&options.addr))?;
        self.check_no_nbd_server()?;
        let ctx = co.context();
        let server = match listening {
            Listening::Path(path) => {
                let server = NbdServer::listen(ctx, &NbdAddress::Unix(path.clone()), limits);
                let path = path.display().to_string();
                server.map_err(|source| SocketError::BindUnix { path, source })?
            }
            Listening::Unix(listener) => {
                open(NbdServer::from_listener(ctx, NbdListener::Unix(listener), limits))?
            }
            Listening::Tcp(listener) => {
                open(NbdServer::from_listener(ctx, NbdListener::Tcp(listener), limits))?
            }
        };
        *self.nbd_server.borrow_mut() = Some(RunningNbdServer { server: Rc::new(server) });
        self.configured.borrow_mut().nbd_server = Some(options);
        Ok(())
    }

    /// `nbd-server-stop`: removes all its exports, and disconnects all clients.
    ///
    /// # Errors
    /// If it does not run.
    pub fn nbd_server_stop(self: &Rc<Self>, co: &Co<'_>) -> Result<(), DaemonError> {
        let running = self.nbd_server.take().ok_or(DaemonError::NbdServerNotRunning)?;
        running.server.stop_accepting();
        let is_nbd = |export: &Export| matches!(export.options.kind, ExportKind::Nbd(_));
        let exports: Vec<Rc<Export>> =
            self.exports.borrow().values().filter(|export| is_nbd(export)).cloned().collect();
        // Requests that an error has stopped would never be answered.
        exports.iter().for_each(|export| export.what.report_errors());
        running.server.co_shutdown(co, PATIENCE);
        exports.into_iter().for_each(|export| self.close_export(co.context(), export));
        self.co_wait_for_exports(co, is_nbd);
        Ok(())
    }

    /// How many clients the NBD server has; `None` if it does not run.
    pub fn nbd_connections(&self) -> Option<usize> {
        self.nbd_server.borrow().as_ref().map(|running| running.server.connections())
    }

    pub(super) fn running_nbd_server(&self) -> Result<Rc<NbdServer>, DaemonError> {
        let running = self.nbd_server.borrow();
        let server = running.as_ref().map(|running| Rc::clone(&running.server));
        server.ok_or(DaemonError::NbdServerNotRunning)
    }

    fn check_no_nbd_server(&self) -> Result<(), DaemonError> {
        match &*self.nbd_server.borrow() {
            None => Ok(()),
            Some(_) => Err(DaemonError::NbdServerRunning),
        }
    }
}

fn open(server: std::io::Result<NbdServer>) -> Result<NbdServer, DaemonError> {
    server.map_err(|source| DaemonError::Io {
        what: "cannot use the socket of the NBD server",
        source,
    })
}
