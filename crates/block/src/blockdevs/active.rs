//! `blockdev-set-active`: nodes whose storage another process uses for a while.

use coblk_aio::{AioContext, Co};

use super::Blockdevs;
use super::reopen::co_flush_in_time;
use crate::graph;
use crate::registry::BlockdevError;

impl Blockdevs {
    /// Makes the named nodes, or all nodes, active or inactive, as
    /// [`BlockNode::co_set_active`](crate::BlockNode::co_set_active) does: all or none of them.
    /// Polls `ctx` meanwhile.
    ///
    /// # Errors
    /// If there is no node of a name; else as of
    /// [`BlockNode::co_set_active`](crate::BlockNode::co_set_active).
    ///
    /// # Panics
    /// If called inside a coroutine; there, use [`co_set_active`](Self::co_set_active).
    pub fn set_active(
        &self,
        ctx: &AioContext,
        names: Option<&[&str]>,
        active: bool,
    ) -> Result<(), BlockdevError> {
        ctx.run(|co| self.co_set_active(co, names, active))
    }

    /// [`set_active`](Self::set_active), from a coroutine, but not from a request's own callback: the
    /// nodes are drained.
    ///
    /// # Errors
    /// As of [`set_active`](Self::set_active).
    pub fn co_set_active(
        &self,
        co: &Co<'_>,
        names: Option<&[&str]>,
        active: bool,
    ) -> Result<(), BlockdevError> {
        let nodes = match names {
            None => self.nodes(),
            Some(names) => {
                let nodes = names.iter().map(|name| self.known_node(name));
                nodes.collect::<Result<_, _>>()?
            }
        };
        if !active {
            // A disk that does not answer is found out before others wait for this change.
            for node in nodes.iter().filter(|node| node.is_active()) {
                co_flush_in_time(co, node.clone())?;
            }
        }
        Ok(graph::co_set_active(co, &nodes, active)?)
    }
}
