//! [`Opening`]: a node that is being opened from options.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use coblk_aio::{AioHandle, Co, PoolShare};

use super::names::Level;
use super::{
    BlockdevError, EventSink, EventType, Inherited, NamedObject, NodeMode, ObjectFinder, OpenError,
    Registry,
};
use crate::bitmap::{DirtyBitmap, NodeBitmap};
use crate::driver::edge::{EdgeId, ListId};
use crate::driver::permissions::{PermissionError, Permissions};
use crate::driver::role::ChildRole;
use crate::driver::{BlockDriver, MAX_LENGTH};
use crate::graph::life::co_close_if_unused;
use crate::graph::node::BlockNode;
use crate::graph::{self, Child, ChildList, ChildSlot, GraphError, MAX_CHILDREN, MAX_HEIGHT, Use};
use crate::options::{NodeOptions, NodeRef};

/// A node that is being opened, as its driver sees it.
pub struct Opening<'a, 'co> {
    registry: &'a Registry,
    co: &'a Co<'co>,
    name: &'a str,
    driver: &'a str,
    own: Inherited,
    declared: &'static [EventType],
    is_active: bool,
    bitmaps: Option<&'a Path>,
    depth: usize,
    /// The edges that the driver was given, with their names.
    edges: RefCell<Vec<(EdgeId, &'static str)>>,
    /// The list of children that it was given.
    list: Cell<Option<(ListId, &'static str)>>,
    /// The nodes that were opened for it.
    opened: RefCell<Vec<Arc<BlockNode>>>,
}

impl<'a, 'co> Opening<'a, 'co> {
    pub(super) fn new(
        registry: &'a Registry,
        co: &'a Co<'co>,
        level: &'a Level<'a>,
        depth: usize,
    ) -> Opening<'a, 'co> {
        Opening {
            registry,
            co,
            name: &level.reserved.name,
            driver: level.options.driver.name(),
            own: level.own,
            declared: level.factory.events(),
            is_active: !level.own.inactive,
            bitmaps: level.options.bitmaps.as_deref(),
            depth,
            edges: RefCell::default(),
            list: Cell::default(),
            opened: RefCell::default(),
        }
    }

    /// The coroutine in which the node is opened.
    pub fn co(&self) -> &'a Co<'co> {
        self.co
    }

    /// The home of the driver's background work: the context in which the node is opened.
    pub fn home(&self) -> AioHandle {
        self.co.context().handle()
    }

    /// The name of the node.
    pub fn node_name(&self) -> &'a str {
        self.name
    }

    /// The name by which the options call the driver: one of [`Driver::NAMES`](super::Driver::NAMES).
    pub fn driver_name(&self) -> &'a str {
        self.driver
    }

    /// The modes of the node.
    pub fn mode(&self) -> NodeMode {
        self.own.mode()
    }

    /// Whether the storage is this process's from the start. Otherwise the driver does no I/O before
    /// [`co_activate`](BlockDriver::co_activate).
    pub fn is_active(&self) -> bool {
        self.is_active
    }

    /// How many ancestors of this node are being opened.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// Opens a child, or finds the one that is there, and makes the driver's edge to it. `name` is
    /// that of the option that says which node it is; reopens and lists go by it. A node that an
    /// image names, and no option, is opened in the same way.
    ///
    /// Suspends.
    ///
    /// # Errors
    /// If there is no such node, it cannot be opened, is read-only where this one is to be written, or
    /// inactive where this one is not; if the chain would be too high; if the driver has a child of this
    /// name.
    pub fn co_child(
        &self,
        name: &'static str,
        role: ChildRole,
        node: &NodeRef,
    ) -> Result<Child, OpenError> {
        self.check_asked_once(name)?;
        let child = self.co_edge((name, None), role, node)?;
        self.edges.borrow_mut().push((child.id(), name));
        Ok(child)
    }

    /// Opens, or finds, the children of a list, and makes the driver's edges to them. `name` is that of the
    /// option, and their names are `children.0` and so on if it is `children`. A driver has one list at most.
    ///
    /// # Errors
    /// As of [`co_child`](Self::co_child); if there are more than 1024.
    pub fn co_list(
        &self,
        name: &'static str,
        role: ChildRole,
        nodes: &[NodeRef],
    ) -> Result<ChildList, OpenError> {
        self.begin_list(name, nodes)?;
        let mut children = Vec::with_capacity(nodes.len());
        for (node, index) in nodes.iter().zip(0..) {
            children.push(self.co_edge((name, Some(index)), role, node)?);
        }
        let list = ChildList::of(name, role, children);
        self.list.set(Some((list.id(), name)));
        Ok(list)
    }

    /// An edge of this name, with its number if it is one of a list.
    #[inline]
    fn co_edge(
        &self,
        name: (&'static str, Option<u32>),
        role: ChildRole,
        node: &NodeRef,
    ) -> Result<Child, OpenError> {
        // Chains nest, and each level is on the stack: what children do not need stays in its own function.
        let wanted = self.own.for_child(role);
        self.check_depth(node)?;
        match node {
            NodeRef::Name(node) => self.end_child(self.named_child(name, role, node)?, wanted),
            NodeRef::Options(options) => {
                let node = self.registry.co_open_node(
                    self.co,
                    options,
                    (wanted, Some(self.name)),
                    self.depth + 1,
                )?;
                self.end_child(self.new_child(name, role, node), wanted)
            }
        }
    }

    /// [`co_child`](Self::co_child), for an edge that may be empty. `None` leaves it so.
    ///
    /// # Errors
    /// As of [`co_child`](Self::co_child).
    pub fn co_slot(
        &self,
        name: &'static str,
        role: ChildRole,
        node: Option<&NodeRef>,
    ) -> Result<ChildSlot, OpenError> {
        // The child stays until the slot has it.
        let child = match node {
            Some(node) => Some(self.co_child(name, role, node)?),
            None => self.check_asked_once(name).map(|()| None)?,
        };
        let slot = ChildSlot::new(name, role, child.as_ref().map(Child::node));
        let mut edges = self.edges.borrow_mut();
        edges.retain(|(_, known)| *known != name);
        edges.push((slot.id(), name));
        Ok(slot)
    }

    /// Holds and shares permissions on a child while the node is opened, in place of those that were asked for
    /// before: so what the driver keeps of the child stays as it was read. When the node is there its driver
    /// [says](BlockDriver::child_permissions) what it holds. Suspends.
    ///
    /// # Errors
    /// If that does not fit what others hold and share.
    pub fn co_hold(
        &self,
        child: &Child,
        held: Permissions,
        shared: Permissions,
    ) -> Result<(), OpenError> {
        let (edge, wants) = (child.id().into(), Use { held, shared });
        let held = PoolShare::once(self.co, || graph::change_use(edge, wants));
        Ok(held.map_err(BlockdevError::from)?)
    }

    #[inline(never)]
    fn check_asked_once(&self, name: &str) -> Result<(), OpenError> {
        let list = self.list.get().filter(|(_, known)| *known == name);
        match list.is_some() || self.edges.borrow().iter().any(|(_, known)| *known == name) {
            true => Err(OpenError::broken(format!("asks twice for its child '{name}'"))),
            false => Ok(()),
        }
    }

    #[inline(never)]
    fn begin_list(&self, name: &str, nodes: &[NodeRef]) -> Result<(), OpenError> {
        self.check_asked_once(name)?;
        if self.list.get().is_some() {
            return Err(OpenError::broken("asks for two lists of children"));
        }
        match nodes.len() > MAX_CHILDREN {
            true => Err(OpenError::option(name, format!("more than {MAX_CHILDREN} children"))),
            false => Ok(()),
        }
    }

    #[inline(never)]
    fn check_depth(&self, node: &NodeRef) -> Result<(), OpenError> {
        // A chain of images that name each other may have no end.
        if self.depth >= MAX_HEIGHT && matches!(node, NodeRef::Options(_)) {
            return Err(GraphError::too_high(self.name).into());
        }
        Ok(())
    }

    #[inline(never)]
    fn named_child(
        &self,
        name: (&'static str, Option<u32>),
        role: ChildRole,
        node: &str,
    ) -> Result<Child, OpenError> {
        Ok(self.registry.child(name, role, node)?)
    }

    #[inline(never)]
    fn new_child(
        &self,
        (name, index): (&'static str, Option<u32>),
        role: ChildRole,
        node: Arc<BlockNode>,
    ) -> Child {
        self.opened.borrow_mut().push(Arc::clone(&node));
        Child::make(name, index, role, node)
    }

    #[inline(never)]
    fn end_child(&self, child: Child, wanted: Inherited) -> Result<Child, OpenError> {
        let node = child.node();
        if self.depth + 1 + graph::lock().height(&node) > MAX_HEIGHT {
            return Err(GraphError::too_high(self.name).into());
        }
        wanted.check_writable(self.name, &node)?;
        if self.is_active && !node.is_active() {
            let (node, user) = (node.name().to_owned(), format!("node '{}'", self.name));
            return Err(BlockdevError::from(PermissionError::Inactive { node, user }).into());
        }
        Ok(child)
    }

    /// The object with this id.
    ///
    /// # Errors
    /// If there is none of this type.
    pub fn object<T: NamedObject>(&self, id: &str) -> Result<Arc<T>, OpenError> {
        Ok(self.registry.known_object(id)?)
    }

    /// A bitmap of a node that is there.
    ///
    /// # Errors
    /// If there is no such node, or it has no such bitmap.
    pub fn bitmap(&self, bitmap: &NodeBitmap) -> Result<Arc<DirtyBitmap>, OpenError> {
        let node = self.registry.node(&bitmap.node)?;
        let found = node.bitmaps().find(&bitmap.name);
        found.map_err(|error| OpenError::option("bitmap", error.to_string()))
    }

    /// What a file name means that begins with a protocol, such as `nbd://host/disk`; `None` if no driver has
    /// that.
    ///
    /// # Errors
    /// What is wrong with the name.
    pub fn file_name(&self, name: &str) -> Option<Result<NodeOptions, String>> {
        self.registry.drivers.file_name(name)
    }

    /// What finds objects after the node was opened, such as the secret of a key that is added.
    pub fn objects(&self) -> ObjectFinder {
        ObjectFinder::new(self.registry.weak_names())
    }

    /// Where the driver tells what happens to the node, at any time and from any thread.
    pub fn events(&self) -> EventSink {
        self.registry.events.sink(self.name, self.declared)
    }

    /// The file that is to have the bitmaps of the node, and the driver does not know of.
    pub(super) fn bitmaps(&self) -> Option<&'a Path> {
        self.bitmaps
    }

    /// That a driver is what it was to be.
    pub(super) fn check(&self, driver: &dyn BlockDriver, names: &[&str]) -> Result<(), OpenError> {
        let name = driver.format_name();
        if !names.contains(&name) {
            return Err(OpenError::broken(format!("calls itself '{name}'")));
        }
        let (node, length) = (self.name.to_owned(), driver.length());
        if length > MAX_LENGTH {
            return Err(GraphError::TooLong { node, length }.into());
        }
        OpenError::check_limits(driver)?;
        let (given, mut seen) = (self.edges.borrow(), BTreeSet::new());
        for child in driver.children() {
            if !given.iter().any(|(id, _)| *id == child) || !seen.insert(child) {
                let edges = graph::lock().edges(&[child]);
                let name = edges.first().map_or("", |edge| edge.info().name());
                return Err(OpenError::broken(format!(
                    "has a child '{name}' that it was not given"
                )));
            }
        }
        let given = self.list.get().map(|(id, _)| id);
        if driver.child_list().is_some_and(|list| given != Some(list)) {
            return Err(OpenError::broken("has a list of children that it was not given"));
        }
        self.check_listed(driver, &seen)
    }

    /// That it lists the edges that it keeps: no drain and no check for loops would know of others.
    fn check_listed(
        &self,
        driver: &dyn BlockDriver,
        listed: &BTreeSet<EdgeId>,
    ) -> Result<(), OpenError> {
        let (edges, graph) = (self.edges.borrow(), graph::lock());
        let single = edges.iter().find(|(id, _)| !listed.contains(id) && graph.has_edge(*id));
        let list = self.list.get().filter(|(id, _)| {
            driver.child_list() != Some(*id) && graph.list(*id).strong_count() > 0
        });
        match single.map(|(_, name)| *name).or(list.map(|(_, name)| name)) {
            Some(name) => {
                Err(OpenError::broken(format!("keeps its child '{name}', and does not list it")))
            }
            None => Ok(()),
        }
    }

    /// Closes what was opened for it, and it does not have.
    pub(super) fn close_unused_children(&self) {
        for child in self.opened.take() {
            co_close_if_unused(self.co, &child);
        }
    }
}
