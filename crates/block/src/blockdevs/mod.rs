//! [`Blockdevs`]: nodes by their names, opened from options and closed again, as `blockdev-add` and
//! `blockdev-del` do.

mod active;
mod backing_name;
pub(crate) mod hidden;
mod list_change;
mod listing;
mod read_only;
mod reopen;
mod resize;
pub(crate) mod snapshot;
pub(crate) mod weak;

use std::sync::{Arc, MutexGuard};

use coblk_aio::{AioContext, Co, PoolShare};
use coblk_qapi::shorten;

use crate::graph::node::BlockNode;
use crate::graph::{self, GraphError, MAX_HEIGHT};
use crate::io as request_path;
use crate::options::{NodeOptions, NodeRef};
use crate::registry::{
    BlockdevError, CreateError, Creating, Creation, DriverEvent, Drivers, Entry, Inherited,
    NamedObject, Names, Registry, Reserved,
};

/// Nodes by their names, the drivers that can open them, and the objects that options can name. Any
/// thread.
///
/// It owns the nodes that [`open`](Self::open) has returned, until they are [closed](Self::close).
/// A child that was opened for a node lives as long as that node needs it.
///
/// ```
/// use coblk_aio::AioContext;
/// use coblk_block::Blockdevs;
/// use coblk_block::options::NodeOptions;
///
/// let (ctx, blockdevs) = (AioContext::new()?, Blockdevs::new(coblk_block::drivers()));
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
pub struct Blockdevs {
    registry: Registry,
}

/// A node that was opened by itself, and how.
type Owned = (Arc<BlockNode>, Option<Arc<NodeOptions>>);

fn in_use(name: &str) -> BlockdevError {
    BlockdevError::InUse { what: "node", name: name.to_owned() }
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
            Some(Entry::Hidden(_, owner)) => Err(BlockdevError::hidden(name, owner)),
            _ => Err(BlockdevError::NoSuchNode(shorten(name))),
        }
    }
}

impl Blockdevs {
    /// Makes a set without nodes, whose nodes these drivers open. [`drivers`](crate::drivers()) are
    /// those of this crate.
    pub fn new(drivers: Drivers) -> Blockdevs {
        Blockdevs { registry: Registry::new(drivers) }
    }

    /// The drivers.
    pub fn drivers(&self) -> &Drivers {
        &self.registry.drivers
    }

    /// Has `listener` called with each [`DriverEvent`] that a driver tells of a node of this set, in place
    /// of the listener before. It is called by any thread, also while requests wait for that thread: it
    /// must not block. Without a listener, events are lost.
    pub fn set_event_listener(&self, listener: impl Fn(DriverEvent) + Send + Sync + 'static) {
        self.registry.events.set(listener);
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.registry.names()
    }

    /// Opens a node, and the children that its options describe. Polls `ctx` meanwhile.
    ///
    /// # Errors
    /// Which node cannot be opened, and why. Nothing stays open then.
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
    /// Which node cannot be opened, and why. Nothing stays open then.
    pub fn co_open(
        &self,
        co: &Co<'_>,
        options: NodeOptions,
    ) -> Result<Arc<BlockNode>, BlockdevError> {
        // Before a file is open or locked.
        let options = Arc::new(self.drivers().resolve(options)?);
        self.check_height(&options)?;
        Ok(self.registry.co_open_node(co, &options, (Inherited::default(), None), 0)?)
    }

    /// Makes an image, as `blockdev-create` does. Nodes that its options name are nodes of this set; those
    /// that they describe are open meanwhile. Ends with ECANCELED when the coroutine is not
    /// [wanted](Co::is_wanted) any more.
    ///
    /// # Errors
    /// If the driver fails, or a node cannot be used. What is left of the image is the driver's to say.
    pub fn co_create(&self, co: &Co<'_>, creation: Creation) -> Result<(), CreateError> {
        creation.co_run(&Creating::new(&self.registry, co))
    }

    /// Names a node that was made in code: it is listed, is a child where options name it, and is
    /// [closed](Self::close) by its name. It cannot be reopened, and is not among
    /// [`options`](Self::options).
    ///
    /// # Errors
    /// If its name is not one that options can have, or is taken, or the node is closed.
    pub fn adopt(&self, node: Arc<BlockNode>) -> Result<(), BlockdevError> {
        let reserved = self.registry.reserve(Some(node.name()))?;
        if node.life.is_closed() {
            return Err(GraphError::Closed(node.name().to_owned()).into());
        }
        reserved.enter(Entry::Owned(node, None));
        Ok(())
    }

    /// Flushes what was written through a node, [closes](BlockNode::co_close) it, and forgets it; the
    /// node ends as soon as nothing holds it. A flush that fails is logged, and does not keep the node.
    /// Polls `ctx` meanwhile.
    ///
    /// # Errors
    /// If no node of that name was opened by itself; if the node has users, which are backends and
    /// parents; or if its driver cannot be closed. The node stays open then.
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
        let reserved = Reserved { registry: &self.registry, name: name.to_owned() };
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
                reserved.enter(Entry::Owned(owned.0, owned.1));
                Err(match error {
                    GraphError::InUse(_) => in_use(name),
                    error => error.into(),
                })
            }
        }
    }

    /// The node called `name`, unless it [belongs to a job](Self::adopt_hidden).
    pub fn node(&self, name: &str) -> Option<Arc<BlockNode>> {
        self.known_node(name).ok()
    }

    fn known_node(&self, name: &str) -> Result<Arc<BlockNode>, BlockdevError> {
        self.names().find(name)
    }

    /// All nodes, by name, with those that [belong to jobs](Self::adopt_hidden).
    pub fn nodes(&self) -> Vec<Arc<BlockNode>> {
        self.names().nodes.values().filter_map(Entry::node).collect()
    }

    /// The names of nodes that are being opened or closed, or have users, sorted.
    pub fn busy_nodes(&self) -> Vec<String> {
        let names = self.names();
        let is_busy = |entry: &Entry| match entry {
            Entry::Reserved => true,
            Entry::Owned(node, _) | Entry::Hidden(node, _) => graph::lock().has_users(node),
            Entry::Child(..) => false,
        };
        let busy = names.nodes.iter().filter(|(_, entry)| is_busy(entry));
        busy.map(|(name, _)| name.clone()).collect()
    }

    /// Makes an object known, for options to name.
    ///
    /// # Errors
    /// If its id is taken.
    pub fn add_object<T: NamedObject>(
        &self,
        id: &str,
        object: Arc<T>,
    ) -> Result<(), BlockdevError> {
        self.registry.add_object(id, object)
    }

    /// The object of this type with this id.
    pub fn object<T: NamedObject>(&self, id: &str) -> Option<Arc<T>> {
        self.registry.object(id)
    }

    /// Forgets an object. Nodes that use it keep it.
    ///
    /// # Errors
    /// If there is no such object, or it is in use.
    pub fn remove_object<T: NamedObject>(&self, id: &str) -> Result<(), BlockdevError> {
        self.registry.remove_object::<T>(id)
    }

    /// Checks that the chain would not be too high. Names that lead nowhere are refused later.
    fn check_height(&self, root: &Arc<NodeOptions>) -> Result<(), BlockdevError> {
        let mut todo = vec![(Arc::clone(root), 0)];
        while let Some((options, above)) = todo.pop() {
            for (_, child) in options.driver.children() {
                let below = match child {
                    NodeRef::Name(name) => {
                        self.node(&name).map_or(0, |node| graph::lock().height(&node))
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
}

/// Flushes what was written through a node and its descendants, of which some may end with it.
/// Returns all of them.
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

#[cfg(test)]
mod tests;
