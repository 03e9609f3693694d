//! The NBD server: at most one.

use std::rc::Rc;
use std::time::Duration;

use coblk::Co;
use coblk::export::{ExportType, RunningExport};
use coblk::nbd::{NbdExportType, NbdOptions, NbdServer};

use super::{Daemon, DaemonError};
use crate::options::{NbdServerOptions, ObjectOptions};
use crate::sockets;

/// How long clients may take to fetch their replies when the server ends.
const PATIENCE: Duration = Duration::from_secs(1);
/// For clients that may take any time: a year.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Whether it is an export of the server.
pub(super) fn is_nbd(export: &RunningExport) -> bool {
    export.kind() == NbdExportType::NAME
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
        let command = self.begin_command("nbd-server-start")?;
        self.check_no_nbd_server()?;
        let limits = NbdOptions::default()
            .max_connections(options.max_connections.map_or(100, |most| most as usize))
            .handshake_timeout(match options.handshake_max_seconds {
                None => Duration::from_secs(10),
                Some(0) => FOREVER,
                Some(seconds) => Duration::from_secs(seconds.into()),
            })
            .paused(!self.serving.get());
        let limits = self.with_tls(limits, options.tls_creds.as_deref())?;
        let limits = self.with_authz(limits, options.tls_authz.as_deref())?;
        let is_used = |object: &ObjectOptions| options.tls_creds.as_ref() == Some(&object.id);
        let credentials = self.objects.options().into_iter().find(is_used);
        let listener = sockets::co_listen(co, &options.addr)?;
        command.check()?;
        self.check_no_nbd_server()?;
        let server = NbdServer::from_listener(co.context(), listener, limits);
        let failed =
            |source| DaemonError::Io { what: "cannot use the socket of the NBD server", source };
        let server = server.map_err(failed)?;
        sockets::taken_over(&options.addr);
        self.nbd.set_server(Some(Rc::new(server)));
        let mut configured = self.configured.borrow_mut();
        (configured.nbd_server, configured.credentials) = (Some(options), credentials);
        Ok(())
    }

    /// `nbd-server-stop`: removes all its exports, and disconnects all clients.
    ///
    /// # Errors
    /// If it does not run; or if an export has requests that do not end within
    /// [`WAIT_LIMIT`](coblk::block::WAIT_LIMIT): the server has stopped, and the export goes when they
    /// have ended.
    pub fn nbd_server_stop(self: &Rc<Self>, co: &Co<'_>) -> Result<(), DaemonError> {
        self.nbd_server_end(co)?;
        self.co_wait_for_exports(co, is_nbd)
    }

    /// Stops the server, lets clients have their replies, and begins to close its exports.
    pub(super) fn nbd_server_end(self: &Rc<Self>, co: &Co<'_>) -> Result<(), DaemonError> {
        let server = self.nbd.set_server(None).ok_or(DaemonError::NbdServerNotRunning)?;
        server.stop_accepting();
        let exports: Vec<RunningExport> = self.exports.all().into_iter().filter(is_nbd).collect();
        // Requests that an error has stopped would never be answered.
        exports.iter().for_each(RunningExport::report_errors);
        // Requests that do not end then keep nothing but their own export.
        let _ = co.timeout(PATIENCE + PATIENCE / 4, "stop NBD server", move |co| {
            server.co_shutdown(co, PATIENCE);
        });
        exports.iter().for_each(|export| self.exports.close(co.context(), export));
        Ok(())
    }

    /// How many clients the NBD server has; `None` if it does not run.
    pub fn nbd_connections(&self) -> Option<usize> {
        self.nbd.server().map(|server| server.connections())
    }

    fn check_no_nbd_server(&self) -> Result<(), DaemonError> {
        match self.nbd.server() {
            None => Ok(()),
            Some(_) => Err(DaemonError::NbdServerRunning),
        }
    }
}
