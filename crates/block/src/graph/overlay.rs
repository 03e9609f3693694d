//! An overlay comes above a node: the node becomes its backing file, and the users of the node turn to the overlay.
//! All of that happens at one instant, and can be undone.

use std::sync::Arc;

use coblk_aio::{Co, PoolShare, trace_event};

use super::change::{ChangeLock, co_flush_in_time, co_look_at_node};
use super::turn::{Turn, Turned};
use super::{GraphError, UserId, ask_driver, lock, lock_permits};
use crate::driver::role::ChildRole;
use crate::graph::gate::co_visit;
use crate::graph::node::BlockNode;

/// An overlay that is above a node since [`co_put_on`].
pub(crate) struct PutOn {
    node: Arc<BlockNode>,
    overlay: Arc<BlockNode>,
    slot: UserId,
    /// Those that have turned from the node.
    users: Vec<UserId>,
}

/// Puts an overlay above a node. Both are drained, and the caller has the lock of changes. What was written to the
/// node is flushed.
///
/// # Errors
/// If the overlay has no empty slot for a backing file, or a user does not agree, or the flush fails. All is as
/// before then.
pub(crate) fn co_put_on(
    co: &Co<'_>,
    _change: &ChangeLock,
    node: &Arc<BlockNode>,
    overlay: &Arc<BlockNode>,
) -> Result<PutOn, GraphError> {
    lock().check_open(overlay.id())?;
    let edges = overlay.edges().iter();
    let mut slots = edges.filter(|it| it.is_slot() && it.info().role().contains(ChildRole::COW));
    let no_slot = || GraphError::NoEdge { node: overlay.name().to_owned(), edge: "backing".into() };
    let slot = slots.next().ok_or_else(no_slot)?;
    if let Some(child) = slot.node() {
        let (node, edge) = (overlay.name().to_owned(), slot.info().label());
        return Err(GraphError::SlotTaken { node, edge, child: child.name().to_owned() });
    }
    ask_driver(overlay, slot.info(), Some(node))?;
    trace_event!("bdrv_append", node = node.name(), overlay = overlay.name());
    let failed = |source| GraphError::Flush { node: node.name().to_owned(), source };
    co_flush_in_time(co, node).map_err(failed)?;
    let slot = slot.user();
    let users = lock().keep_way_down(node, overlay)?;
    let put = PutOn { node: Arc::clone(node), overlay: Arc::clone(overlay), slot, users };
    let turns = put.turns(overlay, Some(node));
    co_turn(co, &turns, overlay)?;
    Ok(put)
}

impl PutOn {
    fn turns(&self, users: &Arc<BlockNode>, slot: Option<&Arc<BlockNode>>) -> Vec<Turn> {
        let turns = self.users.iter().map(|id| (*id, Some(Arc::clone(users))));
        std::iter::once((self.slot, slot.cloned())).chain(turns).collect()
    }

    /// The node that is below the overlay.
    pub(crate) fn node(&self) -> &Arc<BlockNode> {
        &self.node
    }

    /// Takes the overlay off again: its users turn back. Both nodes have been drained ever since.
    ///
    /// # Errors
    /// If a user does not agree: the overlay stays.
    pub(crate) fn co_take_off(&self, co: &Co<'_>, _change: &ChangeLock) -> Result<(), GraphError> {
        co_turn(co, &self.turns(&self.node, None), &self.node)?;
        self.overlay.look_at_limits();
        Ok(())
    }
}

/// Turns users of drained nodes, among them backends that come to `new`.
fn co_turn(co: &Co<'_>, turns: &[Turn], new: &Arc<BlockNode>) -> Result<(), GraphError> {
    // Edges may go only after the lock.
    let mut turned = Turned::default();
    let (moved, above, parents) = PoolShare::once(co, || {
        let mut graph = lock_permits();
        graph.turn(turns, &[], false, &mut turned)?;
        // The parents may have nothing to flush, but the new node may.
        graph.owe_flush_above(new);
        let is_moved = |id: &UserId| turns.iter().any(|(turned, _)| turned == id);
        let above = graph.backends_above(new).into_iter();
        let (moved, above) = above.partition::<Vec<_>, _>(|(id, _)| is_moved(id));
        let parents = graph.parents_of(turns.iter().map(|(id, _)| *id));
        let parents: Vec<_> = parents.into_iter().filter_map(|id| graph.node(id)).collect();
        Ok::<_, GraphError>((moved, above, parents))
    })?;
    // Limits may be those of children, and a node may have a backing file now.
    parents.iter().for_each(|node| node.look_at_limits());
    for (id, home) in moved {
        let new = Arc::clone(new);
        co_visit(co, &home.context, move || (home.turn)(id, new));
    }
    co_look_at_node(co, above);
    Ok(())
}
