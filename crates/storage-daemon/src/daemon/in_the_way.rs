//! What is in the way of the daemon's end, for its log: which nodes and which requests.

use std::cell::Cell;
use std::rc::{Rc, Weak};
use std::time::Duration;

use coblk::aio::sync::CoSleep;
use coblk::block::{RequestInfo, requests_in_flight};
use coblk::export::RunningExport;
use coblk::{AioContext, AioHandle, Co};

use super::Daemon;

/// After how long of waiting it is told, each time counted from the last.
const TOLD_AFTER: [Duration; 3] =
    [Duration::from_secs(1), Duration::from_secs(9), Duration::from_secs(60)];
/// How long another context may take to say what is in flight there.
const PATIENCE: Duration = Duration::from_millis(500);
/// Requests that are told one by one; of more there is the number.
const MAX_TOLD: usize = 16;

/// Tells as long as it lives.
pub(super) struct Telling(CoSleep, Rc<Cell<bool>>);

impl Drop for Telling {
    fn drop(&mut self) {
        self.1.set(true);
        self.0.wake();
    }
}

impl Daemon {
    /// Tells after a second, after ten, and then every minute, until the guard is dropped.
    pub(super) fn tell_what_is_in_the_way(self: &Rc<Self>, ctx: &AioContext) -> Telling {
        let telling = Telling(CoSleep::new(), Rc::default());
        let (sleep, is_over) = (telling.0.clone(), Rc::clone(&telling.1));
        let daemon = Rc::downgrade(self);
        ctx.spawn("tell what is in the way", move |co| {
            for round in 0.. {
                sleep.sleep(co, TOLD_AFTER[TOLD_AFTER.len().min(round + 1) - 1]);
                if is_over.get() {
                    return;
                }
                tell(co, &daemon);
            }
        });
        telling
    }
}

fn tell(co: &Co<'_>, daemon: &Weak<Daemon>) {
    let Some(daemon) = daemon.upgrade() else { return };
    let exports = daemon.exports.all();
    let exports: Vec<&str> = exports.iter().map(RunningExport::id).collect();
    let commands = daemon.running_commands();
    let nodes: Vec<String> = daemon.blockdevs.busy_nodes();
    let contexts = daemon.iothread_handles();
    // It may end meanwhile.
    drop(daemon);
    tracing::warn!(
        exports = exports.join(", "),
        nodes = nodes.join(", "),
        commands = commands.join(", "),
        "the end waits; a second signal ends the daemon at once"
    );
    let mut requests = requests_in_flight(co.context());
    for (name, context) in contexts {
        match requests_of(co, context) {
            Some(others) => requests.extend(others),
            None => tracing::warn!(iothread = name, "does not answer"),
        }
    }
    // The oldest first: it is in the way.
    requests.sort_by_key(|request| std::cmp::Reverse(request.age));
    for request in requests.iter().take(MAX_TOLD) {
        tracing::warn!("the end waits for {request}");
    }
    if requests.len() > MAX_TOLD {
        tracing::warn!("the end waits for {} more requests", requests.len() - MAX_TOLD);
    }
}

fn requests_of(co: &Co<'_>, context: AioHandle) -> Option<Vec<RequestInfo>> {
    let listing = context.spawn("list requests", |co| requests_in_flight(co.context()));
    co.timeout(PATIENCE, "list requests", move |co| co.block_on(listing).ok()).ok().flatten()
}
