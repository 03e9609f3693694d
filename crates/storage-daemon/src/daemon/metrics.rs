//! Metrics: who may ask for them, and what the daemon knows.

use std::rc::Rc;
use std::time::SystemTime;

use coblk::Co;
use coblk::block::{Device, Statistics};

use super::{Daemon, DaemonError};
use crate::exports::ExportInfo;
use crate::metrics::{MetricsServer, measure_latencies};
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
        let server = MetricsServer::start(co.context(), Rc::downgrade(self), listener);
        *self.metrics.borrow_mut() = Some(server.map_err(failed)?);
        sockets::taken_over(&options.addr);
        self.configured.borrow_mut().metrics = Some(options);
        let uses = self.export_uses();
        uses.iter().flat_map(|(_, _, backends)| backends).for_each(measure_latencies);
        Ok(())
    }

    fn check_no_metrics(&self) -> Result<(), DaemonError> {
        match &*self.metrics.borrow() {
            None => Ok(()),
            Some(_) => Err(DaemonError::MetricsServed),
        }
    }

    /// Has a new export measure latencies, if anybody may ask for them.
    pub(super) fn measure(&self, device: Device) {
        if self.metrics.borrow().is_some() {
            statistics_of(device).iter().for_each(measure_latencies);
        }
    }

    /// When the daemon was made.
    pub(crate) fn start(&self) -> SystemTime {
        self.start
    }

    /// All exports: whether they have clients, and what their backends count.
    pub(crate) fn export_uses(&self) -> Vec<(ExportInfo, bool, Vec<Statistics>)> {
        let exports = self.exports.borrow();
        let uses = exports.values().map(|export| {
            (export.info(), export.what.is_in_use(), statistics_of(export.what.device()))
        });
        uses.collect()
    }
}

/// What the backends of an export count, wherever changes of the graph have put them.
fn statistics_of(device: Device) -> Vec<Statistics> {
    device.backends().into_iter().map(|backend| backend.statistics).collect()
}
