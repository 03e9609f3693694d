//! Children of a list, as a reopen by options changes them: what was written to those that leave, what is
//! rolled back, and what is refused.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use coblk_aio::{Co, IoVector, IoVectorMut};
use coblk_block::drivers::Raw;
use coblk_block::options::{DriverConfig, DriverOptions, NodeOptions, NodeRef};
use coblk_block::{
    BackendOptions, BlockBackend, BlockDriver, BlockLimits, BlockNode, BlockdevError, Blockdevs,
    ChildList, ChildRole, Driver, ListId, OpenError, Opening, ReadFlags, WriteFlags,
};
use serde::{Deserialize, Serialize};

use crate::util::bench::Bench;
use crate::util::disk::{Disk, OnDisk, Op, Verdict};

const LENGTH: u64 = 1 << 20;

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
struct CopiesOptions {
    children: Vec<NodeRef>,
    /// The children are its own storage.
    #[serde(default)]
    own: bool,
    /// So often it asks for each child.
    times: Option<usize>,
}

impl DriverOptions for CopiesOptions {
    fn visit_list(&mut self, visit: &mut dyn FnMut(&str, &mut Vec<NodeRef>)) {
        visit("children", &mut self.children);
    }
}

/// Writes to all children, and flushes the first alone. It has no list if no option names a child.
struct Copies(Option<ChildList>);

impl Driver for Copies {
    const NAMES: &'static [&'static str] = &["copies"];
    type Options = CopiesOptions;

    fn co_open(opening: &Opening<'_, '_>, options: &CopiesOptions) -> Result<Copies, OpenError> {
        let role = if options.own { ChildRole::METADATA } else { ChildRole::FILTERED };
        let all = vec![&options.children[..]; options.times.unwrap_or(1)];
        let children = all.concat();
        let list = || opening.co_list("children", role, &children);
        Ok(Copies((!children.is_empty()).then(list).transpose()?))
    }
}

impl BlockDriver for Copies {
    fn format_name(&self) -> &'static str {
        "copies"
    }
    fn length(&self) -> u64 {
        LENGTH
    }
    fn limits(&self) -> BlockLimits {
        let children = self.0.as_ref().map(ChildList::load);
        let all = children.iter().flat_map(|children| children.iter());
        let alignment = all.map(|child| child.limits().request_alignment).max().unwrap_or(1);
        BlockLimits { request_alignment: alignment, ..BlockLimits::default() }
    }
    fn child_list(&self) -> Option<ListId> {
        self.0.as_ref().map(ChildList::id)
    }
    fn co_preadv(
        &self,
        _: &Co<'_>,
        _: u64,
        target: &mut IoVectorMut<'_>,
        _: ReadFlags,
    ) -> io::Result<()> {
        target.fill_from(0, 0);
        Ok(())
    }
    fn co_pwritev(
        &self,
        co: &Co<'_>,
        offset: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        let Some(list) = &self.0 else { return Ok(()) };
        list.load().iter().try_for_each(|child| child.co_pwritev(co, offset, source, flags))
    }
    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        let Some(list) = &self.0 else { return Ok(()) };
        list.load().first().map_or(Ok(()), |child| child.co_flush(co))
    }
}

/// The disks a, b, c and d, as nodes of these names.
fn bench() -> (Bench, [Arc<Disk>; 4]) {
    let mut drivers = coblk_block::drivers();
    drivers.add::<Copies>();
    let bench = Bench { blockdevs: Arc::new(Blockdevs::new(drivers)), ..Bench::new() };
    let disks = ["a", "b", "c", "d"].map(|name| disk(&bench, name, 1));
    (bench, disks)
}

fn disk(bench: &Bench, name: &str, request_alignment: u32) -> Arc<Disk> {
    let limits = BlockLimits { request_alignment, ..BlockLimits::default() };
    let disk = Disk::new(LENGTH, limits);
    bench.blockdevs.adopt(BlockNode::new(name, OnDisk(Arc::clone(&disk)))).unwrap();
    disk
}

fn options(line: &str) -> NodeOptions {
    NodeOptions::from_keyval(line).unwrap()
}

fn reopen(bench: &Bench, lines: &[&str]) -> Result<(), String> {
    let reopened = bench.blockdevs.reopen(&bench.ctx, lines.iter().map(|it| options(it)).collect());
    reopened.map_err(|error| error.to_string())
}

fn children(node: &Arc<BlockNode>) -> Vec<String> {
    let children = node.children().into_iter();
    children.map(|(edge, child)| format!("{edge}={}", child.name())).collect()
}

fn node(bench: &Bench, name: &str) -> Arc<BlockNode> {
    bench.blockdevs.node(name).unwrap()
}

/// Whether a device that shares nothing can write to a node.
fn is_free(bench: &Bench, name: &str) -> bool {
    BackendOptions::new("other").open(&bench.ctx, node(bench, name)).is_ok()
}

/// A write in flight reaches the child before that leaves, and the child is flushed, also by a driver that
/// does not flush it.
#[test]
fn a_child_leaves_when_its_writes_are_over_and_durable() {
    let (bench, [a, b, ..]) = bench();
    let copies = bench.open("copies,node-name=m,children.0=a,children.1=b").unwrap();
    let backend = BlockBackend::new(&bench.ctx, "drive", Arc::clone(&copies));
    b.judge(|op| if matches!(op, Op::Write(..)) { Verdict::Hold } else { Verdict::Go });
    let (written, is_reopened) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
    let done = Rc::clone(&written);
    backend.aio_pwritev(&bench.ctx, 0, vec![7u8; 512], WriteFlags::empty(), move |_, result, _| {
        result.unwrap();
        done.set(true);
    });
    bench.ctx.run_until(|| b.held() == 1);
    let (blockdevs, done) = (Arc::clone(&bench.blockdevs), Rc::clone(&is_reopened));
    bench.ctx.spawn("reopen", move |co| {
        blockdevs.co_reopen(co, vec![options("copies,node-name=m,children.0=a")]).unwrap();
        done.set(true);
    });
    while bench.ctx.try_poll() {}
    assert_eq!(children(&copies), ["children.0=a", "children.1=b"]);
    assert!(!written.get() && !is_reopened.get());
    assert!(b.release());
    bench.ctx.run_until(|| is_reopened.get());
    assert!(written.get());
    assert_eq!(children(&copies), ["children.0=a"]);
    assert_eq!([a.durable()[511], b.durable()[511]], [7, 7]);
    assert_eq!(copies.graph_faults(), [""; 0]);
}

/// Of several lists that change at once all do, or none does: children, and what they are held by.
#[test]
fn several_lists_change_or_none_does() {
    let (bench, [a, b, c, d]) = bench();
    let one = bench.open("copies,node-name=one,children.0=a,children.1=b").unwrap();
    let two = bench.open("copies,node-name=two,children.0=c").unwrap();
    disk(&bench, "taken", 1);
    let drives = [&one, &two].map(|node| {
        let options = BackendOptions::new("drive");
        options.open(&bench.ctx, Arc::clone(node)).unwrap()
    });
    let other = BackendOptions::new("other").open(&bench.ctx, node(&bench, "taken")).unwrap();
    let both =
        ["copies,node-name=one,children.0=d", "copies,node-name=two,children.0=c,children.1=taken"];
    let refused = reopen(&bench, &both).unwrap_err();
    assert!(refused.contains("permission on node 'taken'"), "{refused}");
    assert_eq!(children(&one), ["children.0=a", "children.1=b"]);
    assert_eq!(children(&two), ["children.0=c"]);
    let free = |bench: &Bench| ["a", "b", "c", "d"].map(|name| is_free(bench, name));
    assert_eq!(free(&bench), [false, false, false, true]);
    assert_eq!((one.graph_faults(), two.graph_faults()), (vec![], vec![]));
    // As if nothing had been asked, to all children and to no other.
    for drive in &drives {
        let ones = IoVector::from(&[1u8; 512][..]);
        drive.pwritev(&bench.ctx, 0, &ones, WriteFlags::empty()).unwrap();
    }
    assert_eq!([&a, &b, &c, &d].map(|disk| disk.data()[0]), [1, 1, 1, 0]);
    drop(other);
    reopen(&bench, &both).unwrap();
    assert_eq!(children(&two), ["children.0=c", "children.1=taken"]);
    assert_eq!(
        (children(&one), free(&bench)),
        (vec!["children.0=d".to_owned()], [true, true, false, false])
    );
    assert_eq!((one.graph_faults(), two.graph_faults()), (vec![], vec![]));
}

#[test]
fn limits_follow_the_children_that_come_and_go() {
    let (bench, _) = bench();
    disk(&bench, "blocks", 4096);
    let copies = bench.open("copies,node-name=m,children.0=a").unwrap();
    let alignment = || copies.limits().request_alignment;
    assert_eq!(alignment(), 1);
    reopen(&bench, &["copies,node-name=m,children.0=a,children.1=blocks"]).unwrap();
    assert_eq!(alignment(), 4096);
    reopen(&bench, &["copies,node-name=m,children.0=a"]).unwrap();
    assert_eq!(alignment(), 1);
}

#[test]
fn a_filter_of_a_job_and_storage_of_the_driver_stay_in_the_list() {
    let (bench, _) = bench();
    let copies = bench.open("copies,node-name=m,children.0=a,children.1=b").unwrap();
    let own = bench.open("copies,node-name=own,own=on,children.0=c,children.1=d").unwrap();
    let filter = BlockNode::new("filter", Raw::new(node(&bench, "b")));
    let hidden = bench.blockdevs.adopt_hidden(Arc::clone(&filter), "job 'copy'").unwrap();
    bench.ctx.run(|co| node(&bench, "b").co_replace(co, &filter)).unwrap();
    let refused = reopen(&bench, &["copies,node-name=m,children.0=a"]);
    assert_eq!(refused, Err("node 'filter' is in use by job 'copy'".to_owned()));
    assert_eq!(children(&copies), ["children.0=a", "children.1=filter"]);
    let remove = || {
        let removed = |co: &Co<'_>| bench.blockdevs.co_remove_child(co, &copies, "children.1");
        bench.ctx.run(removed).map_err(|error| error.to_string())
    };
    assert_eq!(remove(), Err("node 'filter' is in use by job 'copy'".to_owned()));
    assert_eq!(children(&copies), ["children.0=a", "children.1=filter"]);
    let refused = reopen(&bench, &["copies,node-name=own,own=on,children.0=c"]);
    assert_eq!(refused, Err("node 'own': cannot change the option 'children.1'".to_owned()));
    assert_eq!(children(&own), ["children.0=c", "children.1=d"]);
    // Its options mean what it leads to.
    reopen(&bench, &["copies,node-name=m,children.0=a,children.1=b"]).unwrap();
    bench.ctx.run(|co| filter.co_replace(co, &node(&bench, "b"))).unwrap();
    bench.ctx.run(|co| hidden.co_end(co));
    reopen(&bench, &["copies,node-name=m,children.0=a"]).unwrap();
    assert_eq!(children(&copies), ["children.0=a"]);
    reopen(&bench, &["copies,node-name=m,children.0=a,children.1=b"]).unwrap();
    assert_eq!(remove(), Ok(()));
    assert_eq!(remove(), Err("node 'm' does not have child 'children.1'".to_owned()));
}

/// Whether the options have them or the driver repeats what they have.
#[test]
fn a_driver_that_asks_for_too_many_children_is_refused() {
    let (bench, _) = bench();
    let most = bench.open("copies,node-name=most,children.0=a,times=1024").unwrap();
    assert_eq!(most.children().len(), 1024);
    let more = bench.ctx.run(|co| most.co_add_child(co, &node(&bench, "b"))).unwrap_err();
    assert_eq!(more.to_string(), "node 'most' has 1024 children, and takes no more");
    drop(most);
    let error: BlockdevError =
        bench.open("copies,node-name=m,children.0=a,times=1025").err().unwrap();
    assert_eq!(error.to_string(), "node 'm': option 'children': more than 1024 children");
    assert!(bench.blockdevs.node("m").is_none());
}

/// A driver need not have the list that its options could have.
#[test]
fn a_driver_without_its_list_is_reopened_without_it() {
    let (bench, _) = bench();
    let with = |children: &[&str]| {
        let children = children.iter().map(|name| NodeRef::Name((*name).to_owned())).collect();
        let own = CopiesOptions { children, own: false, times: None };
        let mut options = NodeOptions::new(DriverConfig::new("copies", own));
        options.node_name = Some("m".to_owned());
        options
    };
    let copies = bench.blockdevs.open(&bench.ctx, with(&[])).unwrap();
    bench.blockdevs.reopen(&bench.ctx, vec![with(&[])]).unwrap();
    let refused = bench.blockdevs.reopen(&bench.ctx, vec![with(&["a"])]).unwrap_err();
    assert_eq!(refused.to_string(), "node 'm': cannot change the option 'children'");
    assert!(children(&copies).is_empty());
}
