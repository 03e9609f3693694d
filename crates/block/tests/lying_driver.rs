//! A driver that says what is not so, or something else each time: its requests get errors, or answers
//! within bounds, and the graph stays whole.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use coblk_aio::{AioContext, Co, IoVector, IoVectorMut};
use coblk_block::drivers::{Null, Raw};
use coblk_block::{
    BackendOptions, BlockBackend, BlockDriver, BlockLimits, BlockNode, Child, ChildList, ChildRole,
    EdgeId, Extent, GraphError, ListId, MAX_LENGTH, ReadFlags, Truncate, WriteFlags, ZeroFlags,
};

use crate::util::errno;

const MIB: u64 = 1 << 20;
const NONE: WriteFlags = WriteFlags::empty();

/// What the driver says, one after the other, and from the beginning again.
struct Says<T> {
    all: Vec<T>,
    asked: AtomicUsize,
}

impl<T: Clone> Says<T> {
    fn new(all: impl Into<Vec<T>>) -> Says<T> {
        Says { all: all.into(), asked: AtomicUsize::new(0) }
    }

    fn next(&self) -> T {
        self.all[self.asked.fetch_add(1, Ordering::Relaxed) % self.all.len()].clone()
    }
}

/// A driver that reads and writes nothing, and says that it has.
struct Liar {
    length: Says<u64>,
    limits: Says<BlockLimits>,
    extent: Says<Extent>,
    /// Those that it has, and those of them that it lists.
    edges: Vec<Arc<Child>>,
    listed: Says<Vec<usize>>,
    /// An edge that comes when there is a node.
    late: Arc<OnceLock<Child>>,
}

impl Liar {
    fn new() -> Liar {
        Liar {
            length: Says::new([MIB]),
            limits: Says::new([BlockLimits::default()]),
            extent: Says::new([Extent::data(1)]),
            edges: Vec::new(),
            listed: Says::new([vec![]]),
            late: Arc::default(),
        }
    }

    fn lists(edges: &[&Arc<Child>], listed: &[&[usize]]) -> Liar {
        let edges = edges.iter().map(|edge| Arc::clone(edge)).collect();
        let listed: Vec<_> = listed.iter().map(|it| it.to_vec()).collect();
        Liar { edges, listed: Says::new(listed), ..Liar::new() }
    }

    fn with_limits(limits: BlockLimits) -> Liar {
        Liar { limits: Says::new([limits]), ..Liar::new() }
    }
}

impl BlockDriver for Liar {
    fn format_name(&self) -> &'static str {
        "liar"
    }
    fn length(&self) -> u64 {
        self.length.next()
    }
    fn limits(&self) -> BlockLimits {
        self.limits.next()
    }
    fn filtered(&self) -> Option<EdgeId> {
        self.late.get().map(Child::id)
    }
    fn children(&self) -> Vec<EdgeId> {
        let listed = self.listed.next().into_iter().map(|edge| self.edges[edge].id());
        listed.chain(self.late.get().map(Child::id)).collect()
    }
    fn co_preadv(
        &self,
        _: &Co<'_>,
        _: u64,
        _: &mut IoVectorMut<'_>,
        _: ReadFlags,
    ) -> io::Result<()> {
        Ok(())
    }
    fn co_pwritev(&self, _: &Co<'_>, _: u64, _: &IoVector<'_>, _: WriteFlags) -> io::Result<()> {
        Ok(())
    }
    fn co_flush(&self, _: &Co<'_>) -> io::Result<()> {
        Ok(())
    }
    fn co_pwrite_zeroes(&self, _: &Co<'_>, _: u64, _: u64, _: ZeroFlags) -> io::Result<()> {
        Ok(())
    }
    fn co_pdiscard(&self, _: &Co<'_>, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn co_block_status(&self, _: &Co<'_>, _: u64, _: u64) -> io::Result<Extent> {
        Ok(self.extent.next())
    }
    fn co_truncate(&self, _: &Co<'_>, _: u64, _: Truncate) -> io::Result<()> {
        Ok(())
    }
    fn co_refresh_length(&self, _: &Co<'_>) -> io::Result<u64> {
        Ok(self.length.next())
    }
}

fn null(name: &str) -> Arc<BlockNode> {
    BlockNode::new(name, Null::new(MIB))
}

fn edge(below: &Arc<BlockNode>) -> Arc<Child> {
    Arc::new(Child::new("file", ChildRole::FILTER, Arc::clone(below)))
}

fn names(node: &BlockNode) -> Vec<String> {
    node.children().iter().map(|(_, child)| child.name().to_owned()).collect()
}

/// Every request, at places of all kinds. Most of them fail, each with an errno.
fn ask_everything(ctx: &AioContext, backend: &BlockBackend) {
    let node = backend.node().unwrap();
    let has_errno = |result: io::Result<()>| {
        assert!(result.as_ref().err().is_none_or(|it| it.raw_os_error().is_some()), "{result:?}");
    };
    for at in [0, 1, 511, 4096, MIB - 1, MIB, MAX_LENGTH - 512, MAX_LENGTH, u64::MAX - 511] {
        for bytes in [0, 1, 512, 5000] {
            let mut data = vec![7; bytes];
            has_errno(backend.preadv(ctx, at, &mut IoVectorMut::from(&mut data[..])));
            for flags in [NONE, WriteFlags::FUA] {
                has_errno(backend.pwritev(ctx, at, &IoVector::from(&data[..]), flags));
            }
            let bytes = bytes as u64;
            has_errno(backend.pwrite_zeroes(ctx, at, bytes, ZeroFlags::MAY_UNMAP));
            has_errno(backend.pdiscard(ctx, at, bytes));
            if let Ok(extent) = backend.block_status(ctx, at, bytes) {
                assert!((bytes.min(1)..=bytes).contains(&extent.bytes), "{at} {bytes}: {extent:?}");
            }
        }
        has_errno(backend.truncate(ctx, at));
        let refreshed = ctx.run(|co| node.co_refresh_length(co));
        assert!(refreshed.as_ref().map_or(true, |length| *length <= MAX_LENGTH), "{refreshed:?}");
        has_errno(backend.flush(ctx));
        assert!(node.length() <= MAX_LENGTH);
    }
}

#[test]
fn a_length_that_is_another_with_each_look_costs_requests_and_nothing_else() {
    let ctx = AioContext::for_test().unwrap();
    let ends = [MIB, 0, u64::MAX, 513, MAX_LENGTH + 1, MAX_LENGTH, 1, u64::MAX - 1, 4096, MIB];
    for request_alignment in [1, 512, 4096] {
        // Each request meets each of them at each of its looks, as these are fewer or more.
        for first in 0..ends.len() {
            let limits = BlockLimits { request_alignment, ..BlockLimits::default() };
            let mut length = vec![MIB];
            length.extend(ends.iter().cycle().skip(first).take(ends.len() - 1 + first % 2));
            let liar = Liar { length: Says::new(length), ..Liar::with_limits(limits) };
            let node = BlockNode::new("liar", liar);
            let raw = BlockNode::new(
                "raw",
                Raw::part(Arc::clone(&node), 0, Some(4096))
                    .unwrap_or_else(|_| Raw::new(Arc::clone(&node))),
            );
            for node in [node, raw] {
                ask_everything(&ctx, &BlockBackend::new(&ctx, "drive", node));
            }
        }
    }
}

#[test]
fn a_length_that_no_request_could_reach_is_not_told() {
    let ctx = AioContext::for_test().unwrap();
    for beyond in [MAX_LENGTH + 1, 1 << 63, u64::MAX] {
        let liar = |length: &[u64]| Liar { length: Says::new(length), ..Liar::new() };
        let refused = BlockNode::try_new("liar", liar(&[beyond])).err().expect("refused");
        assert!(matches!(refused, GraphError::TooLong { .. }), "{refused}");
        let node = BlockNode::new("liar", liar(&[MIB, beyond, beyond]));
        // Once: what it said may be remembered.
        assert_eq!(node.length(), MAX_LENGTH);
        assert_eq!(errno(ctx.run(|co| node.co_refresh_length(co))), libc::EFBIG);
    }
}

#[test]
fn limits_that_contradict_themselves_are_refused_and_name_the_node() {
    let default = BlockLimits::default();
    for limits in [
        BlockLimits { request_alignment: 0, ..default },
        BlockLimits { request_alignment: 513, ..default },
        BlockLimits { request_alignment: 4096, max_transfer: 4095, ..default },
        BlockLimits { memory_alignment: 0, ..default },
        BlockLimits { memory_alignment: 4095, ..default },
        BlockLimits { max_transfer: 0, ..default },
        BlockLimits { max_iov: 0, ..default },
        BlockLimits { pwrite_zeroes_alignment: 3000, ..default },
        BlockLimits { pdiscard_alignment: u32::MAX, ..default },
        BlockLimits { max_pwrite_zeroes: 0, ..default },
        BlockLimits { pdiscard_alignment: 8192, max_pdiscard: 4096, ..default },
    ] {
        let refused = BlockNode::try_new("liar", Liar::with_limits(limits)).err();
        let refused = refused.unwrap_or_else(|| panic!("{limits:?}")).to_string();
        let expected = "node 'liar': its driver has impossible limits: BlockLimits {";
        assert!(refused.starts_with(expected), "{refused}");
    }
}

#[test]
fn limits_that_change_are_those_that_the_node_was_made_with() {
    let ctx = AioContext::for_test().unwrap();
    let good = BlockLimits { request_alignment: 512, ..BlockLimits::default() };
    let bad = BlockLimits { request_alignment: 7, max_transfer: 0, max_iov: 0, ..good };
    let liar = Liar { limits: Says::new([good, bad]), ..Liar::new() };
    let node = BlockNode::new("liar", liar);
    for _ in 0..3 {
        assert_eq!(node.limits(), good);
        ask_everything(&ctx, &BlockBackend::new(&ctx, "drive", Arc::clone(&node)));
    }
}

#[test]
fn extents_of_nothing_are_errors_and_longer_ones_end_with_the_question() {
    let ctx = AioContext::for_test().unwrap();
    for request_alignment in [1, 4096] {
        let limits = BlockLimits { request_alignment, ..BlockLimits::default() };
        let far = Extent::data(u64::MAX).stored_at(Some("file"), u64::MAX);
        let said = [Extent::data(0), far, Extent::hole(MIB + 1), Extent::unallocated(1)];
        let liar = Liar { extent: Says::new(said), ..Liar::with_limits(limits) };
        let backend = BlockBackend::new(&ctx, "drive", BlockNode::new("liar", liar));
        let ask = |at, bytes| backend.block_status(&ctx, at, bytes);
        assert_eq!(errno(ask(0, MIB)), libc::EIO);
        let extent = ask(8193, 5000).unwrap();
        assert_eq!((extent.bytes, extent.end), (5000, false));
        let extent = ask(5, MIB - 5).unwrap();
        assert_eq!((extent.bytes, extent.zero, extent.end), (MIB - 5, true, true));
        // A byte of one kind, or a block of which that much is known.
        let bytes = if request_alignment == 1 { 1 } else { 4096 - 5 };
        assert_eq!(ask(5, MIB - 5).unwrap().bytes, bytes);
    }
}

/// A read that leaves the memory as it was shows its caller no bytes but the caller's own, also where
/// the layer reads by way of memory of its own.
#[test]
fn reads_that_claim_success_show_nothing_of_others() {
    let ctx = AioContext::for_test().unwrap();
    for (request_alignment, memory_alignment) in [(1, 1), (512, 1), (512, 512), (4096, 4096)] {
        let limits = BlockLimits { request_alignment, memory_alignment, ..BlockLimits::default() };
        let node = BlockNode::new("liar", Liar::with_limits(limits));
        let backend = BlockBackend::new(&ctx, "drive", node);
        // Freed memory that has something in it.
        for round in 0..8 {
            drop(vec![0x55u8; 4096 << round]);
        }
        let mut memory = vec![7; 20_000];
        let target = &mut memory[1001..15_001];
        backend.preadv(&ctx, 1, &mut IoVectorMut::from(target)).unwrap();
        assert!(memory[..1001].iter().chain(&memory[15_001..]).all(|byte| *byte == 7));
        assert!(memory[1001..15_001].iter().all(|byte| [0, 7].contains(byte)));
    }
}

#[test]
fn a_child_that_is_listed_twice_is_refused() {
    let disk = null("disk");
    let (first, second) = (edge(&disk), edge(&disk));
    let refused = BlockNode::try_new("liar", Liar::lists(&[&first], &[&[0, 0]])).err();
    let expected = "node 'liar': its driver lists a child twice, or one of another node";
    assert_eq!(refused.expect("refused").to_string(), expected);
    // They are free, and may be two ways to one node.
    let twice = BlockNode::new("twice", Liar::lists(&[&first, &second], &[&[0, 1]]));
    assert_eq!(names(&twice), ["disk", "disk"]);
}

#[test]
fn a_child_of_another_node_is_refused_and_stays_that_ones() {
    let ctx = AioContext::for_test().unwrap();
    let (disk, other) = (null("disk"), null("other"));
    let shared = edge(&disk);
    let owner = BlockNode::new("owner", Liar::lists(&[&shared], &[&[0]]));
    for also in [null("beside"), Arc::clone(&disk)] {
        let own = edge(&also);
        let thief = Liar::lists(&[&own, &shared], &[&[0, 1]]);
        let refused = BlockNode::try_new("thief", thief).err().expect("refused");
        assert!(matches!(refused, GraphError::NotItsChild(_)), "{refused}");
    }
    // What the graph knows of the owner is as it was: its edge is found on the way up, and stays, so no
    // cycle comes.
    disk.replace(&ctx, &owner).unwrap();
    assert_eq!((names(&owner), disk.parents().len()), (vec!["disk".to_owned()], 1));
    disk.replace(&ctx, &other).unwrap();
    assert_eq!((names(&owner), disk.parents().len()), (vec!["other".to_owned()], 0));
}

#[test]
fn children_that_are_others_each_time_are_those_that_the_graph_knows() {
    let ctx = AioContext::for_test().unwrap();
    let nodes = ["a", "b", "c"].map(null);
    let edges: Vec<_> = nodes.iter().map(edge).collect();
    let edges: Vec<_> = edges.iter().collect();
    let listed: [&[usize]; 5] = [&[0, 1], &[2], &[1, 2, 0], &[], &[2, 2]];
    let node = BlockNode::new("liar", Liar::lists(&edges, &listed));
    let backend = BlockBackend::new(&ctx, "drive", Arc::clone(&node));
    for _ in 0..10 {
        let names = names(&node);
        assert!(names.iter().all(|name| ["a", "b"].contains(&name.as_str())), "{names:?}");
        // What it has declared is drained with it, changed and described, whatever it says now.
        drop(nodes[0].drain(&ctx));
        backend.flush(&ctx).unwrap();
        let filter = BlockNode::new("filter", Raw::new(Arc::clone(&nodes[1])));
        nodes[1].insert_above(&ctx, &filter).unwrap();
        filter.remove(&ctx).unwrap();
        let _ = node.describe();
    }
    assert_eq!(nodes.map(|node| node.parents().len()), [1, 1, 0]);
}

/// A driver that has come by an edge to its own node, or to one above. Whatever goes down by what
/// drivers say comes to an end. (Such a node holds itself, and so these stay.)
#[test]
fn an_edge_that_was_not_declared_leads_no_walk_in_a_circle() {
    let ctx = AioContext::for_test().unwrap();
    for (role, above) in
        [(ChildRole::FILTER, false), (ChildRole::COW, false), (ChildRole::FILTER, true)]
    {
        let extent = Says::new([Extent::unallocated(MIB)]);
        let liar = Liar { extent, ..Liar::new() };
        let late = Arc::clone(&liar.late);
        let node = BlockNode::new("liar", liar);
        let raw = BlockNode::new("raw", Raw::new(Arc::clone(&node)));
        let to = if above { &raw } else { &node };
        late.set(Child::new("file", role, Arc::clone(to))).ok().expect("once");
        assert!(names(&node).is_empty());
        for node in [&node, &raw] {
            let backend = BlockBackend::new(&ctx, "drive", Arc::clone(node));
            let base = null("base");
            for base in [None, Some(&*base)] {
                let found = ctx.run(|co| backend.co_status_above(co, base, 0, MIB)).unwrap();
                assert!(!found.extent.allocated);
            }
            backend.truncate(&ctx, 512).unwrap();
            drop(node.drain(&ctx));
            let _ = (node.describe(), node.cancel_in_flight());
        }
        let other = null("other");
        node.replace(&ctx, &other).unwrap();
        assert_eq!(names(&raw), ["other"]);
    }
}

/// A node whose driver has come by another edge gets no user that the edge could do harm to, and no parent; nor
/// does a node above. Which edge that is says the error.
#[test]
fn a_child_that_came_after_the_node_is_refused_with_the_next_user() {
    let ctx = AioContext::for_test().unwrap();
    let says =
        |name| format!("node '{name}': its driver lists a child 'late' that came after the node");
    let liar = || {
        let liar = Liar::new();
        let late = Arc::clone(&liar.late);
        (BlockNode::new("liar", liar), late)
    };
    let (node, late) = liar();
    let raw = BlockNode::new("raw", Raw::new(Arc::clone(&node)));
    let top = BlockNode::new("top", Raw::new(null("disk")));
    let before = BackendOptions::new("before").open(&ctx, Arc::clone(&raw)).unwrap();
    late.set(Child::new("late", ChildRole::FILTER, Arc::clone(&node))).ok().expect("once");
    drop(before);
    for node in [&node, &raw] {
        let opened = BackendOptions::new("drive").open(&ctx, Arc::clone(node));
        assert_eq!(opened.err().expect("refused").to_string(), says("liar"));
        let above = BlockNode::try_new("above", Raw::new(Arc::clone(node)));
        assert_eq!(above.err().expect("refused").to_string(), says("liar"));
        let child = ctx.run(|co| top.co_set_child(co, "file", Some(node)));
        assert_eq!(child.expect_err("refused").to_string(), says("liar"));
        let replaced = null("other").replace(&ctx, node);
        assert_eq!(replaced.expect_err("refused").to_string(), says("liar"));
    }
    assert_eq!((names(&top), node.parents().len()), (vec!["disk".to_owned()], 1));
    // Nor do the children change that the graph knows.
    let own = Liar::lists(&[&edge(&null("disk"))], &[&[0]]);
    let late = Arc::clone(&own.late);
    let node = BlockNode::new("liar", own);
    late.set(Child::new("late", ChildRole::FILTER, Arc::clone(&node))).ok().expect("once");
    let child = ctx.run(|co| node.co_set_child(co, "file", Some(&null("other"))));
    assert_eq!(child.expect_err("refused").to_string(), says("liar"));
    assert_eq!(names(&node), ["disk"]);
    // Also if the edge leads to another node.
    let (node, late) = liar();
    late.set(Child::new("late", ChildRole::FILTER, null("disk"))).ok().expect("once");
    let opened = BackendOptions::new("drive").open(&ctx, Arc::clone(&node));
    assert_eq!(opened.err().expect("refused").to_string(), says("liar"));
}

/// A driver whose list of children comes when there is a node.
struct LateList(OnceLock<ChildList>);

impl BlockDriver for LateList {
    fn format_name(&self) -> &'static str {
        "late-list"
    }
    fn length(&self) -> u64 {
        MIB
    }
    fn child_list(&self) -> Option<ListId> {
        self.0.get().map(ChildList::id)
    }
    fn co_preadv(
        &self,
        _: &Co<'_>,
        _: u64,
        _: &mut IoVectorMut<'_>,
        _: ReadFlags,
    ) -> io::Result<()> {
        Ok(())
    }
    fn co_pwritev(&self, _: &Co<'_>, _: u64, _: &IoVector<'_>, _: WriteFlags) -> io::Result<()> {
        Ok(())
    }
    fn co_flush(&self, _: &Co<'_>) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_list_that_came_after_the_node_is_refused_with_the_next_user() {
    let ctx = AioContext::for_test().unwrap();
    let node = BlockNode::new("liar", LateList(OnceLock::new()));
    let driver: &dyn std::any::Any = node.driver();
    let list = &driver.downcast_ref::<LateList>().unwrap().0;
    let children = ChildList::new("copies", ChildRole::DATA, vec![Arc::clone(&node)]);
    list.set(children).ok().expect("once");
    let opened = BackendOptions::new("drive").open(&ctx, Arc::clone(&node));
    let expected = "node 'liar': its driver lists a child 'copies' that came after the node";
    assert_eq!(opened.err().expect("refused").to_string(), expected);
}
