//! [`NodeUser`]: a user of a node that is neither a parent nor a backend, such as a job.

use std::fmt;
use std::sync::Arc;

use coblk_aio::{Co, PoolShare};

use super::{Graph, GraphError, Kind, NodeId, Use, UserId, add_backend, change_use, lock};
use super::{forget_at_once, remove_user};
use crate::driver::permissions::{PermissionError, Permissions};
use crate::graph::life::co_close_if_unused;
use crate::graph::node::BlockNode;

/// A user of a node that is neither a parent nor a backend, such as a job. It is told of drains,
/// and drains of any context wait until it rests.
pub trait NodeUser: Send + Sync {
    /// Its name in messages, such as `job 'backup'`. Must not touch the graph, which is locked.
    fn name(&self) -> String;

    /// A drain of the node begins, in any thread: the user starts nothing that drains wait for.
    /// Must neither block nor touch the graph, which is locked. Called when the use begins, if the
    /// node is drained then.
    fn drained_begin(&self) {}

    /// The last of nested drains ends. As [`drained_begin`](Self::drained_begin); not called if the use
    /// has ended meanwhile.
    fn drained_end(&self) {}

    /// Returns when nothing of it is under way at the node; a drain waits for that, after
    /// [`drained_begin`](Self::drained_begin). Any thread; several drains may wait at once. A drain with a
    /// limit that is over does not wait for this call any more, which then goes on by itself. A user that
    /// waits for a change of the graph rests: the change may be the one that drains.
    fn co_rest(&self, _co: &Co<'_>) {}
}

/// An operation on a node, which users of the node may block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// Its users turn to another node: [`BlockNode::co_replace`] and its like.
    Replace,
    /// It gets other options.
    Reopen,
    /// It gets another length, by a command.
    Resize,
    /// Its storage is handed over to another process.
    Inactivate,
    /// Another job begins to use it.
    Job,
}

impl fmt::Display for Operation {
    /// The participle of the operation, as in `cannot be replaced`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Operation::Replace => "replaced",
            Operation::Reopen => "reopened",
            Operation::Resize => "resized",
            Operation::Inactivate => "made inactive",
            Operation::Job => "used by another job",
        })
    }
}

impl BlockNode {
    /// Why a user of this node blocks an operation, if one does. Any thread.
    pub fn blocked_reason(&self, operation: Operation) -> Option<String> {
        match lock().check_operation(self, operation) {
            Err(GraphError::Blocked { reason, .. }) => Some(reason),
            _ => None,
        }
    }
}

/// The operations that a [`NodeUser`] has blocked, each with the reason.
pub(crate) type Blocked = Vec<(Operation, String)>;

/// A use of a node by a [`NodeUser`], with permissions; it ends when this is dropped. It stays at its node
/// when other users turn to another. A node that is used is not deleted. Any thread.
#[must_use = "the use ends when it is dropped"]
pub struct NodeUse {
    id: UserId,
    node: Arc<BlockNode>,
    /// Its end may take the lock of the graph, so the graph's own is not the last.
    _user: Arc<dyn NodeUser>,
}

impl NodeUse {
    /// Begins a use that holds and shares these permissions. May block, for the locks of an image; in a
    /// coroutine, use [`co_new`](Self::co_new).
    ///
    /// # Errors
    /// If other users of the node, or of those that it leads to, do not agree, or other processes; if the node is
    /// closed, or is inactive and would be changed.
    pub fn new(
        user: Arc<dyn NodeUser>,
        node: &Arc<BlockNode>,
        held: Permissions,
        shared: Permissions,
    ) -> Result<NodeUse, PermissionError> {
        let kind = Kind::User { user: Arc::clone(&user), blocked: Blocked::new() };
        let id = add_backend(node, kind, Use { held, shared })?;
        Ok(NodeUse { id, node: Arc::clone(node), _user: user })
    }

    /// [`new`](Self::new), from a coroutine: a worker asks for the locks.
    ///
    /// # Errors
    /// As of [`new`](Self::new).
    pub fn co_new(
        co: &Co<'_>,
        user: Arc<dyn NodeUser>,
        node: &Arc<BlockNode>,
        held: Permissions,
        shared: Permissions,
    ) -> Result<NodeUse, PermissionError> {
        PoolShare::once(co, || NodeUse::new(user, node, held, shared))
    }

    /// The node.
    pub fn node(&self) -> &Arc<BlockNode> {
        &self.node
    }

    /// Holds and shares these permissions from now on. A worker asks for the locks of images.
    ///
    /// # Errors
    /// As of [`new`](Self::new); it holds and shares what it did before then.
    pub fn co_set_permissions(
        &self,
        co: &Co<'_>,
        held: Permissions,
        shared: Permissions,
    ) -> Result<(), PermissionError> {
        PoolShare::once(co, || change_use(self.id, Use { held, shared }))
    }

    /// Ends the use. A worker gives the locks of images back; a drop does so itself.
    pub fn co_end(self, co: &Co<'_>) {
        if !forget_at_once(self.id) {
            PoolShare::once(co, || remove_user(self.id));
        }
        co_close_if_unused(co, &self.node);
    }

    /// Blocks an operation on the node, for a reason that its caller is told, such as `it is being
    /// copied`.
    pub fn block(&self, operation: Operation, reason: impl Into<String>) {
        let reason = reason.into();
        lock().with_blocked(self.id, |blocked| {
            blocked.retain(|(known, _)| *known != operation);
            blocked.push((operation, reason));
        });
    }

    /// Ends the block of an operation.
    pub fn unblock(&self, operation: Operation) {
        lock().with_blocked(self.id, |blocked| blocked.retain(|(known, _)| *known != operation));
    }
}

impl Drop for NodeUse {
    fn drop(&mut self) {
        remove_user(self.id);
    }
}

impl Graph {
    fn with_blocked(&mut self, id: UserId, change: impl FnOnce(&mut Blocked)) {
        if let Some(Kind::User { blocked, .. }) = self.users.get_mut(&id).map(|it| &mut it.kind) {
            change(blocked);
        }
    }

    /// That no user of a node blocks an operation.
    ///
    /// # Errors
    /// If one does, with its reason.
    pub(crate) fn check_operation(
        &mut self,
        node: &BlockNode,
        operation: Operation,
    ) -> Result<(), GraphError> {
        let users = self.nodes.get(&node.id()).map_or(&[][..], |entry| &entry.users);
        for id in users {
            let Some(Kind::User { user, blocked }) = self.users.get(id).map(|it| &it.kind) else {
                continue;
            };
            if let Some((_, reason)) = blocked.iter().find(|(known, _)| *known == operation) {
                let (node, user, reason) = (node.name().to_owned(), user.name(), reason.clone());
                return Err(GraphError::Blocked { node, operation, user, reason });
            }
        }
        Ok(())
    }

    /// Whether a user stays at its node when others turn.
    pub(super) fn stays(&self, id: UserId) -> bool {
        self.users.get(&id).is_some_and(|user| matches!(user.kind, Kind::User { .. }))
    }

    /// The users of this kind on a node.
    pub(super) fn node_users(&self, id: NodeId) -> Vec<Arc<dyn NodeUser>> {
        let users = self.nodes.get(&id).map_or(&[][..], |entry| &entry.users);
        let user = |id: &UserId| match &self.users.get(id)?.kind {
            Kind::User { user, .. } => Some(Arc::clone(user)),
            _ => None,
        };
        users.iter().filter_map(user).collect()
    }
}
