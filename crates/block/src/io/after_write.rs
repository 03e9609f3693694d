//! [`AfterWrite`]: a user that is told of every change of a node's bytes.
//!
//! Hooks come and go while requests run. What holds:
//!
//! 1. A change that begins after a hook was added is told to it once, when its driver has returned.
//! 2. A change that began before is told at most once.
//! 3. After a hook was removed none of its calls is under way, and none comes.
//!
//! A change looks at the node's features when it begins, and once more, with the list of hooks, when its
//! driver has returned; it tells that list, and each hook is in a list at most once. A hook is put into the
//! list before the feature is switched on, and then each context that may have requests is passed, so
//! changes that begin there later see both (1). A change that saw the feature off tells no hook, or, if
//! another hook had it switched on, those in the list at its end (2).
//!
//! Lists do not change: there is a new one for each change of hooks. The old one goes when the last call
//! that reads it has returned, and with the last list that has a hook goes the hook's entry ([`Resting`]).
//! That is what a removal waits for (3), whatever context the call is in.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use coblk_aio::{Co, CoWaker};

/// How bytes were changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteKind {
    /// By a write.
    Write,
    /// By zeroes.
    Zeroes,
    /// By a discard: the bytes are unspecified now.
    Discard,
    /// By another length; the range is the one that was cut off, or that is new.
    Truncate,
    /// By a snapshot inside of the image that was [applied](crate::Image::co_apply_snapshot): the range is
    /// all of the node.
    Apply,
    /// By an image that was [emptied](crate::Image::co_make_empty): the range is all of the node.
    Empty,
}

/// A user of changes, such as a dirty bitmap.
pub trait AfterWrite: Send + Sync {
    /// A request has changed a range, in bytes, or some of it if it has not `succeeded`. Called once a
    /// request, after its driver has returned, or panicked, and before the request completes, on the thread of
    /// the request; several threads may call at once. Must neither block nor suspend.
    fn wrote(&self, range: Range<u64>, kind: WriteKind, succeeded: bool);
}

/// A hook in lists. The last list that has it drops it.
struct Entry {
    hook: Arc<dyn AfterWrite>,
    rest: Rest,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut state = self.rest.lock();
        state.rests = true;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

#[derive(Default)]
struct Resting {
    /// No list has the hook any more, and no call.
    rests: bool,
    waker: Option<CoWaker>,
}

/// The end of a hook's calls.
#[derive(Clone, Default)]
pub(crate) struct Rest(Arc<Mutex<Resting>>);

impl Rest {
    fn lock(&self) -> std::sync::MutexGuard<'_, Resting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the hook, which has been removed, rests. One coroutine at a time.
    pub(crate) fn co_wait(&self, co: &Co<'_>) {
        while !self.lock().rests {
            co.suspend_for("calls of a hook", |waker| {
                // The lock is held until the waker is stored: an entry that goes meanwhile finds it.
                let mut state = self.lock();
                if state.rests {
                    drop(state);
                    co.context().schedule(move |_| waker.wake());
                } else {
                    state.waker = Some(waker);
                }
            });
        }
    }
}

/// A hook that has been added: the identity of its entry.
pub(crate) struct Listed(Rest);

impl Listed {
    /// The end of its calls, once it has been removed.
    pub(crate) fn rest(&self) -> Rest {
        self.0.clone()
    }
}

type List = Vec<Arc<Entry>>;

/// The users of one node. Any thread.
#[derive(Default)]
pub(super) struct Hooks {
    list: ArcSwap<List>,
    /// Held while the list changes.
    changes: Mutex<()>,
}

impl Hooks {
    /// Adds a hook, and then calls `switch_on`.
    pub(super) fn add(&self, hook: Arc<dyn AfterWrite>, switch_on: impl FnOnce()) -> Listed {
        let rest = Rest::default();
        let entry = Arc::new(Entry { hook, rest: rest.clone() });
        self.change(|list| list.push(entry), |_| switch_on());
        Listed(rest)
    }

    /// Removes a hook, and then calls `switch_off` if it was the last one.
    pub(super) fn remove(&self, listed: &Listed, switch_off: impl FnOnce()) {
        let stays = |entry: &Arc<Entry>| !Arc::ptr_eq(&entry.rest.0, &listed.0.0);
        let switch = |any: bool| {
            if !any {
                switch_off()
            }
        };
        self.change(|list| list.retain(stays), switch);
    }

    fn change(&self, change: impl FnOnce(&mut List), then: impl FnOnce(bool)) {
        let one = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut list = List::clone(&self.list.load());
        change(&mut list);
        let any = !list.is_empty();
        let old = self.list.swap(Arc::new(list));
        then(any);
        drop(one);
        // What goes with it may wake, and run, the coroutine that has removed it.
        drop(old);
    }

    #[cold]
    pub(super) fn wrote(&self, range: &Range<u64>, kind: WriteKind, succeeded: bool) {
        if range.is_empty() {
            return;
        }
        for entry in self.list.load().iter() {
            entry.hook.wrote(range.clone(), kind, succeeded);
        }
    }
}
