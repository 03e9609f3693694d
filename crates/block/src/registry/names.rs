//! [`Registry`]: the nodes that there are, by name, those that are being opened, and the objects that
//! options name.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use coblk_aio::{Co, PoolShare};
use coblk_qapi::shorten;

use super::drivers::Factory;
use super::event::EventListener;
use super::opening::Opening;
use super::{BlockdevError, Drivers, Inherited, NamedObject, OpenError};
use crate::driver::role::ChildRole;
use crate::graph::node::BlockNode;
use crate::graph::{self, Child};
use crate::options::{AnyOptions, NodeOptions, check_name};

/// Drivers, and the nodes and objects that there are.
pub(crate) struct Registry {
    pub(crate) drivers: Drivers,
    pub(crate) names: Arc<Mutex<Names>>,
    /// What drivers tell of their nodes goes there.
    pub(crate) events: EventListener,
}

#[derive(Default)]
pub(crate) struct Names {
    pub(crate) nodes: BTreeMap<String, Entry>,
    objects: BTreeMap<String, Object>,
    /// The last number of a name that was made up.
    last: u64,
}

/// Any [`NamedObject`].
struct Object {
    kind: &'static str,
    object: Arc<dyn Any + Send + Sync>,
}

pub(crate) enum Entry {
    /// It is being opened or closed.
    Reserved,
    /// Opened by itself, as these options say; without, made in code.
    Owned(Arc<BlockNode>, Option<Arc<NodeOptions>>),
    /// Opened for another node, whose name is there, and there as long as it has users. That node alone
    /// tells it anything.
    Child(Weak<BlockNode>, Arc<NodeOptions>, String),
    /// Belongs to a job, whose name for messages this is. It is listed; no command finds it by its name.
    Hidden(Arc<BlockNode>, String),
}

impl Entry {
    pub(crate) fn node(&self) -> Option<Arc<BlockNode>> {
        match self {
            Entry::Reserved => None,
            Entry::Owned(node, _) => Some(Arc::clone(node)),
            Entry::Hidden(node, _) => Some(Arc::clone(node)).filter(|node| !node.life.is_closed()),
            Entry::Child(node, ..) => node.upgrade().filter(|node| !node.life.is_closed()),
        }
    }

    fn is_free(&self) -> bool {
        matches!(self, Entry::Child(..)) && self.node().is_none()
    }
}

impl Names {
    fn object<T: NamedObject>(&self, id: &str) -> Option<Arc<T>> {
        let object = Arc::clone(&self.objects.get(id)?.object);
        object.downcast().ok()
    }

    /// The object with this id.
    ///
    /// # Errors
    /// If there is none of this type, or no registry any more.
    pub(super) fn known_object<T: NamedObject>(
        names: Option<&Mutex<Names>>,
        id: &str,
    ) -> Result<Arc<T>, BlockdevError> {
        let object = names.and_then(|names| lock(names).object(id));
        object.ok_or_else(|| BlockdevError::NoSuchObject { kind: T::KIND, id: shorten(id) })
    }

    /// The node that commands and options mean by a name.
    ///
    /// # Errors
    /// If there is none, or it belongs to a job.
    pub(crate) fn find(&self, name: &str) -> Result<Arc<BlockNode>, BlockdevError> {
        let entry = self.nodes.get(name);
        if let Some(Entry::Hidden(_, owner)) = entry {
            return Err(BlockdevError::hidden(name, owner));
        }
        let missing = || BlockdevError::NoSuchNode(shorten(name));
        entry.and_then(Entry::node).ok_or_else(missing)
    }

    /// The owner of a node that belongs to a job.
    pub(crate) fn owner(&self, node: &BlockNode) -> Option<&str> {
        match self.nodes.get(node.name())? {
            Entry::Hidden(known, owner) if std::ptr::eq(&**known, node) => Some(owner),
            _ => None,
        }
    }

    /// The node that the options of a parent mean: jobs may have put filters above it.
    pub(crate) fn below_hidden(&self, mut node: Arc<BlockNode>) -> Arc<BlockNode> {
        while self.owner(&node).is_some()
            && let Some(below) = node.filtered()
        {
            node = below;
        }
        node
    }
}

fn lock(names: &Mutex<Names>) -> MutexGuard<'_, Names> {
    names.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registry {
    pub(crate) fn new(drivers: Drivers) -> Registry {
        Registry { drivers, names: Arc::default(), events: EventListener::default() }
    }

    pub(crate) fn names(&self) -> MutexGuard<'_, Names> {
        lock(&self.names)
    }

    /// For what may live longer than the registry.
    pub(crate) fn weak_names(&self) -> Weak<Mutex<Names>> {
        Arc::downgrade(&self.names)
    }

    /// Takes a name, the one that is `wanted` or one that no option can have.
    pub(crate) fn reserve(&self, wanted: Option<&str>) -> Result<Reserved<'_>, BlockdevError> {
        // Typed options may say anything.
        if let Some(why) = wanted.and_then(|name| check_name(name).err()) {
            return Err(BlockdevError::Name(why));
        }
        let mut names = self.names();
        names.nodes.retain(|_, entry| !entry.is_free());
        let name = match wanted {
            Some(name) if names.nodes.contains_key(name) => {
                return Err(BlockdevError::DuplicateNode(name.to_owned()));
            }
            Some(name) => name.to_owned(),
            None => {
                names.last += 1;
                format!("#block{}", names.last)
            }
        };
        names.nodes.insert(name.clone(), Entry::Reserved);
        Ok(Reserved { registry: self, name })
    }

    /// Opens a node, by itself or for `parent`, and enters it. It has `depth` ancestors that are being
    /// opened.
    ///
    /// Chains nest, and each level is on the stack: what children do not need stays in its own function,
    /// or on the heap.
    pub(crate) fn co_open_node(
        &self,
        co: &Co<'_>,
        options: &Arc<NodeOptions>,
        (inherited, parent): (Inherited, Option<&str>),
        depth: usize,
    ) -> Result<Arc<BlockNode>, Box<BlockdevError>> {
        let level = self.begin_open(options, inherited)?;
        let opening = Opening::new(self, co, &level, depth);
        let made = level.factory.co_open(&opening, &*level.own_options);
        opening.close_unused_children();
        level.end_open(co, made, parent)
    }

    #[inline(never)]
    fn begin_open(
        &self,
        options: &Arc<NodeOptions>,
        inherited: Inherited,
    ) -> Result<Box<Level<'_>>, BlockdevError> {
        // Options that an image names have not been read with those of its node.
        let options = match options.driver.typed() {
            Some(_) => Arc::clone(options),
            None => Arc::new(self.drivers.resolve(NodeOptions::clone(options))?),
        };
        let own_options = options.driver.typed().cloned();
        let factory = self.drivers.factory(options.driver.name())?;
        let reserved = self.reserve(options.node_name.as_deref())?;
        let own = Inherited::of(&options, inherited);
        own.check(&reserved.name)?;
        let missing = || BlockdevError::NoOptions(reserved.name.clone());
        let own_options = own_options.ok_or_else(missing)?;
        Ok(Box::new(Level { options, own_options, factory, reserved, own }))
    }

    /// An edge to the node called `node`, which cannot be closed while the edge lives.
    pub(crate) fn child(
        &self,
        (name, index): (&'static str, Option<u32>),
        role: ChildRole,
        node: &str,
    ) -> Result<Child, BlockdevError> {
        // Under the lock that closing takes to look for users.
        let names = self.names();
        Ok(Child::make(name, index, role, names.find(node)?))
    }

    /// The node of a name.
    pub(crate) fn node(&self, name: &str) -> Result<Arc<BlockNode>, BlockdevError> {
        self.names().find(name)
    }

    pub(crate) fn add_object<T: NamedObject>(
        &self,
        id: &str,
        object: Arc<T>,
    ) -> Result<(), BlockdevError> {
        let mut names = self.names();
        if let Some(Object { kind, .. }) = names.objects.get(id) {
            return Err(BlockdevError::DuplicateObject { kind, id: id.to_owned() });
        }
        names.objects.insert(id.to_owned(), Object { kind: T::KIND, object });
        Ok(())
    }

    pub(crate) fn object<T: NamedObject>(&self, id: &str) -> Option<Arc<T>> {
        self.names().object(id)
    }

    pub(crate) fn known_object<T: NamedObject>(&self, id: &str) -> Result<Arc<T>, BlockdevError> {
        Names::known_object(Some(&self.names), id)
    }

    pub(crate) fn remove_object<T: NamedObject>(&self, id: &str) -> Result<(), BlockdevError> {
        let object: Arc<T> = self.known_object(id)?;
        let mut names = self.names();
        if object.is_in_use() {
            return Err(BlockdevError::InUse { what: T::KIND, name: id.to_owned() });
        }
        let removed = names.objects.remove(id);
        drop(names);
        drop(removed);
        Ok(())
    }
}

/// A node on its way.
pub(super) struct Level<'a> {
    pub(super) options: Arc<NodeOptions>,
    own_options: Arc<dyn AnyOptions>,
    pub(super) factory: &'a dyn Factory,
    pub(super) reserved: Reserved<'a>,
    pub(super) own: Inherited,
}

impl Level<'_> {
    #[inline(never)]
    #[expect(clippy::boxed_local, reason = "the caller's frame is one of many")]
    fn end_open(
        self: Box<Self>,
        co: &Co<'_>,
        made: Result<Arc<BlockNode>, OpenError>,
        parent: Option<&str>,
    ) -> Result<Arc<BlockNode>, Box<BlockdevError>> {
        let Level { options, reserved, own, .. } = *self;
        let node = made.map_err(|error| BlockdevError::of_node(&reserved.name, error))?;
        node.swap_state(own.node_state());
        node.life.set_belongs_to_users(parent.is_some());
        // Those that are opened for a parent come with it.
        if parent.is_none() {
            co_permit(co, &node)?;
        }
        reserved.enter(match parent {
            Some(parent) => Entry::Child(Arc::downgrade(&node), options, parent.to_owned()),
            None => Entry::Owned(Arc::clone(&node), Some(options)),
        });
        Ok(node)
    }
}

/// Has a new node, and those that were opened for it, hold what they need while they have no users. A node that
/// cannot is closed.
#[inline(never)]
fn co_permit(co: &Co<'_>, node: &Arc<BlockNode>) -> Result<(), BlockdevError> {
    PoolShare::once(co, || graph::permit_new(node)).inspect_err(|_| {
        if let Err(error) = node.co_close(co) {
            tracing::error!(node = node.name(), %error, "a node that cannot be used cannot be closed");
        }
    })?;
    Ok(())
}

/// A name whose node is being opened or closed; given back at the end, unless a node is entered.
pub(crate) struct Reserved<'a> {
    pub(crate) registry: &'a Registry,
    pub(crate) name: String,
}

impl Reserved<'_> {
    /// The node is there.
    pub(crate) fn enter(mut self, entry: Entry) {
        let name = std::mem::take(&mut self.name);
        self.registry.names().nodes.insert(name, entry);
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.registry.names().nodes.remove(&self.name);
    }
}
