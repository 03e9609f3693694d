//! Changes of one edge: children are attached, detached, added and removed.
//!
//! The parent is drained, so that no request is inside the edge; the child need not be, for an edge from
//! a drained parent brings it no requests. A change is all or nothing:
//!
//! ```text
//! ask      the driver, and whether the edge is free; refused before anything waits
//! drain    the parent; what was written to a child that goes is flushed
//! ask      again, under the lock of changes
//! turn     all users must agree
//! close    the old child, after the drained section, if it has no other user and was opened for this one
//! ```

use std::io;
use std::sync::Arc;

use coblk_aio::{Co, PoolShare};

use super::change::co_flush_in_time;
use super::turn::Turned;
use super::{
    Child, GraphError, Kind, List, MAX_CHILDREN, UserId, co_drain_for_change, co_look_at_node,
    lock, lock_changes, lock_permits,
};
use crate::driver::edge::{EdgeId, EdgeInfo, NewChild};
use crate::graph::Graph;
use crate::graph::homes::co_settle_homes;
use crate::graph::life::co_close_if_unused;
use crate::graph::node::BlockNode;

/// The edge of a change, and its nodes.
struct Found {
    id: UserId,
    info: EdgeInfo,
    is_slot: bool,
    child: Option<Arc<BlockNode>>,
}

/// The state that an edge must have before a change.
#[derive(Clone, Copy)]
enum Before {
    Empty,
    Full,
    Any,
}

/// Changes of the edges to children, while requests run: those in flight complete before, later ones wait.
/// So none may be called from a request's own callback. All contexts that have backends on this node or on
/// its parents must be polling. If a change is refused, nothing has changed.
///
/// A change waits for requests, and for other changes, up to [`WAIT_LIMIT`](crate::WAIT_LIMIT) each.
impl BlockNode {
    /// Puts `child` into an empty [slot](crate::ChildSlot), such as `backing`.
    ///
    /// # Errors
    /// If there is no such slot or it has a child; if the driver, or a user of either node, does not
    /// agree; if a node would be its own child, or the chain too long; if the child is closed, or inactive
    /// while this node is active.
    pub fn co_attach(
        self: &Arc<Self>,
        co: &Co<'_>,
        slot: &str,
        child: &Arc<BlockNode>,
    ) -> Result<(), GraphError> {
        co_change(co, self, slot, Before::Empty, Some(child), &[]).map(|_| ())
    }

    /// Takes the child out of a slot. It gives the permissions back that the driver had there. What was
    /// written to it is flushed; if that fails, that is logged.
    ///
    /// # Errors
    /// If there is no such slot, or it is empty or frozen; if the driver, or a user of this node, does
    /// not agree.
    pub fn co_detach(self: &Arc<Self>, co: &Co<'_>, slot: &str) -> Result<(), GraphError> {
        co_change(co, self, slot, Before::Full, None, &[]).map(|_| ())
    }

    /// Makes an edge of this node's driver lead to `child`, wherever it leads now; `None` empties a
    /// slot. If what was written to another child before cannot be made durable, the next flush of
    /// this node says so.
    ///
    /// # Errors
    /// As of [`co_attach`](Self::co_attach) and [`co_detach`](Self::co_detach).
    pub fn co_set_child(
        self: &Arc<Self>,
        co: &Co<'_>,
        edge: &str,
        child: Option<&Arc<BlockNode>>,
    ) -> Result<(), GraphError> {
        co_change(co, self, edge, Before::Any, child, &[]).map(|_| ())
    }

    /// Adds a child to the [list](crate::BlockDriver::child_list) of this node's driver. Returns the name
    /// of the edge, such as `children.2`.
    ///
    /// # Errors
    /// If the driver has no list, or as many children as there may be; else as of
    /// [`co_attach`](Self::co_attach).
    pub fn co_add_child(
        self: &Arc<Self>,
        co: &Co<'_>,
        child: &Arc<BlockNode>,
    ) -> Result<String, GraphError> {
        let no_list = || GraphError::NoChildList { node: self.name().to_owned() };
        let list = self.list().ok_or_else(no_list)?;
        let id = lock().new_edge_id();
        ask_for_one_more(self, &list, &list.next_info(id, 0), child, 0)?;
        let edge = {
            let _drained = co_drain_for_change(co, self)?;
            let _change = lock_changes(co)?;
            let info = list.next_info(id, 0);
            ask_for_one_more(self, &list, &info, child, 0)?;
            let edge = List::pending(info, self);
            co_turn(co, self, id.into(), Some(child), || list.put(Arc::clone(&edge)))?;
            edge.info().to_string()
        };
        co_settle_homes(co, child);
        Ok(edge)
    }

    /// Removes a child from the list, by the name of its edge. What was written to it is flushed; if that
    /// fails, that is logged.
    ///
    /// # Errors
    /// If there is no such child; else as of [`co_detach`](Self::co_detach).
    pub fn co_remove_child(self: &Arc<Self>, co: &Co<'_>, edge: &str) -> Result<(), GraphError> {
        let child = {
            let child = self.listed(edge)?;
            ask_driver(self, child.info(), None)?;
            let _drained = co_drain_for_change(co, self)?;
            log_lost(&child.node(), co_flush_in_time(co, &child.node()));
            let _change = lock_changes(co)?;
            // It may have been removed by another change, and its name may be given again.
            let child = self.listed(edge)?;
            ask_driver(self, child.info(), None)?;
            let list = self.list();
            let taken = list.as_ref().and_then(|list| list.take(&child));
            if let Err(error) = co_turn(co, self, child.id().into(), None, || ()) {
                taken.into_iter().zip(list).for_each(|(child, list)| list.put(child));
                return Err(error);
            }
            child.node()
        };
        co_fell(co, &child);
        Ok(())
    }

    /// The child of the list at this edge.
    fn listed(&self, edge: &str) -> Result<Arc<Child>, GraphError> {
        let list = self.list().map(|list| list.load());
        let child = list.and_then(|list| list.iter().find(|it| it.info().label() == edge).cloned());
        child.ok_or_else(|| no_edge(self, edge))
    }
}

/// [`BlockNode::co_set_child`] of an edge that may be one of those that are `frozen`. Returns the edge.
pub(super) fn co_set_frozen_child(
    co: &Co<'_>,
    node: &Arc<BlockNode>,
    edge: &str,
    child: Option<&Arc<BlockNode>>,
    frozen: &[UserId],
) -> Result<UserId, GraphError> {
    co_change(co, node, edge, Before::Any, child, frozen)
}

/// Changes where an edge leads. It may be frozen if it is one of `thawed`, and is not afterwards.
fn co_change(
    co: &Co<'_>,
    node: &Arc<BlockNode>,
    edge: &str,
    before: Before,
    new: Option<&Arc<BlockNode>>,
    thawed: &[UserId],
) -> Result<UserId, GraphError> {
    let ask = || {
        let found = lock().find_edge(node, edge, before, new)?;
        ask_driver(node, &found.info, new).map(|()| found)
    };
    let (id, old) = loop {
        let first = ask()?;
        lock().check_thawed(first.id, new, thawed)?;
        let _drained = co_drain_for_change(co, node)?;
        let left = first.child.clone().map(|child| Left::co_flush(co, child));
        let _change = lock_changes(co)?;
        let found = ask()?;
        // Another child would have to be flushed first.
        if found.id != first.id || !is_same(found.child.as_ref(), first.child.as_ref()) {
            continue;
        }
        co_turn_thawed(co, node, found.id, new, thawed)?;
        if let Some(left) = left {
            left.tell(node, new.is_some());
        }
        break (found.id, found.child);
    };
    // Its last I/O waits for drains.
    if let Some(old) = old {
        co_fell(co, &old);
    }
    co_settle_homes(co, node);
    Ok(id)
}

/// A node that an edge led to, after all drained sections.
fn co_fell(co: &Co<'_>, child: &Arc<BlockNode>) {
    co_close_if_unused(co, child);
    co_settle_homes(co, child);
}

fn is_same(one: Option<&Arc<BlockNode>>, other: Option<&Arc<BlockNode>>) -> bool {
    one.map(|node| node.id()) == other.map(|node| node.id())
}

/// A child that an edge of a drained node is about to turn away from, flushed: a driver need not flush
/// each of its children.
pub(crate) struct Left {
    child: Arc<BlockNode>,
    flushed: io::Result<()>,
}

impl Left {
    pub(crate) fn co_flush(co: &Co<'_>, child: Arc<BlockNode>) -> Left {
        let flushed = co_flush_in_time(co, &child);
        Left { child, flushed }
    }

    /// Tells, after the edge of `node` has turned, if the flush has failed. If another child is there in
    /// its place, the next flush of `node` fails.
    pub(crate) fn tell(self, node: &BlockNode, is_replaced: bool) {
        match self.flushed {
            Err(error) if is_replaced => {
                let child = self.child.name();
                tracing::error!(node = child, %error, "flush of a child that is replaced failed");
                node.path.state.fail_next_flush(&error);
            }
            flushed => log_lost(&self.child, flushed),
        }
    }
}

/// Its driver goes on without the child.
fn log_lost(child: &BlockNode, flushed: io::Result<()>) {
    if let Err(error) = flushed {
        tracing::error!(node = child.name(), %error, "flush of a child that is removed failed");
    }
}

/// That a driver lets an edge lead to another node, or nowhere; and that the graph knows all edges of that
/// node, and of the driver's own.
pub(crate) fn ask_driver(
    node: &BlockNode,
    edge: &EdgeInfo,
    new: Option<&Arc<BlockNode>>,
) -> Result<(), GraphError> {
    if let Some(new) = new {
        node.check_own_declared()?;
        new.check_declared()?;
    }
    let new = new.map(|new| NewChild {
        node: new.name(),
        length: new.length(),
        read_only: new.is_read_only(),
    });
    node.driver().check_child(edge, new).map_err(|reason| {
        let (node, edge) = (node.name().to_owned(), edge.label());
        GraphError::ChildRefused { node, edge, reason }
    })
}

/// [`ask_driver`], for a child that comes to a list after `others`, which must not be full then.
pub(crate) fn ask_for_one_more(
    node: &BlockNode,
    list: &List,
    info: &EdgeInfo,
    new: &Arc<BlockNode>,
    others: u32,
) -> Result<(), GraphError> {
    if list.load().len() + others as usize >= MAX_CHILDREN {
        return Err(GraphError::TooManyChildren { node: node.name().to_owned() });
    }
    ask_driver(node, info, Some(new))
}

/// [`co_turn`] of an edge that may be frozen if it is one of `thawed`.
fn co_turn_thawed(
    co: &Co<'_>,
    node: &Arc<BlockNode>,
    edge: UserId,
    new: Option<&Arc<BlockNode>>,
    thawed: &[UserId],
) -> Result<(), GraphError> {
    // Others that freeze it wait for the lock of changes.
    let reason = if thawed.contains(&edge) { lock().set_frozen(edge, None) } else { None };
    co_turn(co, node, edge, new, || ()).inspect_err(|_| {
        if reason.is_some() {
            lock().set_frozen(edge, reason);
        }
    })
}

/// Turns an edge of a drained node, under the lock of changes. Then the driver is given it, by `give`.
fn co_turn(
    co: &Co<'_>,
    node: &Arc<BlockNode>,
    edge: UserId,
    new: Option<&Arc<BlockNode>>,
    give: impl FnOnce(),
) -> Result<(), GraphError> {
    // What edges led to may go only after the lock.
    let mut turned = Turned::default();
    let backends = PoolShare::once(co, || {
        let mut graph = lock_permits();
        graph.check_open(node.id())?;
        graph.turn(&[(edge, new.cloned())], &[node.id()], false, &mut turned)?;
        // Flushes may have done nothing up to now.
        graph.owe_flush_above(node);
        Ok::<_, GraphError>(graph.backends_above(node))
    })?;
    give();
    node.look_at_limits();
    co_look_at_node(co, backends);
    Ok(())
}

fn no_edge(node: &BlockNode, edge: &str) -> GraphError {
    GraphError::NoEdge { node: node.name().to_owned(), edge: edge.to_owned() }
}

impl Graph {
    /// Whether there is an edge by this id.
    pub(crate) fn has_edge(&self, id: EdgeId) -> bool {
        self.users.contains_key(&id.into())
    }

    /// An id for an edge that is about to be made.
    pub(crate) fn new_edge_id(&mut self) -> EdgeId {
        EdgeId(self.next_id())
    }

    /// An edge that is to lead to `new`.
    fn find_edge(
        &mut self,
        node: &BlockNode,
        edge: &str,
        before: Before,
        new: Option<&Arc<BlockNode>>,
    ) -> Result<Found, GraphError> {
        let found = self.edge(node, edge).ok_or_else(|| no_edge(node, edge))?;
        let (node, edge) = (node.name().to_owned(), found.info.label());
        match (before, &found.child) {
            (Before::Empty, Some(child)) => {
                let child = child.name().to_owned();
                Err(GraphError::SlotTaken { node, edge, child })
            }
            (Before::Full, None) => Err(GraphError::SlotEmpty { node, edge }),
            _ if new.is_none() && !found.is_slot => Err(GraphError::NoSlot { node, edge }),
            _ => Ok(found),
        }
    }

    fn edge(&mut self, node: &BlockNode, label: &str) -> Option<Found> {
        let edges = self.nodes.get(&node.id())?.children.clone();
        edges.into_iter().find_map(|id| {
            let user = self.users.get(&id)?;
            let (Kind::Edge { info, edge, .. }, child) = (&user.kind, user.node) else {
                return None;
            };
            let (info, is_slot) = (*info, edge.upgrade()?.is_slot());
            let child = child.and_then(|child| self.node(child));
            (info.label() == label).then_some(Found { id, info, is_slot, child })
        })
    }

    /// That an edge may turn, which may be frozen if it is one of `thawed`.
    fn check_thawed(
        &mut self,
        edge: UserId,
        new: Option<&Arc<BlockNode>>,
        thawed: &[UserId],
    ) -> Result<(), GraphError> {
        if thawed.contains(&edge) {
            return Ok(());
        }
        self.check_frozen(edge, new.map(|new| &**new))
    }
}
