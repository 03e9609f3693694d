//! [`NodeInfo`]: the state of a node, as a monitor shows it.

use std::borrow::Cow;

use crate::driver::mode::{CacheMode, DetectZeroes, Engine};
use crate::graph::node::BlockNode;

/// The state of a node at a moment. What takes a question to the file system is not in it: see
/// [`BlockNode::co_allocated_bytes`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeInfo {
    /// Its name.
    pub name: String,
    /// The driver's name, such as `file`.
    pub driver: &'static str,
    /// The path or URL of its bytes, such as `null-co://`, if one word can name them. That of the
    /// child for [`Raw`](crate::drivers::Raw) on all of a node.
    pub filename: Option<String>,
    /// Whether writes are refused.
    pub read_only: bool,
    /// How it treats caches; its children have modes of their own.
    pub cache: CacheMode,
    /// The engine of its I/O, if it is an image.
    pub engine: Option<Engine>,
    /// Whether discards reach the driver.
    pub discard: bool,
    /// How a write of only zeroes is carried out.
    pub detect_zeroes: DetectZeroes,
    /// Whether its storage is this process's, see [`BlockNode::co_set_active`].
    pub active: bool,
    /// Length in bytes.
    pub length: u64,
    /// Where the highest write since it was opened ends, in bytes: `wr_highest_offset`.
    pub highest_write: u64,
    /// The write threshold in bytes, if there is one: a write that ends behind it is told of.
    pub write_threshold: Option<u64>,
    /// Its children.
    pub children: Vec<ChildInfo>,
}

/// A child of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChildInfo {
    /// The name of the edge to it, such as `file`.
    pub child: Cow<'static, str>,
    /// The name of the child.
    pub node: String,
}

impl BlockNode {
    /// Describes the node as it is now. Any thread; makes no system call.
    pub fn describe(&self) -> NodeInfo {
        let children = self.children().into_iter();
        let children =
            children.map(|(child, node)| ChildInfo { child, node: node.name().to_owned() });
        NodeInfo {
            name: self.name().to_owned(),
            driver: self.driver().format_name(),
            filename: self.driver().filename(),
            read_only: self.is_read_only(),
            cache: self.cache_mode(),
            engine: self.driver().engine(),
            discard: self.is_discard_enabled(),
            detect_zeroes: self.path.state.detect_zeroes(),
            active: self.is_active(),
            length: self.length(),
            highest_write: self.path.state.highest_write(),
            write_threshold: self.path.state.write_threshold(),
            children: children.collect(),
        }
    }
}
