//! Nodes that a command makes read-only, or writable, with all that they were opened with otherwise.

use std::sync::Arc;

use coblk_aio::Co;

use super::Blockdevs;
use super::listing::describe_edges;
use crate::graph::change::ChangeLock;
use crate::graph::homes::co_settle_homes;
use crate::graph::life::co_close_if_unused;
use crate::graph::node::BlockNode;
use crate::options::NodeOptions;
use crate::registry::BlockdevError;

impl Blockdevs {
    /// Reopens a node read-only, or writable, with its other options as they are. Children that were opened for it
    /// follow, as far as they have that from their parent. Nothing is done if it is so already.
    ///
    /// # Errors
    /// If the node was made in code, or its driver or a user does not agree, or another change is in the way.
    pub fn co_set_read_only(
        &self,
        co: &Co<'_>,
        node: &Arc<BlockNode>,
        read_only: bool,
    ) -> Result<(), BlockdevError> {
        if node.is_read_only() == read_only {
            return Ok(());
        }
        let change = ChangeLock::co_take(co)?;
        self.co_set_read_only_locked(co, &change, node, read_only)
    }

    /// [`co_set_read_only`](Self::co_set_read_only), by a caller that makes other changes besides.
    ///
    /// # Errors
    /// As of [`co_set_read_only`](Self::co_set_read_only).
    pub fn co_set_read_only_locked(
        &self,
        co: &Co<'_>,
        change: &ChangeLock,
        node: &Arc<BlockNode>,
        read_only: bool,
    ) -> Result<(), BlockdevError> {
        let options = self.options_now(node)?;
        let options = NodeOptions { read_only: Some(read_only), ..options };
        let turned = self.co_reopen_locked(co, change, vec![options])?;
        turned.iter().for_each(|node| co_close_if_unused(co, node));
        turned.iter().for_each(|node| co_settle_homes(co, node));
        Ok(())
    }

    /// The options of a node as it is, what it has from its parent included.
    fn options_now(&self, node: &Arc<BlockNode>) -> Result<NodeOptions, BlockdevError> {
        let missing = || BlockdevError::NoOptions(node.name().to_owned());
        let (options, _) = self.entry(node).ok_or_else(missing)?;
        let mut options = NodeOptions::clone(&options);
        describe_edges(node, &mut options);
        let cache = node.cache_mode();
        options.node_name = Some(node.name().to_owned());
        options.cache_direct.get_or_insert(cache.direct);
        options.cache_no_flush.get_or_insert(cache.no_flush);
        options.discard.get_or_insert(node.is_discard_enabled());
        options.force_share.get_or_insert(node.is_force_share());
        Ok(options)
    }
}
