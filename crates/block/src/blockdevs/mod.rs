//! [`Blockdevs`]: nodes by their names, opened from options and closed again, as `blockdev-add` and
//! `blockdev-del` do.

mod listing;
mod open;
mod reopen;
mod resize;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use coblk_aio::{AioContext, Co};
use coblk_qapi::shorten;

use crate::filters::throttle::ThrottleGroup;
use crate::graph;
use crate::node::BlockNode;
use crate::options::{BlockdevError, NodeOptions, check_name};
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
    /// Opened as a child, and there as long as somebody needs it.
    Child(Weak<BlockNode>, Arc<NodeOptions>),
}

impl Entry {
    fn node(&self) -> Option<Arc<BlockNode>> {
        match self {
            Entry::Reserved => None,
            Entry::Owned(node, _) => Some(Arc::clone(node)),
            Entry::Child(node, _) => node.upgrade(),
        }
    }

    fn is_free(&self) -> bool {
        matches!(self, Entry::Child(node, _) if node.strong_count() == 0)
    }
}

impl Names {
    /// Takes out a node that nobody uses, and leaves its place taken.
    fn take_unused(&mut self, name: &str) -> Result<Arc<BlockNode>, BlockdevError> {
        let entry = self.nodes.get_mut(name);
        match entry {
            Some(Entry::Owned(node, _)) if graph::lock().has_users(node) => {
                Err(BlockdevError::InUse { what: "node", name: name.to_owned() })
            }
            Some(entry @ Entry::Owned(..)) => match std::mem::replace(entry, Entry::Reserved) {
                Entry::Owned(node, _) => Ok(node),
                _ => Err(BlockdevError::NoSuchNode(shorten(name))),
            },
            _ => Err(BlockdevError::NoSuchNode(shorten(name))),
        }
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
        let node = self.co_open_node(co, options, Inherited::default())?;
        if let Some(entry) = self.names().nodes.get_mut(node.name())
            && let Entry::Child(_, options) = entry
        {
            *entry = Entry::Owned(Arc::clone(&node), Arc::clone(options));
        }
        Ok(node)
    }

    /// Flushes a node and forgets it, which ends it as soon as nobody holds it. That the flush fails is
    /// logged, and keeps nobody from getting rid of the node. Polls `ctx` meanwhile.
    ///
    /// # Errors
    /// If there is none of that name that was opened by itself, or if somebody uses it: a backend, or
    /// a node that stands on it.
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
        // Its place is kept meanwhile, so that nobody finds it, nor takes its name.
        let node = self.names().take_unused(name)?;
        let reserved = Reserved { blockdevs: self, name };
        if let Err(error) = node.co_flush(co) {
            tracing::error!(node = name, %error, "flush of a node that is closed failed");
        }
        // Outside the lock: its end may be the end of its children, and take time.
        drop(node);
        drop(reserved);
        Ok(())
    }

    /// The node called `name`.
    pub fn node(&self, name: &str) -> Option<Arc<BlockNode>> {
        self.names().nodes.get(name)?.node()
    }

    fn known_node(&self, name: &str) -> Result<Arc<BlockNode>, BlockdevError> {
        self.node(name).ok_or_else(|| BlockdevError::NoSuchNode(shorten(name)))
    }

    fn known_group(&self, name: &str) -> Result<ThrottleGroup, BlockdevError> {
        self.throttle_group(name).ok_or_else(|| BlockdevError::NoSuchGroup(shorten(name)))
    }

    /// All nodes, by name.
    pub fn nodes(&self) -> Vec<Arc<BlockNode>> {
        self.names().nodes.values().filter_map(Entry::node).collect()
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

    /// Opens a node and enters it as a child.
    fn co_open_node(
        &self,
        co: &Co<'_>,
        options: NodeOptions,
        inherited: Inherited,
    ) -> Result<Arc<BlockNode>, BlockdevError> {
        let name = self.reserve(options.node_name.as_deref())?;
        let reserved = Reserved { blockdevs: self, name: &name };
        let own = Inherited::of(&options, inherited);
        own.check(&name)?;
        let opening = Opening { blockdevs: self, co, name: &name, own };
        let options = Arc::new(options);
        let node = opening.co_open(&options)?;
        check_height(&node)?;
        self.names().nodes.insert(name.clone(), Entry::Child(Arc::downgrade(&node), options));
        std::mem::forget(reserved);
        Ok(node)
    }

    /// Takes a name, the one that is `wanted` or one that nobody can want.
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

/// Nodes below one, one upon the other.
const MOST_BELOW: usize = 64;

/// Requests go down a stack of nodes by calls, on a coroutine's stack, which has an end.
fn check_height(node: &Arc<BlockNode>) -> Result<(), BlockdevError> {
    let mut level = vec![Arc::clone(node)];
    for _ in 0..=MOST_BELOW {
        level = level.iter().flat_map(|node| node.children()).map(|(_, child)| child).collect();
        // A node that others share is looked at once.
        level.sort_by_key(|node| Arc::as_ptr(node).addr());
        level.dedup_by(|one, other| Arc::ptr_eq(one, other));
        if level.is_empty() {
            return Ok(());
        }
    }
    Err(BlockdevError::TooHigh { node: node.name().to_owned(), most: MOST_BELOW })
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
