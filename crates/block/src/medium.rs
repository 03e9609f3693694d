//! The medium of a backend: the node it is on, and its place at that node's gate.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use coblk_aio::{AioHandle, Co};

use crate::gate::InFlight;
use crate::graph::{self, UserId};
use crate::node::BlockNode;

thread_local! {
    /// The slots of this thread that have a medium, for changes of the graph to find.
    static SLOTS: RefCell<BTreeMap<UserId, Weak<Slot>>> = const { RefCell::new(BTreeMap::new()) };
}

/// Where a backend has its medium. Home thread only.
pub(crate) struct Slot {
    home: AioHandle,
    medium: RefCell<Option<Rc<Medium>>>,
}

/// A node, and our counter on its gate.
pub(crate) struct Medium {
    pub(crate) node: Arc<BlockNode>,
    /// What the node said when it came in.
    pub(crate) read_only: bool,
    user: UserId,
    in_flight: Arc<InFlight>,
}

impl Slot {
    pub(crate) fn new(home: AioHandle) -> Rc<Slot> {
        Rc::new(Slot { home, medium: RefCell::new(None) })
    }

    pub(crate) fn home(&self) -> &AioHandle {
        &self.home
    }

    #[inline]
    pub(crate) fn medium(&self) -> Option<Rc<Medium>> {
        self.medium.borrow().clone()
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.medium.borrow().as_ref().map_or(0, |medium| medium.in_flight.count())
    }

    /// Counts a request in, for as long as the guard lives; waits while the node is drained.
    /// `None` without a medium.
    #[inline]
    pub(crate) fn enter(&self, co: &Co<'_>) -> Option<Request> {
        loop {
            let medium = self.medium()?;
            if !medium.node.gate.is_closed() {
                return Some(Request::count_in(medium));
            }
            // There may be another medium afterwards.
            medium.node.gate.wait_until_open(co);
        }
    }

    /// Puts a node where there is none.
    pub(crate) fn insert(self: &Rc<Self>, node: Arc<BlockNode>) {
        let user = graph::lock().add_backend(&node, self.home.clone());
        SLOTS.with_borrow_mut(|slots| slots.insert(user, Rc::downgrade(self)));
        self.set(node, user);
    }

    /// Gives back what was there.
    fn set(&self, node: Arc<BlockNode>, user: UserId) -> Option<Rc<Medium>> {
        let in_flight = node.gate.join(self.home.clone());
        let read_only = node.is_read_only();
        self.medium.replace(Some(Rc::new(Medium { node, read_only, user, in_flight })))
    }

    /// Takes the node out. Nothing is in flight.
    pub(crate) fn take(&self) -> Option<Arc<BlockNode>> {
        let medium = self.medium.take()?;
        SLOTS.with_borrow_mut(|slots| slots.remove(&medium.user));
        graph::lock().remove_user(medium.user);
        medium.node.gate.leave(&medium.in_flight);
        Some(Arc::clone(&medium.node))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.take();
    }
}

/// Turns a backend of this thread to another node, if it is still there. Nothing is in flight.
pub(crate) fn turn(user: UserId, node: Arc<BlockNode>) {
    let Some(slot) = SLOTS.with_borrow(|slots| slots.get(&user).and_then(Weak::upgrade)) else {
        return;
    };
    graph::lock().move_user(user, node.id());
    if let Some(old) = slot.set(node, user) {
        old.node.gate.leave(&old.in_flight);
    }
}

/// A request in flight; it ends when this is dropped.
pub(crate) struct Request {
    medium: Rc<Medium>,
}

impl Request {
    /// Counts in. The gate is open, or it is we who have closed it.
    #[inline]
    pub(crate) fn count_in(medium: Rc<Medium>) -> Request {
        medium.node.gate.count_in(&medium.in_flight);
        Request { medium }
    }

    #[inline]
    pub(crate) fn medium(&self) -> &Medium {
        &self.medium
    }
}

impl Drop for Request {
    #[inline]
    fn drop(&mut self) {
        self.medium.node.gate.count_out(&self.medium.in_flight);
    }
}
