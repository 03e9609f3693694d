//! Bottom halves: callbacks deferred to the loop's next iteration.
//!
//! [`BottomHalf`] belongs to the home thread; [`RemoteBottomHalf`], made from it, schedules the
//! same callback from any thread. Scheduling never runs the callback (contract: C29); scheduled
//! several times before a poll it runs once (C30).

use std::cell::{Cell, RefCell, UnsafeCell};
use std::fmt;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use slab::Slab;

use super::AioContext;
use crate::home::Home;
use crate::panics::{Culprit, drop_reporting};
use crate::run_list::{self, LocalList, Node, NodeKind, Runner};

/// The node is on a list, local or remote; it may not be pushed again.
const LINKED: u8 = 1;
/// When its turn comes, call the callback. Cancelling clears it and leaves the node linked.
const WANTED: u8 = 2;

type Callback = Rc<dyn Fn(&AioContext)>;

/// What a bottom half's handles, and the list it is scheduled on, share.
#[repr(C)]
struct Bh {
    node: Node,
    flags: AtomicU8,
    name: &'static str,
    /// Home thread only. `None` once deleted.
    callback: UnsafeCell<Option<Callback>>,
}

// SAFETY: other threads touch `node` through the remote list, and `flags`, an atomic. `callback`
// is accessed by the home thread alone: `BottomHalf` and the loop are not `Send`, and it is
// emptied there, at the latest when the context ends, so the last `Arc` may go anywhere.
unsafe impl Send for Bh {}
// SAFETY: as above.
unsafe impl Sync for Bh {}

impl Bh {
    /// # Safety
    /// Home thread only.
    unsafe fn callback(&self) -> Option<Callback> {
        // SAFETY: the home thread is the only one here; the borrow ends with the clone, before
        // any callback runs.
        unsafe { (*self.callback.get()).clone() }
    }

    /// # Safety
    /// Home thread only.
    unsafe fn take_callback(&self) -> Option<Callback> {
        // SAFETY: as in `callback`. It is dropped by the caller: a destructor in it may come back
        // to this bottom half.
        unsafe { (*self.callback.get()).take() }
    }

    /// Marks it wanted. Returns the node to push if it was on no list; the node then holds a
    /// reference count, so it stays alive and in place until it is run or discarded.
    fn want(self: &Arc<Bh>) -> Option<NonNull<Node>> {
        let before = self.flags.fetch_or(LINKED | WANTED, Ordering::AcqRel);
        (before & LINKED == 0).then(|| Bh::node_of(Arc::into_raw(Arc::clone(self))))
    }

    fn node_of(bh: *const Bh) -> NonNull<Node> {
        // SAFETY: `bh` comes from an `Arc`, so it is not null; `node` is its first field.
        unsafe { NonNull::new_unchecked(bh.cast_mut().cast::<Node>()) }
    }
}

static BH_KIND: NodeKind = NodeKind { run: run_bh, discard: discard_bh };

/// # Safety
/// As `NodeKind::run`: the node is a `Bh` pushed by `Bh::want`.
unsafe fn run_bh(node: NonNull<Node>, runner: Runner<'_>) -> bool {
    // SAFETY: `want` put one reference count into the list; here it comes back.
    let bh = unsafe { Arc::from_raw(node.cast::<Bh>().as_ptr().cast_const()) };
    // From here on it may be scheduled again, also by its own callback, for the next poll (C31).
    let flags = bh.flags.swap(0, Ordering::AcqRel);
    if flags & WANTED == 0 {
        return false;
    }
    // SAFETY: `run` is called on the home thread.
    let Some(callback) = (unsafe { bh.callback() }) else { return false };
    // SAFETY: as `NodeKind::run`: on a context's list, so that runs it.
    let ctx = unsafe { runner.get::<AioContext>() };
    ctx.inner().panics.blaming(Culprit::BottomHalf(bh.name), || callback(ctx));
    true
}

/// # Safety
/// As `NodeKind::discard`: the node is a `Bh` pushed by `Bh::want`.
unsafe fn discard_bh(node: NonNull<Node>) {
    // SAFETY: `want` put one reference count into the list; here it is given up.
    drop(unsafe { Arc::from_raw(node.cast::<Bh>().as_ptr().cast_const()) });
}

/// The home thread's lists of scheduled nodes, and its register of bottom halves.
pub(crate) struct BhQueues {
    /// Scheduled, for the next bottom-half phase.
    pub(crate) pending: LocalList,
    /// What this phase runs. A nested poll appends to it and runs all of it, so what was left of
    /// the outer phase goes first (contract: C36).
    pub(crate) running: LocalList,
    live: RefCell<Slab<Arc<Bh>>>,
    closed: Cell<bool>,
}

impl BhQueues {
    pub(crate) fn new() -> BhQueues {
        BhQueues {
            pending: LocalList::new(),
            running: LocalList::new(),
            live: RefCell::new(Slab::new()),
            closed: Cell::new(false),
        }
    }

    /// Schedules a node for the next phase; discards it if the context is gone.
    ///
    /// # Safety
    /// The rule of `run_list.rs`.
    #[inline]
    pub(crate) unsafe fn schedule(&self, node: NonNull<Node>) {
        if self.closed.get() {
            // SAFETY: passed on; nothing else will take it.
            unsafe { Node::discard(node) };
        } else {
            // SAFETY: passed on.
            unsafe { self.pending.push(node) };
        }
    }

    /// The names of bottom halves that were not deleted (contract: C39).
    pub(crate) fn live_names(&self) -> Vec<&'static str> {
        self.live.borrow().iter().map(|(_, bh)| bh.name).collect()
    }

    /// The context ends: no callback runs any more, what is scheduled is discarded.
    pub(crate) fn close(&self, context: &str) {
        self.closed.set(true);
        // A destructor may make more of them.
        while !self.live.borrow().is_empty() {
            let live = std::mem::take(&mut *self.live.borrow_mut());
            for (_, bh) in live {
                // SAFETY: the home thread closes its context.
                drop_reporting(context, unsafe { bh.take_callback() });
            }
        }
        for list in [&self.running, &self.pending] {
            list.discard_all(context);
        }
    }
}

/// A callback that the home thread schedules for the loop's next iteration.
///
/// Dropping it deletes it: if it is scheduled it will not run (contract: C33), also when dropped
/// from its own callback (C34). The callback may be entered again while it runs, by a poll nested
/// in it.
#[must_use = "dropping it deletes it"]
pub struct BottomHalf {
    bh: Arc<Bh>,
    key: usize,
    queues: Rc<BhQueues>,
    shared: Arc<Home>,
}

impl BottomHalf {
    pub(crate) fn new(
        queues: &Rc<BhQueues>,
        shared: &Arc<Home>,
        name: &'static str,
        callback: Callback,
    ) -> BottomHalf {
        let bh = Arc::new(Bh {
            node: Node::new(&BH_KIND),
            flags: AtomicU8::new(0),
            name,
            callback: UnsafeCell::new(Some(callback)),
        });
        let key = queues.live.borrow_mut().insert(Arc::clone(&bh));
        BottomHalf { bh, key, queues: Rc::clone(queues), shared: Arc::clone(shared) }
    }

    /// Runs the callback in the next poll. Without effect if it is scheduled already, or if the
    /// context is gone.
    pub fn schedule(&self) {
        if let Some(node) = self.bh.want() {
            // SAFETY: `want` keeps the node alive and gives it out only when it is on no list.
            unsafe { self.queues.schedule(node) };
        }
    }

    /// Takes back a schedule: the callback does not run (contract: C32).
    pub fn cancel(&self) {
        self.bh.flags.fetch_and(!WANTED, Ordering::AcqRel);
    }

    /// A handle that schedules this bottom half from any thread.
    pub fn remote(&self) -> RemoteBottomHalf {
        RemoteBottomHalf { bh: Arc::clone(&self.bh), shared: Arc::clone(&self.shared) }
    }

    /// The name it was created with.
    pub fn name(&self) -> &'static str {
        self.bh.name
    }
}

impl Drop for BottomHalf {
    fn drop(&mut self) {
        self.cancel();
        // SAFETY: a `BottomHalf` is not `Send`; this is the home thread.
        let callback = unsafe { self.bh.take_callback() };
        if !self.queues.closed.get() {
            self.queues.live.borrow_mut().remove(self.key);
        }
        drop(callback);
    }
}

/// Schedules a [`BottomHalf`] from any thread.
#[derive(Clone)]
pub struct RemoteBottomHalf {
    bh: Arc<Bh>,
    shared: Arc<Home>,
}

impl RemoteBottomHalf {
    /// Runs the callback in the home thread's next poll, and wakes that thread if it sleeps.
    /// Without effect if it is scheduled already, deleted, or if the context is gone.
    pub fn schedule(&self) {
        if let Some(node) = self.bh.want() {
            // SAFETY: `want` keeps the node alive and gives it out only when it is on no list.
            unsafe { self.shared.schedule(node) };
        }
    }
}

/// Boxes a closure as a node: a bottom half that runs once and frees itself (contract: C35). The list
/// owns it until it is run or discarded.
pub(crate) fn one_shot<F: FnOnce(&AioContext) + 'static>(callback: F) -> NonNull<Node> {
    run_list::boxed(move |runner| {
        // SAFETY: as `NodeKind::run`: on a context's list, so that runs it.
        let ctx = unsafe { runner.get::<AioContext>() };
        let culprit = Culprit::Other("a scheduled callback");
        ctx.inner().panics.blaming(culprit, || callback(ctx));
        true
    })
}

impl fmt::Debug for BottomHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BottomHalf").field("name", &self.name()).finish_non_exhaustive()
    }
}

impl fmt::Debug for RemoteBottomHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteBottomHalf").field("name", &self.bh.name).finish_non_exhaustive()
    }
}
