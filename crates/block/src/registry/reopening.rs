//! [`Reopening`]: a node that is about to get other options.

use std::borrow::Cow;
use std::sync::Arc;

use coblk_aio::Co;

use super::{Inherited, NamedObject, NodeMode, OpenError, Registry};
use crate::graph::node::BlockNode;

/// A node that is about to get other options, as its driver sees it.
pub struct Reopening<'a, 'co> {
    registry: &'a Registry,
    co: &'a Co<'co>,
    name: &'a str,
    own: Inherited,
    children: &'a [(Cow<'static, str>, Arc<BlockNode>)],
}

impl<'a, 'co> Reopening<'a, 'co> {
    pub(crate) fn new(
        registry: &'a Registry,
        co: &'a Co<'co>,
        name: &'a str,
        own: Inherited,
        children: &'a [(Cow<'static, str>, Arc<BlockNode>)],
    ) -> Reopening<'a, 'co> {
        Reopening { registry, co, name, own, children }
    }

    /// The coroutine in which the node is reopened.
    pub fn co(&self) -> &'a Co<'co> {
        self.co
    }

    /// The name of the node.
    pub fn node_name(&self) -> &'a str {
        self.name
    }

    /// The modes that the node will have.
    pub fn mode(&self) -> NodeMode {
        self.own.mode()
    }

    /// The node that the edge of this name will lead to. Those of a list go by their places: `children.0`.
    pub fn child(&self, name: &str) -> Option<&'a Arc<BlockNode>> {
        self.children.iter().find(|(edge, _)| *edge == name).map(|(_, node)| node)
    }

    /// The object with this id.
    ///
    /// # Errors
    /// If there is none of this type.
    pub fn object<T: NamedObject>(&self, id: &str) -> Result<Arc<T>, OpenError> {
        Ok(self.registry.known_object(id)?)
    }
}
