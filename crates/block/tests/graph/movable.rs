//! Drivers whose children come and go: [`Overlay`], with an optional backing file, and [`Copies`], with a
//! list. A child that changes during a request fails the test.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use coblk_aio::{Co, IoVector, IoVectorMut};
use coblk_block::{
    BlockDriver, BlockNode, Child, ChildList, ChildRole, ChildSlot, EdgeId, EdgeInfo, ListId,
    NewChild, ReadFlags, WriteFlags,
};

/// Reads as its backing file, or as 99 where it has none or behind that one's end.
pub struct Overlay {
    file: Child,
    backing: ChildSlot,
    writes: Arc<AtomicU64>,
}

impl Overlay {
    pub fn node(
        name: &str,
        file: &Arc<BlockNode>,
        backing: Option<&Arc<BlockNode>>,
    ) -> Arc<BlockNode> {
        let file = Child::new("file", ChildRole::IMAGE, Arc::clone(file));
        let backing = ChildSlot::new("backing", ChildRole::COW, backing.cloned());
        BlockNode::new(name, Overlay { file, backing, writes: Arc::default() })
    }

    fn backing_id(&self) -> Option<String> {
        self.backing.get().map(|child| child.node().name().to_owned())
    }
}

impl BlockDriver for Overlay {
    fn format_name(&self) -> &'static str {
        "overlay"
    }
    fn length(&self) -> u64 {
        self.file.length()
    }
    fn children(&self) -> Vec<EdgeId> {
        vec![self.file.id(), self.backing.id()]
    }
    fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        let before = self.backing_id();
        co.yield_now();
        target.fill_from(0, 99);
        if let Some(backing) = self.backing.get() {
            let there = backing.length().saturating_sub(offset);
            let there = usize::try_from(there).unwrap_or(usize::MAX).min(target.len());
            backing.co_preadv(co, offset, &mut target.slice(0, there), flags)?;
        }
        co.yield_now();
        assert_eq!(before, self.backing_id(), "the child changed during a request");
        Ok(())
    }
    fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        self.file.co_pwritev(co, offset, source, flags)
    }
    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        self.file.co_flush(co)
    }
}

/// Writes to all of its children and reads the first.
pub struct Copies {
    children: ChildList,
    fewest: usize,
    /// What it was asked to agree to.
    asked: Arc<Mutex<Vec<String>>>,
}

/// How many children the driver of a node sees in its list.
pub fn listed(node: &Arc<BlockNode>) -> usize {
    let driver: &dyn std::any::Any = node.driver();
    driver.downcast_ref::<Copies>().map_or(0, |copies| copies.children.load().len())
}

impl Copies {
    /// It keeps so many children at least.
    pub fn node(name: &str, fewest: usize, nodes: &[&Arc<BlockNode>]) -> Arc<BlockNode> {
        Self::asked(name, fewest, nodes).0
    }

    pub fn asked(
        name: &str,
        fewest: usize,
        nodes: &[&Arc<BlockNode>],
    ) -> (Arc<BlockNode>, Arc<Mutex<Vec<String>>>) {
        let asked = Arc::new(Mutex::default());
        let nodes = nodes.iter().map(|node| Arc::clone(node)).collect();
        let children = ChildList::new("children", ChildRole::FILTERED, nodes);
        let copies = Copies { children, fewest, asked: Arc::clone(&asked) };
        (BlockNode::new(name, copies), asked)
    }

    fn labels(&self) -> Vec<(String, String)> {
        let children = self.children.load();
        let label = |child: &Arc<Child>| (child.info().to_string(), child.node().name().to_owned());
        children.iter().map(label).collect()
    }
}

impl BlockDriver for Copies {
    fn format_name(&self) -> &'static str {
        "copies"
    }
    fn length(&self) -> u64 {
        self.children.load().first().map_or(0, |child| child.length())
    }
    fn child_list(&self) -> Option<ListId> {
        Some(self.children.id())
    }
    fn check_child(&self, edge: &EdgeInfo, new: Option<NewChild<'_>>) -> Result<(), String> {
        let new = new.map_or("none", |new| new.node);
        self.asked.lock().unwrap().push(format!("{edge}: {new}"));
        let left = self.children.load().iter().filter(|it| it.info() != edge).count();
        match new {
            "none" if left < self.fewest => {
                Err(format!("fewer than {} would be left", self.fewest))
            }
            _ => Ok(()),
        }
    }
    fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        let before = self.labels();
        co.yield_now();
        let children = self.children.load();
        match children.first() {
            Some(child) => child.co_preadv(co, offset, target, flags)?,
            None => target.fill_from(0, 98),
        }
        co.yield_now();
        assert_eq!(before, self.labels(), "the children changed during a request");
        Ok(())
    }
    fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        let children = self.children.load();
        children.iter().try_for_each(|child| child.co_pwritev(co, offset, source, flags))
    }
    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        let children = self.children.load();
        children.iter().try_for_each(|child| child.co_flush(co))
    }
}

/// The children of a node, as `backing=disk`.
pub fn children(node: &Arc<BlockNode>) -> Vec<String> {
    let children = node.children().into_iter();
    children.map(|(edge, child)| format!("{edge}={}", child.name())).collect()
}
