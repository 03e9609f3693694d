//! A driver that is not of this crate, and does while it is opened what its options say.

use std::io;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use coblk_aio::{Co, IoVector, IoVectorMut};
use coblk_block::drivers::Null;
use coblk_block::options::{DriverConfig, DriverOptions, NodeOptions, NodeRef, NodeRefOrNull};
use coblk_block::{
    BlockDriver, BlockLimits, BlockNode, Blockdevs, Child, ChildList, ChildRole, ChildSlot, Driver,
    EdgeId, EdgeInfo, ListId, NamedObject, NewChild, NodeMode, OpenError, Opening, ReadFlags,
    Reopen, Reopening, WriteFlags,
};
use serde::{Deserialize, Serialize};

use super::bench::Bench;

/// How often drivers have opened a node, and closed one.
#[derive(Default)]
pub struct Counter {
    pub opened: AtomicUsize,
    pub closed: AtomicUsize,
    /// What each was told.
    pub told: Mutex<Vec<String>>,
}

impl Counter {
    #[track_caller]
    pub fn expect(&self, opened: usize, closed: usize) {
        let counted = [&self.opened, &self.closed].map(|it| it.load(Ordering::SeqCst));
        assert_eq!(counted, [opened, closed]);
    }
}

impl NamedObject for Counter {
    const KIND: &'static str = "counter";

    fn is_in_use(&self) -> bool {
        false
    }
}

/// What a driver of these tests does while it is opened, in the order of its options.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Script {
    file: Option<NodeRef>,
    /// A node that is named by what was read, and not by options.
    header: Option<String>,
    /// What it does with a child that it has opened.
    #[serde(default)]
    child: Fate,
    #[serde(default)]
    lie: Lie,
    #[serde(default)]
    fails: bool,
    /// Whether `backing` is a slot, which may be empty.
    #[serde(default)]
    slot: bool,
    backing: Option<NodeRefOrNull>,
    /// Which it asks for after a reopen.
    alignment: Option<u32>,
    /// A counter, and whether it is of another kind.
    counter: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    #[default]
    Kept,
    Forgotten,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lie {
    #[default]
    None,
    Name,
    Limits,
    /// A child that was made by hand.
    Child,
    /// The same name for two children.
    Twice,
    /// It does not list the child that it keeps.
    Unlisted,
    /// A list of children that was made by hand.
    List,
    /// It does not list the list that it keeps.
    UnlistedList,
    Length,
}

impl DriverOptions for Script {
    fn visit_children(&mut self, visit: &mut dyn FnMut(&str, &mut NodeRef)) {
        if let Some(file) = &mut self.file {
            visit("file", file);
        }
    }

    fn visit_slots(&mut self, visit: &mut dyn FnMut(&str, &mut Option<NodeRefOrNull>)) {
        visit("backing", &mut self.backing);
    }
}

impl Script {
    #[inline(never)]
    fn count(&self, opening: &Opening<'_, '_>) -> Result<(), OpenError> {
        if let Some(counter) = &self.counter {
            let counter = opening.object::<Counter>(counter)?;
            counter.opened.fetch_add(1, Ordering::SeqCst);
            let NodeMode { read_only, cache, .. } = opening.mode();
            let (name, driver, depth) =
                (opening.node_name(), opening.driver_name(), opening.depth());
            let told = format!("{name}: {driver} at {depth}, {read_only}, {}", cache.direct);
            counter.told.lock().unwrap().push(told);
            let home = opening.home();
            home.schedule(move |_| counter.told.lock().unwrap().push("at home".to_owned()));
        }
        Ok(())
    }

    #[inline(never)]
    fn finish(
        &self,
        opening: &Opening<'_, '_>,
        mut children: Vec<Child>,
    ) -> Result<Scripted, OpenError> {
        match self.lie {
            Lie::Child => {
                let node = BlockNode::new("unknown", Null::new(1 << 20));
                children.push(Child::new("other", ChildRole::FILTER, node));
            }
            Lie::Twice => {
                let again = self.read_header("null-co")?;
                children.push(opening.co_child("file", ChildRole::FILTER, &again)?);
            }
            _ => {}
        }
        if self.fails {
            return Err(OpenError::option("fails", "it does"));
        }
        if self.child == Fate::Forgotten {
            children.clear();
        }
        let backing = self.backing.as_ref().and_then(NodeRefOrNull::node);
        if let (Some(backing), false) = (backing, self.slot) {
            children.push(opening.co_child("backing", ChildRole::DATA, backing)?);
        }
        let slot = || opening.co_slot("backing", ChildRole::COW, backing);
        let slot = self.slot.then(slot).transpose()?;
        let counter = self.counter.as_deref().map(|id| opening.object(id)).transpose()?;
        let list = match self.lie {
            Lie::List => Some(ChildList::new("list", ChildRole::DATA, vec![])),
            Lie::UnlistedList => Some(opening.co_list("list", ChildRole::DATA, &[])?),
            _ => None,
        };
        Ok(Scripted { children, list, slot, lie: self.lie, alignment: 1.into(), counter })
    }

    /// What it names: without a driver, one of this kind again.
    #[inline(never)]
    fn read_header(&self, header: &str) -> Result<NodeRef, OpenError> {
        let node = match header {
            "" => Ok(NodeOptions::new(DriverConfig::new("scripted", self.clone()))),
            line => NodeOptions::from_keyval(line),
        };
        node.map(NodeRef::from).map_err(OpenError::of_driver)
    }
}

pub struct Scripted {
    children: Vec<Child>,
    slot: Option<ChildSlot>,
    list: Option<ChildList>,
    lie: Lie,
    alignment: AtomicU32,
    counter: Option<Arc<Counter>>,
}

impl Driver for Scripted {
    const NAMES: &'static [&'static str] = &["scripted", "other-name"];
    const CHANGEABLE: &'static [&'static str] = &["child", "alignment"];
    type Options = Script;

    fn co_open(opening: &Opening<'_, '_>, script: &Script) -> Result<Scripted, OpenError> {
        // Chains nest: what a level does not need while others are opened is in functions of its own.
        script.count(opening)?;
        let mut children = Vec::new();
        if let Some(file) = &script.file {
            children.push(opening.co_child("file", ChildRole::FILTER, file)?);
        }
        if let Some(header) = &script.header {
            let node = script.read_header(header)?;
            children.push(opening.co_child("header", ChildRole::DATA, &node)?);
        }
        script.finish(opening, children)
    }

    fn co_prepare_reopen<'a>(
        &'a self,
        _: &Reopening<'_, '_>,
        script: &Script,
    ) -> Result<Box<dyn Reopen + 'a>, OpenError> {
        let mut other = script.alignment.unwrap_or(1);
        Ok(Box::new(move || other = self.alignment.swap(other, Ordering::SeqCst)))
    }
}

impl BlockDriver for Scripted {
    fn format_name(&self) -> &'static str {
        if self.lie == Lie::Name { "raw" } else { "scripted" }
    }

    fn length(&self) -> u64 {
        if self.lie == Lie::Length { u64::MAX } else { 1 << 20 }
    }

    fn limits(&self) -> BlockLimits {
        let request_alignment = match self.lie {
            Lie::Limits => 3,
            _ => self.alignment.load(Ordering::SeqCst),
        };
        let below = self.children.first().map_or(1, |child| child.limits().request_alignment);
        BlockLimits { request_alignment, pdiscard_alignment: below, ..BlockLimits::default() }
    }

    fn check_child(&self, _: &EdgeInfo, new: Option<NewChild<'_>>) -> Result<(), String> {
        match new {
            Some(new) if new.node == "unwanted" => Err("it does not want that".to_owned()),
            _ => Ok(()),
        }
    }

    fn co_preadv(
        &self,
        _: &Co<'_>,
        _: u64,
        target: &mut IoVectorMut<'_>,
        _: ReadFlags,
    ) -> io::Result<()> {
        target.fill_from(0, 5);
        Ok(())
    }

    fn co_pwritev(&self, _: &Co<'_>, _: u64, _: &IoVector<'_>, _: WriteFlags) -> io::Result<()> {
        Ok(())
    }

    fn co_flush(&self, _: &Co<'_>) -> io::Result<()> {
        Ok(())
    }

    fn co_close(&self, _: &Co<'_>) -> io::Result<()> {
        if let Some(counter) = &self.counter {
            counter.closed.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }

    fn child_list(&self) -> Option<ListId> {
        self.list.as_ref().filter(|_| self.lie != Lie::UnlistedList).map(ChildList::id)
    }

    fn children(&self) -> Vec<EdgeId> {
        if self.lie == Lie::Unlisted {
            return Vec::new();
        }
        self.children.iter().map(Child::id).chain(self.slot.iter().map(ChildSlot::id)).collect()
    }
}

/// With that driver beside those of the crate.
pub fn bench() -> Bench {
    let mut drivers = coblk_block::drivers();
    drivers.add::<Scripted>();
    Bench { blockdevs: Arc::new(Blockdevs::new(drivers)), ..Bench::new() }
}

pub fn counter(bench: &Bench) -> Arc<Counter> {
    let counter = Arc::<Counter>::default();
    bench.blockdevs.add_object("c", Arc::clone(&counter)).unwrap();
    counter
}
