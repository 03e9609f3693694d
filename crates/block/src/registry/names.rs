//! [`Registry`]: the nodes that there are, by name, those that are being opened, and the objects that
//! options name.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use coblk_aio::Co;
use coblk_qapi::shorten;

use super::opening::Opening;
use super::{BlockdevError, Drivers, Inherited, NamedObject};
use crate::driver::role::ChildRole;
use crate::graph::Child;
use crate::graph::node::BlockNode;
use crate::options::{NodeOptions, check_name};

/// Drivers, and the nodes and objects that there are.
pub(crate) struct Registry {
    pub(crate) drivers: Drivers,
    names: Mutex<Names>,
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
    /// Opened as a child, and there as long as it has users.
    Child(Weak<BlockNode>, Arc<NodeOptions>),
}

impl Entry {
    pub(crate) fn node(&self) -> Option<Arc<BlockNode>> {
        match self {
            Entry::Reserved => None,
            Entry::Owned(node, _) => Some(Arc::clone(node)),
            Entry::Child(node, _) => node.upgrade().filter(|node| !node.life.is_closed()),
        }
    }

    fn is_free(&self) -> bool {
        matches!(self, Entry::Child(..)) && self.node().is_none()
    }
}

impl Registry {
    pub(crate) fn new(drivers: Drivers) -> Registry {
        Registry { drivers, names: Mutex::default() }
    }

    pub(crate) fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Opens a node and enters it as a child. `depth` nodes that are being opened are above it.
    pub(crate) fn co_open_node(
        &self,
        co: &Co<'_>,
        options: &Arc<NodeOptions>,
        inherited: Inherited,
        depth: usize,
    ) -> Result<Arc<BlockNode>, BlockdevError> {
        let options = self.read(options)?;
        let reserved = self.reserve(options.node_name.as_deref())?;
        let own = Inherited::of(&options, inherited);
        own.check(&reserved.name)?;
        let node = self.co_make(co, &reserved.name, &options, (own, depth))?;
        node.swap_state(own.node_state());
        node.life.set_belongs_to_users(true);
        reserved.enter(Entry::Child(Arc::downgrade(&node), options));
        Ok(node)
    }

    /// Descriptions nest, and each level is on the stack: what one needs stays in its own function.
    #[inline(never)]
    fn co_make(
        &self,
        co: &Co<'_>,
        name: &str,
        options: &NodeOptions,
        level: (Inherited, usize),
    ) -> Result<Arc<BlockNode>, BlockdevError> {
        let factory = self.drivers.factory(options.driver.name())?;
        let opening = Opening::new(self, co, name, options, level);
        let made = options.driver.typed().map(|own| factory.co_open(&opening, own));
        opening.close_unused_children();
        match made {
            Some(made) => made.map_err(|error| BlockdevError::of_node(name, error)),
            None => Err(BlockdevError::NoOptions(name.to_owned())),
        }
    }

    /// Options that an image names have not been read with those of its node.
    #[inline(never)]
    fn read(&self, options: &Arc<NodeOptions>) -> Result<Arc<NodeOptions>, BlockdevError> {
        match options.driver.typed() {
            Some(_) => Ok(Arc::clone(options)),
            None => Ok(Arc::new(self.drivers.resolve(NodeOptions::clone(options))?)),
        }
    }

    /// An edge to the node called `node`, which cannot be closed while the edge lives.
    pub(crate) fn child(
        &self,
        name: &'static str,
        role: ChildRole,
        node: &str,
    ) -> Result<Child, BlockdevError> {
        // Under the lock that closing takes to look for users.
        let names = self.names();
        let found = names.nodes.get(node).and_then(Entry::node);
        let found = found.ok_or_else(|| BlockdevError::NoSuchNode(shorten(node)))?;
        Ok(Child::new(name, role, found))
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
        let object = Arc::clone(&self.names().objects.get(id)?.object);
        object.downcast().ok()
    }

    pub(crate) fn known_object<T: NamedObject>(&self, id: &str) -> Result<Arc<T>, BlockdevError> {
        let missing = || BlockdevError::NoSuchObject { kind: T::KIND, id: shorten(id) };
        self.object(id).ok_or_else(missing)
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
