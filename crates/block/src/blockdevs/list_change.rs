//! [`ListChange`]: children that come to the list of a node by a reopen, and others that leave it.

use std::sync::Arc;

use coblk_aio::Co;

use super::Blockdevs;
use crate::graph::node::BlockNode;
use crate::graph::{self, Child, GraphError, List, Turn};
use crate::options::NodeRef;
use crate::registry::BlockdevError;

impl Blockdevs {
    /// [`BlockNode::co_remove_child`], for a user that knows the edge and not the node: a filter of a job stays.
    ///
    /// # Errors
    /// If the child belongs to a job; else as of [`BlockNode::co_remove_child`].
    pub fn co_remove_child(
        &self,
        co: &Co<'_>,
        parent: &Arc<BlockNode>,
        edge: &str,
    ) -> Result<(), BlockdevError> {
        let found = parent.children().into_iter().find(|(label, _)| *label == edge);
        found.and_then(|(_, child)| self.hidden(&child)).map_or(Ok(()), Err)?;
        Ok(parent.co_remove_child(co, edge)?)
    }
}

/// What a list gets and loses, while the node is drained. The driver has neither the new children nor those
/// that go, until [`end`](Self::end) gives it the former, or a drop the latter.
pub(super) struct ListChange {
    list: Option<Arc<List>>,
    added: Vec<(Arc<Child>, Arc<BlockNode>)>,
    removed: Vec<Arc<Child>>,
}

impl ListChange {
    /// Asks the driver of `node`, and takes the children that go out of the list. The graph learns of both
    /// by [`turns`](Self::turns).
    ///
    /// # Errors
    /// If the driver does not agree, or the list would be too long. The list is as it was then.
    pub(super) fn begin(
        node: &Arc<BlockNode>,
        added: &[Arc<BlockNode>],
        removed: &[Arc<Child>],
    ) -> Result<ListChange, GraphError> {
        let mut change = ListChange { list: node.list(), added: vec![], removed: vec![] };
        if let Some(list) = change.list.clone() {
            change.ask(node, &list, added, removed)?;
        }
        Ok(change)
    }

    fn ask(
        &mut self,
        node: &Arc<BlockNode>,
        list: &List,
        added: &[Arc<BlockNode>],
        removed: &[Arc<Child>],
    ) -> Result<(), GraphError> {
        for (others, new) in (0..).zip(added) {
            let info = list.next_info(graph::lock().new_edge_id(), others);
            graph::ask_for_one_more(node, list, &info, new, others)?;
            self.added.push((List::pending(info, node), Arc::clone(new)));
        }
        // The last ones first: the driver sees the list without those that it has let go.
        for child in removed.iter().rev() {
            graph::ask_driver(node, child.info(), None)?;
            self.removed.extend(list.take(child));
        }
        Ok(())
    }

    /// The edges that turn.
    pub(super) fn turns(&self) -> Vec<Turn> {
        let added = self.added.iter().map(|(child, new)| (child, Some(Arc::clone(new))));
        let removed = self.removed.iter().map(|child| (child, None));
        added.chain(removed).map(|(child, new)| (child.id().into(), new)).collect()
    }

    /// The edges have turned.
    pub(super) fn end(mut self) {
        self.removed.clear();
        for (child, _) in std::mem::take(&mut self.added) {
            self.list.iter().for_each(|list| list.put(Arc::clone(&child)));
        }
    }
}

/// The children that options want, by the name of their option, in the list of `node`. A driver need not have a
/// list where the option is empty.
///
/// # Errors
/// If the node has no such list: its driver has been opened without.
pub(super) fn wanted(
    node: &BlockNode,
    list: Option<&List>,
    wanted: Option<(String, Vec<NodeRef>)>,
) -> Result<Option<Vec<NodeRef>>, BlockdevError> {
    let Some((option, wanted)) = wanted else { return Ok(None) };
    match list {
        Some(list) if list.name() == option => Ok(Some(wanted)),
        None if wanted.is_empty() => Ok(None),
        _ => Err(BlockdevError::Fixed { node: node.name().to_owned(), option }),
    }
}

impl Drop for ListChange {
    fn drop(&mut self) {
        for child in std::mem::take(&mut self.removed) {
            self.list.iter().for_each(|list| list.put(Arc::clone(&child)));
        }
    }
}
