//! [`GraphError`]: why the graph cannot be changed.

use std::borrow::Cow;
use std::io;

use super::{MAX_CHILDREN, MAX_HEIGHT, Operation};
use crate::driver::MAX_LENGTH;
use crate::driver::permissions::PermissionError;
use crate::graph::gate::WAIT_LIMIT;

/// Why the graph cannot be changed in this way. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GraphError {
    /// A node would be its own child, directly or not.
    #[error("making node '{below}' a child of node '{above}' would create a cycle")]
    Cycle {
        /// The node whose edge would turn.
        above: String,
        /// Where it would lead.
        below: String,
    },
    /// Requests recurse through a chain of nodes, so its length is bounded.
    #[error("node '{node}' would have more than {max} levels of children")]
    TooHigh {
        /// The node.
        node: String,
        /// The most levels there may be.
        max: usize,
    },
    /// A node would be longer than requests can address.
    #[error("node '{node}' would have {length} bytes, more than {MAX_LENGTH}")]
    TooLong {
        /// The node.
        node: String,
        /// Its length in bytes.
        length: u64,
    },
    /// The limits of a driver contradict themselves.
    #[error("node '{node}': its driver has impossible limits: {limits}")]
    Limits {
        /// The node.
        node: String,
        /// The driver's limits.
        limits: String,
    },
    /// A driver lists an edge that is not this node's alone.
    #[error("node '{0}': its driver lists a child twice, or one of another node")]
    NotItsChild(String),
    /// The node that is to be inserted does not lead to the other.
    #[error("node '{above}' cannot be inserted above node '{below}': it does not lead to it")]
    NotAbove {
        /// The node to be inserted.
        above: String,
        /// Where.
        below: String,
    },
    /// What is to be inserted, or removed, does not have the bytes of the other node.
    #[error("node '{above}' is no filter of node '{below}': it does not have all of its bytes")]
    NotItsFilter {
        /// The node to be inserted or removed.
        above: String,
        /// The other node.
        below: String,
    },
    /// What is to be removed is no filter.
    #[error("node '{0}' is no filter")]
    NoFilter(String),
    /// It does not have exactly one child, which could take its place.
    #[error("node '{node}' cannot be removed: it has {children} children, not one")]
    NoOnlyChild {
        /// The node to be removed.
        node: String,
        /// How many.
        children: usize,
    },
    /// A node that a user writes to would become read-only.
    #[error("node '{node}' cannot become read-only: {user} writes to it")]
    Writer {
        /// The node.
        node: String,
        /// The user that writes, as `backend 'drive'`.
        user: String,
    },
    /// Requests in flight do not end: their disk does not answer, or they are long.
    #[error("node '{0}' still has requests in flight after {limit} s", limit = WAIT_LIMIT.as_secs())]
    RequestsInTheWay(String),
    /// Another change of the graph does not end.
    #[error("another change of nodes has not ended after {} s", WAIT_LIMIT.as_secs())]
    ChangeInTheWay,
    /// A node that is to be closed has users.
    #[error("node '{0}' is in use")]
    InUse(String),
    /// The node is closed, and takes no users.
    #[error("node '{0}' is closed")]
    Closed(String),
    /// The driver failed to write what it kept. The node stays open.
    #[error("node '{node}' cannot be closed: {source}")]
    Close {
        /// The node.
        node: String,
        /// Why.
        source: io::Error,
    },
    /// A node that is to become inactive has an active parent.
    #[error("node '{node}' cannot be inactive: its parent, node '{parent}', is active")]
    ActiveParent {
        /// The node.
        node: String,
        /// The parent.
        parent: String,
    },
    /// A user writes to a node that is to become inactive.
    #[error("node '{node}' cannot be inactive: {user} writes to it")]
    ActiveUser {
        /// The node.
        node: String,
        /// Which user, as `backend 'drive'`.
        user: String,
    },
    /// The storage of a node cannot be handed over, or taken back.
    #[error("node '{node}' cannot be made {}: {source}", if *active { "active" } else { "inactive" })]
    Activity {
        /// The node.
        node: String,
        /// Whether it was to become active.
        active: bool,
        /// Why.
        source: io::Error,
    },
    /// A user of the node blocks the operation.
    #[error("node '{node}' cannot be {operation}: {user} blocks it: {reason}")]
    Blocked {
        /// The node.
        node: String,
        /// The operation.
        operation: Operation,
        /// Which user, as `job 'backup'`.
        user: String,
        /// Its reason.
        reason: String,
    },
    /// A job relies on an edge as it is.
    #[error("cannot change '{edge}' link from '{parent}' to '{child}': {reason}")]
    Frozen {
        /// The edge, as `backing`.
        edge: Cow<'static, str>,
        /// The node whose edge it is.
        parent: String,
        /// Where it leads.
        child: String,
        /// Why it is frozen, as `job 'commit0' needs it`.
        reason: String,
    },
    /// A chain does not lead to the node that was to be its base.
    #[error("node '{base}' is not in the chain of node '{top}'")]
    NotInChain {
        /// Where the chain begins.
        top: String,
        /// The node that was to be the base.
        base: String,
    },
    /// The driver has no edge of this name.
    #[error("node '{node}' does not have child '{edge}'")]
    NoEdge {
        /// The node.
        node: String,
        /// The name of the edge that was asked for.
        edge: String,
    },
    /// The slot has a child already.
    #[error("node '{node}' already has node '{child}' as child '{edge}'")]
    SlotTaken {
        /// The node.
        node: String,
        /// The edge.
        edge: Cow<'static, str>,
        /// The child.
        child: String,
    },
    /// The slot has no child.
    #[error("node '{node}' has no node as child '{edge}'")]
    SlotEmpty {
        /// The node.
        node: String,
        /// The edge.
        edge: Cow<'static, str>,
    },
    /// The edge is no slot: the driver does not work without this child.
    #[error("child '{edge}' of node '{node}' cannot be detached")]
    NoSlot {
        /// The node.
        node: String,
        /// The edge.
        edge: Cow<'static, str>,
    },
    /// The driver has a fixed number of children.
    #[error("node '{node}' does not support adding a child")]
    NoChildList {
        /// The node.
        node: String,
    },
    /// The list has as many children as there may be.
    #[error("node '{node}' has {MAX_CHILDREN} children, and takes no more")]
    TooManyChildren {
        /// The node.
        node: String,
    },
    /// The driver refuses the child.
    #[error("child '{edge}' of node '{node}' cannot change: {reason}")]
    ChildRefused {
        /// The node.
        node: String,
        /// The edge.
        edge: Cow<'static, str>,
        /// The driver's reason.
        reason: String,
    },
    /// What was written to a node cannot be made durable.
    #[error("node '{node}' cannot be flushed: {source}")]
    Flush {
        /// The node.
        node: String,
        /// Why.
        source: io::Error,
    },
    /// Users of both nodes exclude each other.
    #[error(transparent)]
    Permission(#[from] PermissionError),
}

impl GraphError {
    pub(crate) fn too_high(node: &str) -> GraphError {
        GraphError::TooHigh { node: node.to_owned(), max: MAX_HEIGHT }
    }
}
