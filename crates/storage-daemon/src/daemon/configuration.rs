//! What the daemon is, as the command line that makes it again.

use std::ffi::OsString;

use coblk::qapi::to_argument;

use super::Daemon;
use crate::options::{MetricsOptions, MonitorOptions, NbdServerOptions, ObjectOptions};

/// What is not asked of nodes, exports and objects themselves.
#[derive(Default)]
pub(super) struct Configured {
    pub(super) nbd_server: Option<NbdServerOptions>,
    /// What the server's credentials were made of: it keeps them, whatever becomes of their object.
    pub(super) credentials: Option<ObjectOptions>,
    pub(super) monitors: Vec<MonitorOptions>,
    pub(super) metrics: Option<MetricsOptions>,
}

impl Daemon {
    /// Options of a command line, with their texts, in an order in which they can be done: objects,
    /// nodes, exports and all else as they are now, however they have come to be. Credentials that are
    /// deleted, while the NBD server uses them, are among them. What belongs to the process is not: `--daemonize`, `--pidfile` and `--trace`.
    pub fn configuration(&self) -> Vec<(&'static str, OsString)> {
        let mut options = Vec::new();
        let configured = self.configured.borrow();
        let server = configured.nbd_server.as_ref().filter(|_| self.nbd.server().is_some());
        let mut objects = self.objects.options();
        let kept = server.and(configured.credentials.clone());
        let kept = kept.filter(|kept| objects.iter().all(|object| object.id != kept.id));
        objects.extend(kept);
        options.extend(objects.iter().map(|object| ("object", to_argument(object, "qom-type"))));
        let nodes = self.blockdevs.options();
        options.extend(nodes.iter().map(|node| ("blockdev", to_argument(node, "driver"))));
        options.extend(server.map(|server| ("nbd-server", to_argument(server, "addr"))));
        let exports = self.exports.all();
        let exports = exports.iter().filter(|export| !export.is_shutting_down());
        options.extend(exports.map(|export| {
            let mut options = export.options().clone();
            if let Some(node) = export.node() {
                // Made anew, it would make its node active.
                options.allow_inactive |= !node.is_active();
                options.node_name = self.blockdevs.name_in_options(node);
            }
            ("export", to_argument(&options, "type"))
        }));
        options.extend(self.chardevs().iter().map(|it| ("chardev", to_argument(it, "backend"))));
        let monitors = configured.monitors.iter();
        options.extend(monitors.map(|monitor| ("monitor", to_argument(monitor, "chardev"))));
        let metrics = configured.metrics.iter();
        options.extend(metrics.map(|metrics| ("metrics", to_argument(metrics, "addr"))));
        options
    }
}
