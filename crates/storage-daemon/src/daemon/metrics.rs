//! Metrics: their server, and what the daemon knows.

use std::rc::Rc;

use coblk::Co;
use coblk::block::Device;

use super::{Daemon, DaemonError};
use crate::metrics::{MetricsServer, Sample, co_ask_loops, encode, measure_latencies};
use crate::options::MetricsOptions;
use crate::sockets;

impl Daemon {
    /// Serves metrics over HTTP from now on, and has exports measure latencies.
    ///
    /// # Errors
    /// If they are served, or cannot be at that address.
    pub fn metrics_start(
        self: &Rc<Self>,
        co: &Co<'_>,
        options: MetricsOptions,
    ) -> Result<(), DaemonError> {
        let command = self.begin_command("metrics")?;
        self.check_no_metrics()?;
        let listener = sockets::co_listen(co, &options.addr)?;
        command.check()?;
        self.check_no_metrics()?;
        let failed =
            |source| DaemonError::Io { what: "cannot wait for clients for metrics", source };
        let daemon = Rc::downgrade(self);
        let page = move |co: &Co<'_>| {
            let daemon = daemon.upgrade();
            daemon.map(|daemon| daemon.co_metrics_page(co)).unwrap_or_default()
        };
        let server = MetricsServer::start(co.context(), page, listener);
        *self.metrics.borrow_mut() = Some(server.map_err(failed)?);
        sockets::taken_over(&options.addr);
        self.configured.borrow_mut().metrics = Some(options);
        self.exports.all().iter().for_each(|export| measure_latencies(export.device()));
        Ok(())
    }

    /// The numbers of this moment.
    fn co_metrics_page(&self, co: &Co<'_>) -> String {
        let loops = co_ask_loops(co, self.iothread_handles());
        let (exports, nodes) = (self.exports.all(), self.blockdevs.nodes());
        encode(Sample::take(self.start, loops, &exports, &nodes, self.nbd_connections()))
    }

    fn check_no_metrics(&self) -> Result<(), DaemonError> {
        match &*self.metrics.borrow() {
            None => Ok(()),
            Some(_) => Err(DaemonError::MetricsServed),
        }
    }

    /// Has a new export measure latencies, if there is a server of metrics.
    pub(super) fn measure(&self, device: Device) {
        if self.metrics.borrow().is_some() {
            measure_latencies(device);
        }
    }
}
