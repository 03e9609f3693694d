//! Questions to a node and its backing files: which layer has a range, and in which state.
//!
//! A layer is a node with the filters that lead to it. The walk follows roles: a filter's
//! [`FILTERED`](crate::ChildRole::FILTERED) child, and a format's [`COW`](crate::ChildRole::COW)
//! child.

mod relatives;

use std::io;
use std::sync::Arc;

use coblk_aio::Co;

use crate::driver::extent::Extent;
use crate::graph::node::BlockNode;
use crate::io::{check_range, co_block_status};

/// The state of a range in a chain of nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainExtent {
    /// Its state in the layer that decides. If none does, it is not allocated, and reads as zeroes
    /// where the whole chain was asked.
    pub extent: Extent,
    /// How deep that layer is, counted from 1; if none decides, how many were asked.
    pub depth: usize,
}

/// Where a walk ends.
#[derive(Clone, Copy)]
pub(crate) struct Base<'a> {
    node: Option<&'a BlockNode>,
    included: bool,
}

impl<'a> Base<'a> {
    /// Behind the last layer.
    pub(crate) const NONE: Base<'static> = Base { node: None, included: false };

    /// Before `node`, or behind it if it is `included`.
    pub(crate) fn new(node: &'a BlockNode, included: bool) -> Base<'a> {
        Base { node: Some(node), included }
    }

    fn is(self, node: &BlockNode) -> bool {
        self.node.is_some_and(|base| base.id() == node.id())
    }

    /// Whether the walk ends before the layer of `node`: a filter knows what the base knows.
    fn is_before(self, node: &BlockNode) -> bool {
        if self.node.is_none() || self.included {
            return false;
        }
        let below = node.filtered();
        self.is(node) || below.is_some_and(|below| self.is_before(&below))
    }
}

/// Asks the layers of `top` down to `base`, until one decides on the first bytes of the range. The
/// caller is part of a request that is counted at a gate.
pub(crate) fn co_status_above(
    top: &BlockNode,
    co: &Co<'_>,
    base: Base<'_>,
    offset: u64,
    bytes: u64,
) -> io::Result<ChainExtent> {
    if base.is_before(top) {
        check_range(&top.path, offset, bytes)?;
        let end = offset + bytes == top.length();
        return Ok(ChainExtent { extent: Extent { end, ..Extent::unallocated(bytes) }, depth: 0 });
    }
    let mut extent = co_block_status(&top.path, co, offset, bytes)?;
    let mut depth = 1;
    let mut next = below(top, base, offset);
    while !extent.allocated && extent.bytes > 0 {
        let (node, at) = match next {
            Below::Layer(node, at) => (node, at),
            Below::Base => break,
            Below::Nothing => {
                extent.zero = true;
                break;
            }
        };
        depth += 1;
        let there = node.length().saturating_sub(at);
        let (end, bytes) = (extent.end, extent.bytes);
        // Behind the end of a backing file there are zeroes, as if it had them.
        extent = match there {
            0 => Extent::hole(bytes),
            _ => co_block_status(&node.path, co, at, bytes.min(there))?,
        };
        extent.end = end && extent.bytes == bytes;
        next = below(&node, base, at);
    }
    Ok(ChainExtent { extent, depth })
}

/// The step that follows a layer.
enum Below {
    /// The next layer, and where in it an offset is.
    Layer(Arc<BlockNode>, u64),
    /// The walk ends before the next layer.
    Base,
    /// That was the last one.
    Nothing,
}

/// Through the filters of a layer, and one step on.
fn below(node: &BlockNode, base: Base<'_>, offset: u64) -> Below {
    let (mut at, mut held): (u64, Option<Arc<BlockNode>>) = (offset, None);
    loop {
        let node = held.as_deref().unwrap_or(node);
        if base.is(node) {
            // It is there because it is included.
            return Below::Base;
        }
        let (child, is_filter) = match node.filtered() {
            Some(child) => (Some(child), true),
            None => (node.backing(), false),
        };
        let Some(child) = child else { return Below::Nothing };
        if !is_filter {
            return if base.is_before(&child) { Below::Base } else { Below::Layer(child, at) };
        }
        at = node.driver().at_filtered(at);
        held = Some(child);
    }
}
