//! [`GraphGuard`]: the graph, locked, and with it what is let go when it is not locked any more.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{GRAPH, Graph};
use crate::graph::gate::wake_all;
use crate::graph::node::BlockNode;
use crate::io::known::answers_may_have_changed;

/// Held by changes of permissions, also while drivers are told.
static PERMITS: Mutex<()> = Mutex::new(());

/// The graph, locked.
pub(crate) struct GraphGuard {
    graph: Option<MutexGuard<'static, Graph>>,
    permits: Option<MutexGuard<'static, ()>>,
    is_changed: bool,
    /// The graph's, while that is not locked: no other thread lets go of them. Behind the locks, which end first.
    kept: Vec<Arc<BlockNode>>,
}

/// For everything but changes of permissions. Waits for no system call.
pub(crate) fn lock() -> GraphGuard {
    guard(None)
}

/// To change permissions. Waits for the system calls of other changes of permissions: for workers, and for
/// set-up code.
pub(crate) fn lock_permits() -> GraphGuard {
    guard(Some(PERMITS.lock().unwrap_or_else(PoisonError::into_inner)))
}

fn guard(permits: Option<MutexGuard<'static, ()>>) -> GraphGuard {
    GraphGuard { graph: Some(lock_graph()), permits, is_changed: false, kept: Vec::new() }
}

fn lock_graph() -> MutexGuard<'static, Graph> {
    GRAPH.lock().unwrap_or_else(PoisonError::into_inner)
}

impl GraphGuard {
    /// Makes calls that may take any time, without the lock of the graph, and with that of permissions.
    pub(super) fn unlocked<R>(&mut self, calls: impl FnOnce() -> R) -> R {
        debug_assert!(self.permits.is_some(), "permissions change under their own lock");
        self.kept = std::mem::take(&mut self.graph.take().expect("locked until dropped").kept);
        let result = calls();
        let mut graph = lock_graph();
        graph.kept.append(&mut self.kept);
        self.graph = Some(graph);
        result
    }
}

impl Deref for GraphGuard {
    type Target = Graph;

    fn deref(&self) -> &Graph {
        self.graph.as_ref().expect("locked until dropped")
    }
}

impl DerefMut for GraphGuard {
    fn deref_mut(&mut self) -> &mut Graph {
        // Edges may turn, and what has changed in a drained section is seen when that ends.
        answers_may_have_changed();
        self.is_changed = true;
        self.graph.as_mut().expect("locked until dropped")
    }
}

impl Drop for GraphGuard {
    fn drop(&mut self) {
        // None after a panic of a driver that was told.
        let Some(graph) = &mut self.graph else { return };
        let kept = std::mem::take(&mut graph.kept);
        let wakes = std::mem::take(&mut graph.wakes);
        if self.is_changed {
            answers_may_have_changed();
        }
        self.graph = None;
        // What goes now may give permissions back.
        self.permits = None;
        drop(kept);
        wake_all(wakes);
    }
}
