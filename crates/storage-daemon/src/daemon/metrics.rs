//! Metrics: who may ask for them, and what the daemon knows.

use std::rc::Rc;
use std::time::SystemTime;

use coblk::block::Statistics;
use coblk::{BlockNode, Co};

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
        self.check_running()?;
        self.check_no_metrics()?;
        // To ask for the addresses of a host may take long.
        let pool = co.context().thread_pool();
        let listener = pool.submit_co(co, || sockets::listen(&options.addr))?;
        self.check_no_metrics()?;
        let failed =
            |source| DaemonError::Io { what: "cannot wait for clients for metrics", source };
        let server = MetricsServer::start(co.context(), Rc::downgrade(self), listener);
        *self.metrics.borrow_mut() = Some(server.map_err(failed)?);
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
    pub(super) fn measure(&self, node: &BlockNode, id: &str) {
        if self.metrics.borrow().is_some() {
            statistics_of(node, id).iter().for_each(measure_latencies);
        }
    }

    /// When the daemon was made.
    pub(crate) fn start(&self) -> SystemTime {
        self.start
    }

    /// All exports: whether they have clients, and what their backends count.
    pub(crate) fn export_uses(&self) -> Vec<(ExportInfo, bool, Vec<Statistics>)> {
        let nodes = self.blockdevs.nodes();
        let exports = self.exports.borrow();
        let uses = exports.values().map(|export| {
            // Wherever changes of the graph have put them.
            let statistics = nodes.iter().flat_map(|node| statistics_of(node, &export.options.id));
            (export.info(), export.what.is_in_use(), statistics.collect())
        });
        uses.collect()
    }
}

/// What the backends of an export count that are on this node.
fn statistics_of(node: &BlockNode, id: &str) -> Vec<Statistics> {
    let own = node.backends().into_iter().filter(|backend| backend.name == id);
    own.map(|backend| backend.statistics).collect()
}
