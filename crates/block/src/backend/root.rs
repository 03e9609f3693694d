//! The medium of a backend: the node it is on, and its place at that node's gate.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use coblk_aio::{AioHandle, Co, PoolShare};

use crate::accounting::Statistics;
use crate::backend::length_watch::LengthWatch;
use crate::driver::permissions::{PermissionError, Permissions};
use crate::graph::backends::{BackendHome, Claim};
use crate::graph::gate::InFlight;
use crate::graph::homes::co_settle_homes;
use crate::graph::life;
use crate::graph::node::BlockNode;
use crate::graph::{self, Kind, Use, UserId};

thread_local! {
    /// The slots of this thread that have a medium, for changes of the graph to find.
    static SLOTS: RefCell<BTreeMap<UserId, Weak<Slot>>> = const { RefCell::new(BTreeMap::new()) };
}

/// Where a backend has its medium. Home thread only.
pub(crate) struct Slot {
    name: String,
    home: AioHandle,
    claim: Claim,
    statistics: Statistics,
    /// Changes of length on their way.
    resizing: Cell<usize>,
    medium: RefCell<Option<Rc<Medium>>>,
    pub(crate) length: LengthWatch,
}

/// A node, and our counter on its gate.
pub(crate) struct Medium {
    pub(crate) node: Arc<BlockNode>,
    /// The backend is, or the node. Looked at anew when that may have changed.
    pub(crate) read_only: Cell<bool>,
    /// Reads may leave their buffers as they were. Looked at anew like that.
    pub(crate) unwritten_reads: Cell<bool>,
    user: UserId,
    in_flight: Arc<InFlight>,
}

impl Slot {
    pub(crate) fn new(
        name: String,
        home: AioHandle,
        claim: Claim,
        statistics: Statistics,
    ) -> Rc<Slot> {
        let (resizing, medium) = (Cell::new(0), RefCell::new(None));
        let length = LengthWatch::default();
        Rc::new(Slot { name, home, claim, statistics, resizing, medium, length })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn is_read_only(&self) -> bool {
        let medium = self.medium.borrow();
        self.claim.read_only || medium.as_ref().is_some_and(|medium| medium.read_only.get())
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
    /// `None` without a medium, and if the node is shut: [`refusal`](Self::refusal).
    // Always inlined: it is small but for a loop that seldom turns.
    #[inline(always)]
    pub(crate) fn enter(&self, co: &Co<'_>) -> Option<Request> {
        loop {
            let medium = self.medium()?;
            if !medium.node.gate.is_closed() {
                return Some(Request::count_in(medium));
            }
            if medium.node.gate.refusal().is_some() {
                return None;
            }
            // There may be another medium afterwards.
            medium.node.gate.wait_until_open(co);
        }
    }

    /// Counts a request in, if the node is not drained.
    pub(crate) fn try_enter(&self) -> io::Result<Option<Request>> {
        match self.medium() {
            Some(medium) if !medium.node.gate.is_closed() => Ok(Some(Request::count_in(medium))),
            Some(medium) if medium.node.gate.refusal().is_none() => Ok(None),
            _ => Err(self.refusal()),
        }
    }

    /// Why a request was not counted in.
    #[cold]
    pub(crate) fn refusal(&self) -> io::Error {
        let shut = self.medium().and_then(|medium| medium.node.gate.refusal());
        shut.unwrap_or_else(|| io::Error::from_raw_os_error(libc::ENOMEDIUM))
    }

    /// Puts a node where there is none. May wait for system calls.
    pub(crate) fn insert(self: &Rc<Self>, node: Arc<BlockNode>) -> Result<(), PermissionError> {
        let user = graph::add_backend(&node, self.kind(), self.wants(&node))?;
        self.inserted(node, user);
        Ok(())
    }

    /// [`insert`](Self::insert); a worker waits for system calls.
    pub(crate) fn co_insert(
        self: &Rc<Self>,
        co: &Co<'_>,
        node: Arc<BlockNode>,
    ) -> Result<(), PermissionError> {
        let (kind, wants) = (self.kind(), self.wants(&node));
        let user = PoolShare::once(co, || graph::add_backend(&node, kind, wants))?;
        self.inserted(Arc::clone(&node), user);
        co_settle_homes(co, &node);
        Ok(())
    }

    fn kind(&self) -> Kind {
        Kind::Backend {
            name: self.name.clone(),
            home: BackendHome {
                context: self.home.clone(),
                turn,
                look_at_node,
                look_at_length: |ctx, user| look_at(user, |slot| slot.look_at_length(ctx)),
            },
            claim: self.claim,
            statistics: self.statistics.clone(),
        }
    }

    fn inserted(self: &Rc<Self>, node: Arc<BlockNode>, user: UserId) {
        SLOTS.with_borrow_mut(|slots| slots.insert(user, Rc::downgrade(self)));
        self.set(node, user);
        self.look_at_length_soon(user);
    }

    fn wants(&self, node: &BlockNode) -> Use {
        let mut wants = self.claim.on(!node.is_read_only());
        if self.resizing.get() > 0 {
            wants.held |= Permissions::RESIZE;
        }
        wants
    }

    /// Holds the permission to change the length, for as long as the guard lives. May wait for system
    /// calls.
    pub(crate) fn resize(self: &Rc<Self>) -> Result<Resize, PermissionError> {
        self.count_resizing(1);
        // Given back if that fails.
        let mut resize = Resize { slot: Rc::clone(self), is_held: false };
        if let Some((user, wants)) = self.user_and_wants() {
            graph::change_use(user, wants)?;
        }
        resize.is_held = true;
        Ok(resize)
    }

    fn count_resizing(&self, change: isize) {
        self.resizing.set(self.resizing.get().wrapping_add_signed(change));
    }

    fn user_and_wants(&self) -> Option<(UserId, Use)> {
        self.medium().map(|medium| (medium.user, self.wants(&medium.node)))
    }

    /// Gives back what was there.
    fn set(&self, node: Arc<BlockNode>, user: UserId) -> Option<Rc<Medium>> {
        let in_flight = node.gate.join(self.home.clone());
        let medium = Medium {
            read_only: Cell::new(self.claim.read_only || node.is_read_only()),
            unwritten_reads: Cell::new(node.driver().leaves_reads_unwritten()),
            node,
            user,
            in_flight,
        };
        self.medium.replace(Some(Rc::new(medium)))
    }

    /// Takes the node out. Nothing is in flight. May wait for system calls.
    pub(crate) fn take(&self) -> Option<Arc<BlockNode>> {
        let (node, user) = self.take_out()?;
        graph::remove_user(user);
        Some(node)
    }

    /// [`take`](Self::take); a worker waits for system calls.
    pub(crate) fn co_take(&self, co: &Co<'_>) -> Option<Arc<BlockNode>> {
        let (node, user) = self.take_out()?;
        if !graph::forget_at_once(user) {
            PoolShare::once(co, || graph::remove_user(user));
        }
        Some(node)
    }

    /// Takes the node out; the graph has the user still.
    fn take_out(&self) -> Option<(Arc<BlockNode>, UserId)> {
        let medium = self.medium.take()?;
        // At the end of a thread the table may be gone before what other threads were offered.
        let _ = SLOTS.try_with(|slots| slots.borrow_mut().remove(&medium.user));
        medium.node.gate.leave(&medium.in_flight);
        Some((Arc::clone(&medium.node), medium.user))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(node) = self.take() {
            life::close_soon(&self.home, node);
        }
    }
}

/// Has `look` see a backend of this thread, if it is still there.
pub(crate) fn look_at(user: UserId, look: impl FnOnce(&Rc<Slot>)) {
    if let Some(slot) = SLOTS.with_borrow(|slots| slots.get(&user).and_then(Weak::upgrade)) {
        look(&slot);
    }
}

/// Turns a backend of this thread to another node, if it is still there; the graph has it there
/// already. Nothing is in flight.
fn turn(user: UserId, node: Arc<BlockNode>) {
    look_at(user, |slot| {
        if let Some(old) = slot.set(node, user) {
            old.node.gate.leave(&old.in_flight);
        }
        slot.look_at_length_soon(user);
    });
}

/// Has a backend of this thread find out anew what its node is like, if it is still there.
fn look_at_node(user: UserId) {
    look_at(user, |slot| {
        if let Some(medium) = slot.medium() {
            medium.read_only.set(slot.claim.read_only || medium.node.is_read_only());
            medium.unwritten_reads.set(medium.node.driver().leaves_reads_unwritten());
        }
        slot.look_at_length_soon(user);
    });
}

/// The permission to change the length.
pub(crate) struct Resize {
    slot: Rc<Slot>,
    /// It was granted.
    is_held: bool,
}

impl Drop for Resize {
    fn drop(&mut self) {
        self.slot.count_resizing(-1);
        if let (true, Some((user, wants))) = (self.is_held, self.slot.user_and_wants()) {
            // Who wants less cannot be refused.
            if let Err(error) = graph::change_use(user, wants) {
                tracing::error!(backend = self.slot.name, %error, "a permission is kept");
            }
        }
    }
}

/// A request in flight; it ends when this is dropped.
pub(crate) struct Request {
    medium: Rc<Medium>,
}

impl Request {
    /// Counts in. The gate is open, or the caller has closed it.
    #[inline]
    pub(crate) fn count_in(medium: Rc<Medium>) -> Request {
        medium.node.gate.count_in(&medium.in_flight);
        Request { medium }
    }

    #[inline]
    pub(crate) fn medium(&self) -> &Medium {
        &self.medium
    }

    /// Whose it is, as the graph knows the backend.
    #[inline]
    pub(crate) fn user(&self) -> UserId {
        self.medium.user
    }
}

impl Drop for Request {
    #[inline]
    fn drop(&mut self) {
        self.medium.node.gate.count_out(&self.medium.in_flight);
    }
}
