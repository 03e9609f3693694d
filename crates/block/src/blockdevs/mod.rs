//! [`Blockdevs`]: nodes by their names, opened from options and closed again, as `blockdev-add` and
//! `blockdev-del` do.

mod active;
mod listing;
mod open;
mod reopen;
mod resize;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use coblk_aio::{AioContext, Co, PoolShare};
use coblk_qapi::shorten;

use crate::driver::role::ChildRole;
use crate::filter::throttle::ThrottleGroup;
use crate::graph::node::BlockNode;
use crate::graph::{self, Child, GraphError, MAX_HEIGHT};
use crate::io as request_path;
use crate::options::{BlockdevError, NodeOptions, NodeRef, check_name};
use open::{Inherited, Opening};

/// Nodes by their names, and the throttle groups that options can name. Any thread.
///
/// It owns the nodes that [`open`](Self::open) has returned, until they are
/// [closed](Self::close). What was opened as the child of one lives as long as that needs it.
///
/// ```
/// use coblk_aio::AioContext;
/// use coblk_block::Blockdevs;
/// use coblk_block::options::NodeOptions;
///
/// let (ctx, blockdevs) = (AioContext::new()?, Blockdevs::new());
/// let options = NodeOptions::from_keyval("driver=null-co,node-name=disk,size=67108864")?;
/// let disk = blockdevs.open(&ctx, options)?;
/// assert_eq!(disk.length(), 64 << 20);
/// let raw = blockdevs.open(&ctx, NodeOptions::from_keyval("driver=raw,node-name=raw,file=disk")?)?;
/// drop((disk, raw));
/// assert_eq!(blockdevs.close(&ctx, "disk").unwrap_err().to_string(), "node 'disk' is in use");
/// blockdevs.close(&ctx, "raw")?;
/// blockdevs.close(&ctx, "disk")?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Default)]
pub struct Blockdevs {
    names: Mutex<Names>,
}

#[derive(Default)]
struct Names {
    nodes: BTreeMap<String, Entry>,
    groups: BTreeMap<String, ThrottleGroup>,
    /// The last number of a name that was made up.
    last: u64,
}

enum Entry {
    /// It is being opened or closed.
    Reserved,
    /// Opened by itself, as these options say.
    Owned(Arc<BlockNode>, Arc<NodeOptions>),
    /// Opened as a child, and there as long as it has users.
    Child(Weak<BlockNode>, Arc<NodeOptions>),
}

/// A node that was opened by itself, and how.
type Owned = (Arc<BlockNode>, Arc<NodeOptions>);

fn in_use(name: &str) -> BlockdevError {
    BlockdevError::InUse { what: "node", name: name.to_owned() }
}

impl Entry {
    fn node(&self) -> Option<Arc<BlockNode>> {
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

impl Names {
    /// Takes out a node that has no users, and leaves its place taken.
    fn take_unused(&mut self, name: &str) -> Result<Owned, BlockdevError> {
        match self.nodes.get_mut(name) {
            Some(Entry::Owned(node, _)) if graph::lock().has_users(node) => Err(in_use(name)),
            Some(entry @ Entry::Owned(..)) => match std::mem::replace(entry, Entry::Reserved) {
                Entry::Owned(node, options) => Ok((node, options)),
                _ => Err(BlockdevError::NoSuchNode(shorten(name))),
            },
            _ => Err(BlockdevError::NoSuchNode(shorten(name))),
        }
    }

    /// Puts a node back that was taken out.
    fn put_back(&mut self, name: &str, (node, options): Owned) {
        self.nodes.insert(name.to_owned(), Entry::Owned(node, options));
    }
}

impl Blockdevs {
    /// One without nodes.
    pub fn new() -> Blockdevs {
        Blockdevs::default()
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a node, and those that its options describe as its children. Polls `ctx` meanwhile.
    ///
    /// # Errors
    /// What cannot be done, in which node. Nothing stays open then.
    ///
    /// # Panics
    /// If called inside a coroutine; there, use [`co_open`](Self::co_open).
    pub fn open(
        &self,
        ctx: &AioContext,
        options: NodeOptions,
    ) -> Result<Arc<BlockNode>, BlockdevError> {
        ctx.run(|co| self.co_open(co, options))
    }

    /// [`open`](Self::open), from a coroutine. System calls that may block are made by workers.
    ///
    /// # Errors
    /// What cannot be done, in which node. Nothing stays open then.
    pub fn co_open(
        &self,
        co: &Co<'_>,
        options: NodeOptions,
    ) -> Result<Arc<BlockNode>, BlockdevError> {
        // Before a file is open or locked.
        self.check_height(&options)?;
        let node = self.co_open_node(co, &Arc::new(options), Inherited::default())?;
        if let Some(entry) = self.names().nodes.get_mut(node.name())
            && let Entry::Child(_, options) = entry
        {
            node.life.set_belongs_to_users(false);
            *entry = Entry::Owned(Arc::clone(&node), Arc::clone(options));
        }
        Ok(node)
    }

    /// Flushes what was written through a node, [closes](BlockNode::co_close) it, and forgets it; the
    /// node ends as soon as nothing holds it. A flush that fails is logged, and does not keep the node.
    /// Polls `ctx` meanwhile.
    ///
    /// # Errors
    /// If there is none of that name that was opened by itself; if the node has users, which are backends
    /// and nodes above; or if its driver cannot be closed. The node stays open then.
    ///
    /// # Panics
    /// If called inside a coroutine; there, use [`co_close`](Self::co_close).
    pub fn close(&self, ctx: &AioContext, name: &str) -> Result<(), BlockdevError> {
        ctx.run(|co| self.co_close(co, name))
    }

    /// [`close`](Self::close), from a coroutine.
    ///
    /// # Errors
    /// As of [`close`](Self::close).
    pub fn co_close(&self, co: &Co<'_>, name: &str) -> Result<(), BlockdevError> {
        // Its place is kept meanwhile: no command finds it, nor takes its name. Other changes go on
        // while it is flushed, as its disk may take long.
        let owned = self.names().take_unused(name)?;
        let reserved = Reserved { blockdevs: self, name };
        let own = owned.0.enter_own();
        let chain = co_flush_chain(co, Arc::clone(&owned.0));
        drop(own);
        // A command that had found it before may have begun to use it, or turn an edge to it. From here
        // on no other can.
        match owned.0.co_close(co) {
            Ok(()) => {
                // Outside the lock: its end may be the end of its children. On a worker: to close a
                // file may take as long as its disk likes.
                PoolShare::once(co, || drop((chain, owned)));
                drop(reserved);
                Ok(())
            }
            Err(error) => {
                std::mem::forget(reserved);
                self.names().put_back(name, owned);
                Err(match error {
                    GraphError::InUse(_) => in_use(name),
                    error => error.into(),
                })
            }
        }
    }

    /// The node called `name`.
    pub fn node(&self, name: &str) -> Option<Arc<BlockNode>> {
        self.names().nodes.get(name)?.node()
    }

    fn known_node(&self, name: &str) -> Result<Arc<BlockNode>, BlockdevError> {
        self.node(name).ok_or_else(|| BlockdevError::NoSuchNode(shorten(name)))
    }

    /// A node that something is about to stand on: it cannot be closed while the edge lives.
    fn pinned_node(&self, name: &str) -> Result<(Arc<BlockNode>, Child), BlockdevError> {
        // Under the lock that closing takes to look for users.
        let names = self.names();
        let node = names.nodes.get(name).and_then(Entry::node);
        let node = node.ok_or_else(|| BlockdevError::NoSuchNode(shorten(name)))?;
        let pin = Child::new("pin", ChildRole::empty(), Arc::clone(&node));
        Ok((node, pin))
    }

    fn known_group(&self, name: &str) -> Result<ThrottleGroup, BlockdevError> {
        self.throttle_group(name).ok_or_else(|| BlockdevError::NoSuchGroup(shorten(name)))
    }

    /// All nodes, by name.
    pub fn nodes(&self) -> Vec<Arc<BlockNode>> {
        self.names().nodes.values().filter_map(Entry::node).collect()
    }

    /// The names of nodes that are being opened, closed, or used by others, by name.
    pub fn busy_nodes(&self) -> Vec<String> {
        let names = self.names();
        let is_busy = |entry: &Entry| match entry {
            Entry::Reserved => true,
            Entry::Owned(node, _) => graph::lock().has_users(node),
            Entry::Child(..) => false,
        };
        let busy = names.nodes.iter().filter(|(_, entry)| is_busy(entry));
        busy.map(|(name, _)| name.clone()).collect()
    }

    /// Makes a group known by its name.
    ///
    /// # Errors
    /// If the name is taken.
    pub fn add_throttle_group(&self, group: &ThrottleGroup) -> Result<(), BlockdevError> {
        let mut names = self.names();
        if names.groups.contains_key(group.name()) {
            return Err(BlockdevError::DuplicateGroup(group.name().to_owned()));
        }
        names.groups.insert(group.name().to_owned(), group.clone());
        Ok(())
    }

    /// The group called `name`.
    pub fn throttle_group(&self, name: &str) -> Option<ThrottleGroup> {
        self.names().groups.get(name).cloned()
    }

    /// Forgets a group. Nodes that are in it stay so.
    ///
    /// # Errors
    /// If there is none, or a node is in it.
    pub fn remove_throttle_group(&self, name: &str) -> Result<(), BlockdevError> {
        let mut names = self.names();
        let group = names.groups.get(name);
        let group = group.ok_or_else(|| BlockdevError::NoSuchGroup(name.to_owned()))?;
        if group.has_members() {
            return Err(BlockdevError::InUse { what: "throttle group", name: name.to_owned() });
        }
        names.groups.remove(name);
        Ok(())
    }

    /// That what is to be opened does not stand too high. Names that lead nowhere are refused later.
    fn check_height(&self, options: &NodeOptions) -> Result<(), BlockdevError> {
        let root = options;
        let mut todo = vec![(options, 0)];
        while let Some((options, above)) = todo.pop() {
            for (_, _, child) in options.driver.children() {
                let below = match child {
                    NodeRef::Name(name) => {
                        self.node(name).map_or(0, |node| graph::lock().height(&node))
                    }
                    NodeRef::Options(options) => {
                        todo.push((options, above + 1));
                        0
                    }
                };
                if above + 1 + below > MAX_HEIGHT {
                    let node = root.node_name.as_deref().unwrap_or("(unnamed)");
                    return Err(GraphError::too_high(node).into());
                }
            }
        }
        Ok(())
    }

    /// Opens a node and enters it as a child.
    fn co_open_node(
        &self,
        co: &Co<'_>,
        options: &Arc<NodeOptions>,
        inherited: Inherited,
    ) -> Result<Arc<BlockNode>, BlockdevError> {
        let name = self.reserve(options.node_name.as_deref())?;
        let reserved = Reserved { blockdevs: self, name: &name };
        let own = Inherited::of(options, inherited);
        own.check(&name)?;
        let pins = RefCell::default();
        let opened = RefCell::default();
        let active = options.active.unwrap_or(true);
        let opening = Opening { blockdevs: self, co, name: &name, own, active, pins, opened };
        let node = opening.co_open(options).inspect_err(|_| opening.close_children())?;
        node.life.set_belongs_to_users(true);
        self.names()
            .nodes
            .insert(name.clone(), Entry::Child(Arc::downgrade(&node), Arc::clone(options)));
        std::mem::forget(reserved);
        Ok(node)
    }

    /// Takes a name, the one that is `wanted` or one that no option can have.
    fn reserve(&self, wanted: Option<&str>) -> Result<String, BlockdevError> {
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
        Ok(name)
    }
}

/// Flushes what was written through a node, and through those below it, of which some may go with
/// it. Returns all of them.
fn co_flush_chain(co: &Co<'_>, node: Arc<BlockNode>) -> Vec<Arc<BlockNode>> {
    let mut chain = vec![node];
    let mut next = 0;
    while let Some(node) = chain.get(next).cloned() {
        next += 1;
        if let Err(error) = request_path::co_flush_own(&node.path, co) {
            tracing::error!(node = node.name(), %error, "flush of a node that is closed failed");
        }
        for (_, child) in node.children() {
            if !chain.iter().any(|known| Arc::ptr_eq(known, &child)) {
                chain.push(child);
            }
        }
    }
    chain
}

/// A name whose node is being closed, or opened; given back at the end, unless that succeeds.
struct Reserved<'a> {
    blockdevs: &'a Blockdevs,
    name: &'a str,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.blockdevs.names().nodes.remove(self.name);
    }
}

#[cfg(test)]
mod tests;
