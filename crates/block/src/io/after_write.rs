//! What is told of every change to a node's bytes: [`AfterWrite`].

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

/// How bytes were changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteKind {
    /// By a write.
    Write,
    /// By zeroes.
    Zeroes,
    /// By a discard: what is there now is unspecified.
    Discard,
    /// By another length; the range is what was cut off, or what is new.
    Truncate,
}

/// A user of changes, such as a dirty bitmap.
pub trait AfterWrite: Send + Sync {
    /// A request has changed a range, in bytes, or some of it if it has not `succeeded`. Called once a
    /// request, after its driver has returned and before the request completes, on the thread of
    /// the request; several threads may call at once. Must neither block nor suspend.
    fn wrote(&self, range: Range<u64>, kind: WriteKind, succeeded: bool);
}

type List = Vec<Arc<dyn AfterWrite>>;

/// The users of one node. Any thread.
#[derive(Default)]
pub(super) struct Hooks {
    list: ArcSwap<List>,
    /// Held while the list changes.
    changes: Mutex<()>,
}

impl Hooks {
    /// Makes a change, one at a time, and then says whether there are any.
    pub(super) fn change(&self, change: impl FnOnce(&mut List), then: impl FnOnce(bool)) {
        let _one = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut list = List::clone(&self.list.load());
        change(&mut list);
        let any = !list.is_empty();
        self.list.store(Arc::new(list));
        then(any);
    }

    #[cold]
    pub(super) fn wrote(&self, range: &Range<u64>, kind: WriteKind, succeeded: bool) {
        if range.is_empty() {
            return;
        }
        for hook in self.list.load().iter() {
            hook.wrote(range.clone(), kind, succeeded);
        }
    }
}
