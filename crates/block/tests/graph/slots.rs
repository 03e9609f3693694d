//! Children that are attached and detached, one at a time: what leads where, and what is refused.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use coblk_aio::{AioContext, Co, IoVector, IoVectorMut};
use coblk_block::drivers::{Null, Raw};
use coblk_block::options::NodeOptions;
use coblk_block::{
    BackendOptions, BlockBackend, BlockDriver, BlockLimits, BlockNode, Blockdevs, Child, ChildRole,
    ChildSlot, EdgeId, GraphError, Permissions, ReadFlags, WriteFlags,
};

use crate::movable::{Copies, Overlay, children, listed};
use crate::tagged::{Tagged, read};

const NONE: [String; 0] = [];

fn attach(
    ctx: &AioContext,
    node: &Arc<BlockNode>,
    slot: &str,
    child: &Arc<BlockNode>,
) -> Result<(), GraphError> {
    ctx.run(|co| node.co_attach(co, slot, child))
}

fn detach(ctx: &AioContext, node: &Arc<BlockNode>, slot: &str) -> Result<(), GraphError> {
    ctx.run(|co| node.co_detach(co, slot))
}

fn set(
    ctx: &AioContext,
    node: &Arc<BlockNode>,
    edge: &str,
    child: Option<&Arc<BlockNode>>,
) -> Result<(), GraphError> {
    ctx.run(|co| node.co_set_child(co, edge, child))
}

#[track_caller]
fn refused<T>(result: Result<T, GraphError>, words: &str) {
    assert_eq!(result.err().expect("an error").to_string(), words);
}

#[test]
fn a_backing_file_comes_changes_and_goes() {
    let ctx = AioContext::for_test().unwrap();
    let [file, first, second] = ["file", "first", "second"];
    let [file, first, second] =
        [Tagged::new(0).node(file), Tagged::new(1).node(first), Tagged::new(2).node(second)];
    let overlay = Overlay::node("overlay", &file, None);
    let backend = BlockBackend::new(&ctx, "drive", overlay.clone());
    assert_eq!(read(&ctx, &backend).unwrap(), 99);
    attach(&ctx, &overlay, "backing", &first).unwrap();
    assert_eq!(read(&ctx, &backend).unwrap(), 1);
    assert_eq!(children(&overlay), ["file=file", "backing=first"]);
    assert_eq!(first.parents().len(), 1);
    set(&ctx, &overlay, "backing", Some(&second)).unwrap();
    assert_eq!(read(&ctx, &backend).unwrap(), 2);
    assert_eq!((first.parents().len(), Arc::strong_count(&first)), (0, 1));
    detach(&ctx, &overlay, "backing").unwrap();
    assert_eq!(read(&ctx, &backend).unwrap(), 99);
    assert_eq!(children(&overlay), ["file=file"]);
    assert_eq!((second.parents().len(), Arc::strong_count(&second)), (0, 1));
    set(&ctx, &overlay, "backing", None).unwrap();
    set(&ctx, &overlay, "backing", Some(&first)).unwrap();
    assert_eq!(read(&ctx, &backend).unwrap(), 1);
    assert_eq!(overlay.graph_faults(), NONE);
}

#[test]
fn a_backing_file_behind_its_end_is_not_read() {
    let ctx = AioContext::for_test().unwrap();
    let file = Tagged::with_length(0, 4096).node("file");
    let short = Tagged::with_length(1, 512).node("short");
    let overlay = Overlay::node("overlay", &file, None);
    attach(&ctx, &overlay, "backing", &short).unwrap();
    let backend = BlockBackend::new(&ctx, "drive", overlay);
    let mut bytes = [0; 1024];
    ctx.run(|co| backend.co_preadv(co, 0, &mut IoVectorMut::from(&mut bytes[..]))).unwrap();
    assert_eq!((bytes[511], bytes[512]), (1, 99));
}

/// The request path asks whether there is a backing file: a copy of what that has cannot be left out.
#[test]
fn the_request_path_knows_of_a_backing_file_from_when_it_is_attached() {
    let ctx = AioContext::for_test().unwrap();
    let [file, disk] = [Tagged::new(0).node("file"), Tagged::new(1).node("disk")];
    let overlay = Overlay::node("overlay", &file, None);
    let backend = BlockBackend::new(&ctx, "drive", overlay.clone());
    let read = || {
        let mut byte = [0];
        let mut target = IoVectorMut::from(&mut byte[..]);
        let read =
            |co: &Co<'_>| backend.co_preadv_with(co, 0, &mut target, ReadFlags::COPY_ON_READ);
        ctx.run(read).map_err(|error| error.raw_os_error())
    };
    assert_eq!(read(), Ok(()));
    attach(&ctx, &overlay, "backing", &disk).unwrap();
    assert_eq!(read(), Err(Some(libc::ENOTSUP)));
    detach(&ctx, &overlay, "backing").unwrap();
    assert_eq!(read(), Ok(()));
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let ctx = AioContext::for_test().unwrap();
    let [file, disk] = [Tagged::new(0).node("file"), Tagged::new(1).node("disk")];
    let overlay = Overlay::node("overlay", &file, Some(&disk));
    let above = BlockNode::new("above", Raw::new(overlay.clone()));
    let empty = Overlay::node("empty", &file, None);
    let before = children(&overlay);
    refused(
        attach(&ctx, &overlay, "nothing", &disk),
        "node 'overlay' does not have child 'nothing'",
    );
    refused(
        attach(&ctx, &overlay, "backing", &file),
        "node 'overlay' already has node 'disk' as child 'backing'",
    );
    refused(detach(&ctx, &empty, "backing"), "node 'empty' has no node as child 'backing'");
    refused(detach(&ctx, &overlay, "file"), "child 'file' of node 'overlay' cannot be detached");
    let cycle = |above, below| {
        format!("making node '{below}' a child of node '{above}' would create a cycle")
    };
    refused(set(&ctx, &overlay, "backing", Some(&above)), &cycle("overlay", "above"));
    refused(set(&ctx, &overlay, "backing", Some(&overlay)), &cycle("overlay", "overlay"));
    refused(set(&ctx, &overlay, "file", Some(&above)), &cycle("overlay", "above"));
    refused(attach(&ctx, &empty, "backing", &empty), &cycle("empty", "empty"));
    refused(
        ctx.run(|co| overlay.co_add_child(co, &disk)),
        "node 'overlay' does not support adding a child",
    );
    let closed = Tagged::new(3).node("closed");
    ctx.run(|co| closed.co_close(co)).unwrap();
    refused(attach(&ctx, &empty, "backing", &closed), "node 'closed' is closed");
    let inactive = Tagged::new(4).node("inactive");
    ctx.run(|co| inactive.co_set_active(co, false)).unwrap();
    refused(
        attach(&ctx, &empty, "backing", &inactive),
        "node 'empty' needs node 'inactive' to be active, and it is inactive",
    );
    assert_eq!((children(&overlay), children(&empty)), (before, vec!["file=file".to_owned()]));
    for node in [&overlay, &empty, &closed, &inactive] {
        assert_eq!(node.graph_faults(), NONE);
    }
    // All is awake.
    let backend = BlockBackend::new(&ctx, "drive", above);
    assert_eq!(read(&ctx, &backend).unwrap(), 1);
}

#[test]
fn a_closed_node_takes_no_child() {
    let ctx = AioContext::for_test().unwrap();
    let [file, disk] = [Tagged::new(0).node("file"), Tagged::new(1).node("disk")];
    let overlay = Overlay::node("overlay", &file, None);
    ctx.run(|co| overlay.co_close(co)).unwrap();
    refused(attach(&ctx, &overlay, "backing", &disk), "node 'overlay' is closed");
    assert!(disk.parents().is_empty());
}

#[test]
fn a_slot_stops_at_the_bound_of_a_chain() {
    let ctx = AioContext::for_test().unwrap();
    let file = Tagged::new(0).node("file");
    let chain = |length: usize| {
        let disk = BlockNode::new("disk", Null::new(4096));
        (1..=length).fold(disk, |below, n| BlockNode::new(format!("n{n}"), Raw::new(below)))
    };
    let overlay = Overlay::node("overlay", &file, None);
    let above = BlockNode::new("above", Raw::new(overlay.clone()));
    let (fits, high) = (chain(254), chain(255));
    refused(
        attach(&ctx, &overlay, "backing", &high),
        "node 'above' would have more than 256 levels of children",
    );
    assert_eq!(overlay.graph_faults(), NONE);
    attach(&ctx, &overlay, "backing", &fits).unwrap();
    assert!(BlockNode::try_new("top", Raw::new(above.clone())).is_err());
    detach(&ctx, &overlay, "backing").unwrap();
    assert!(BlockNode::try_new("top", Raw::new(above)).is_ok());
    assert_eq!(overlay.graph_faults(), NONE);
}

/// A backing file is read, and not written by others meanwhile.
#[test]
fn a_child_is_used_while_it_is_attached() {
    let ctx = AioContext::for_test().unwrap();
    let [file, disk] = [Tagged::new(0).node("file"), Tagged::new(1).node("disk")];
    let overlay = Overlay::node("overlay", &file, None);
    let _drive = BackendOptions::new("drive").open(&ctx, overlay.clone()).unwrap();
    let writer = BackendOptions::new("writer");
    let open = writer.open(&ctx, disk.clone()).unwrap();
    refused(
        attach(&ctx, &overlay, "backing", &disk),
        "backend 'writer' needs write permission on node 'disk', which node 'overlay' does not share",
    );
    assert_eq!((children(&overlay), overlay.graph_faults()), (vec!["file=file".into()], vec![]));
    drop(open);
    attach(&ctx, &overlay, "backing", &disk).unwrap();
    assert_eq!(
        writer.open(&ctx, disk.clone()).err().unwrap().to_string(),
        "backend 'writer' needs write permission on node 'disk', which node 'overlay' does not share"
    );
    detach(&ctx, &overlay, "backing").unwrap();
    let _open = writer.open(&ctx, disk.clone()).unwrap();
    assert_eq!((overlay.graph_faults(), disk.graph_faults()), (vec![], vec![]));
}

/// The parent of a drained node is quiet from the moment that it is its parent, and until the drain ends
/// or it is not its parent any more.
#[test]
fn a_drain_of_a_child_reaches_the_new_parent() {
    let ctx = AioContext::for_test().unwrap();
    let [file, disk] = [Tagged::new(0).node("file"), Tagged::new(1).node("disk")];
    let overlay = Overlay::node("overlay", &file, None);
    let backend = BlockBackend::new(&ctx, "drive", overlay.clone());
    let section = disk.drain(&ctx);
    attach(&ctx, &overlay, "backing", &disk).unwrap();
    assert!(backend.try_enter().unwrap().is_none(), "the parent is quiet");
    assert_eq!(overlay.graph_faults(), NONE);
    detach(&ctx, &overlay, "backing").unwrap();
    assert!(backend.try_enter().unwrap().is_some(), "it is not its parent any more");
    attach(&ctx, &overlay, "backing", &disk).unwrap();
    drop(section);
    assert_eq!(read(&ctx, &backend).unwrap(), 1);
    assert_eq!(overlay.graph_faults(), NONE);
}

#[test]
fn a_list_gets_and_loses_children() {
    let ctx = AioContext::for_test().unwrap();
    let disks = [0, 1, 2].map(|tag| Tagged::new(tag).node(&format!("disk{tag}")));
    let (copies, asked) = Copies::asked("copies", 1, &[&disks[0], &disks[1]]);
    let backend = BlockBackend::new(&ctx, "drive", copies.clone());
    let add = |node| ctx.run(|co| copies.co_add_child(co, node));
    let remove = |edge: &str| ctx.run(|co| copies.co_remove_child(co, edge));
    assert_eq!(children(&copies), ["children.0=disk0", "children.1=disk1"]);
    assert_eq!(add(&disks[2]).unwrap(), "children.2");
    remove("children.0").unwrap();
    assert_eq!(read(&ctx, &backend).unwrap(), 1);
    assert_eq!((disks[0].parents().len(), Arc::strong_count(&disks[0])), (0, 1));
    refused(remove("children.0"), "node 'copies' does not have child 'children.0'");
    refused(remove("backing"), "node 'copies' does not have child 'backing'");
    assert_eq!(add(&disks[0]).unwrap(), "children.3");
    assert_eq!(children(&copies), ["children.1=disk1", "children.2=disk2", "children.3=disk0"]);
    remove("children.3").unwrap();
    remove("children.1").unwrap();
    assert_eq!(read(&ctx, &backend).unwrap(), 2);
    refused(
        remove("children.2"),
        "child 'children.2' of node 'copies' cannot change: fewer than 1 would be left",
    );
    assert_eq!(read(&ctx, &backend).unwrap(), 2);
    assert_eq!(asked.lock().unwrap()[..2], ["children.2: disk2", "children.2: disk2"]);
    assert_eq!(copies.graph_faults(), NONE);
}

/// A list that was refused a child is as it was, in its order.
#[test]
fn a_list_stays_as_it_was_if_users_do_not_agree() {
    let ctx = AioContext::for_test().unwrap();
    let disks = [0, 1, 2].map(|tag| Tagged::new(tag).node(&format!("disk{tag}")));
    let copies = Copies::node("copies", 0, &[&disks[0], &disks[1]]);
    let above = BlockNode::new("above", Raw::new(copies.clone()));
    let drive = BackendOptions::new("drive").open(&ctx, above.clone()).unwrap();
    let _writer = BackendOptions::new("writer").open(&ctx, disks[2].clone()).unwrap();
    let before = children(&copies);
    refused(
        ctx.run(|co| copies.co_add_child(co, &disks[2])),
        "node 'copies' needs write permission on node 'disk2', which backend 'writer' does not share",
    );
    assert!(ctx.run(|co| copies.co_add_child(co, &above)).is_err(), "a cycle");
    let frozen = ctx.run(|co| above.co_freeze_chain(co, None, "a job needs it")).unwrap();
    refused(
        ctx.run(|co| copies.co_remove_child(co, "children.0")),
        "cannot change 'children.0' link from 'copies' to 'disk0': a job needs it",
    );
    drop(frozen);
    assert_eq!(children(&copies), before);
    assert_eq!(listed(&copies), 2);
    assert_eq!(read(&ctx, &drive).unwrap(), 0);
    assert_eq!((copies.graph_faults(), disks[2].graph_faults()), (vec![], vec![]));
}

/// What was opened for a slot is closed by the step that takes it out.
#[test]
fn a_child_without_other_users_is_closed() {
    let (ctx, blockdevs) =
        (AioContext::for_test().unwrap(), Blockdevs::new(coblk_block::drivers()));
    let open = |line: &str| blockdevs.open(&ctx, NodeOptions::from_keyval(line).unwrap()).unwrap();
    let raw = open("raw,node-name=raw,file.driver=null-co,file.node-name=fallen,file.size=4096");
    let other = open("null-co,node-name=other,size=4096");
    let fallen = raw.children()[0].1.clone();
    set(&ctx, &raw, "file", Some(&other)).unwrap();
    let file = Tagged::new(0).node("file");
    let overlay = Overlay::node("overlay", &file, None);
    refused(attach(&ctx, &overlay, "backing", &fallen), "node 'fallen' is closed");
    // One with an owner is not.
    attach(&ctx, &overlay, "backing", &raw).unwrap();
    detach(&ctx, &overlay, "backing").unwrap();
    attach(&ctx, &overlay, "backing", &raw).unwrap();
}

/// A disk that counts its flushes.
struct Flushes(Arc<AtomicU64>);

impl BlockDriver for Flushes {
    fn format_name(&self) -> &'static str {
        "flushes"
    }
    fn length(&self) -> u64 {
        4096
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
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// What was written to a child is durable before the child goes, and a new child may have something to
/// flush though nothing was written through its new parent.
#[test]
fn flushes_are_owed_across_a_change() {
    let ctx = AioContext::for_test().unwrap();
    let counts = [(); 2].map(|()| Arc::new(AtomicU64::new(0)));
    let [first, second] = counts.each_ref().map(|it| BlockNode::new("disk", Flushes(it.clone())));
    let counted = || counts.each_ref().map(|it| it.load(Ordering::SeqCst));
    let copies = Copies::node("copies", 0, &[&first]);
    let backend = BlockBackend::new(&ctx, "drive", copies.clone());
    let beside = BlockBackend::new(&ctx, "beside", second.clone());
    let write = |backend: &BlockBackend| {
        let source = [1; 512];
        ctx.run(|co| backend.co_pwritev(co, 0, &IoVector::from(&source[..]), WriteFlags::empty()))
    };
    let flush = || ctx.run(|co| backend.co_flush(co)).unwrap();
    write(&backend).unwrap();
    flush();
    flush();
    assert_eq!(counted(), [1, 0]);
    write(&beside).unwrap();
    ctx.run(|co| copies.co_add_child(co, &second)).unwrap();
    flush();
    assert_eq!(counted()[1], 1, "the new child is flushed");
    write(&backend).unwrap();
    let before = counted()[0];
    ctx.run(|co| copies.co_remove_child(co, "children.0")).unwrap();
    assert_eq!(counted()[0], before + 1, "the old child is flushed before it goes");
}

/// A driver that can be written only with a child.
struct Needs(ChildSlot);

impl BlockDriver for Needs {
    fn format_name(&self) -> &'static str {
        "needs"
    }
    fn length(&self) -> u64 {
        self.0.get().map_or(0, |child| child.length())
    }
    fn is_read_only(&self) -> bool {
        self.0.get().is_none()
    }
    fn limits(&self) -> BlockLimits {
        let request_alignment = if self.0.get().is_some() { 512 } else { 1 };
        BlockLimits { request_alignment, ..BlockLimits::default() }
    }
    fn children(&self) -> Vec<EdgeId> {
        vec![self.0.id()]
    }
    fn co_preadv(
        &self,
        co: &Co<'_>,
        offset: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        let none = || io::Error::from_raw_os_error(libc::ENOMEDIUM);
        self.0.get().ok_or_else(none)?.co_preadv(co, offset, target, flags)
    }
    fn co_pwritev(&self, _: &Co<'_>, _: u64, _: &IoVector<'_>, _: WriteFlags) -> io::Result<()> {
        Ok(())
    }
    fn co_flush(&self, _: &Co<'_>) -> io::Result<()> {
        Ok(())
    }
}

/// A child that a writer needs does not go, and the refusal turns everything back.
#[test]
fn a_detach_that_would_stop_a_writer_is_turned_back() {
    let ctx = AioContext::for_test().unwrap();
    let disk = Tagged::new(7).node("disk");
    let slot = ChildSlot::new("file", ChildRole::FILTER, Some(disk.clone()));
    let node = BlockNode::new("needs", Needs(slot));
    let lengths = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    let backend = BackendOptions::new("drive").open(&ctx, node.clone()).unwrap();
    let seen = lengths.clone();
    backend.set_length_listener(move |_, length| seen.borrow_mut().push(length));
    refused(
        detach(&ctx, &node, "file"),
        "node 'needs' cannot become read-only: backend 'drive' writes to it",
    );
    assert_eq!((children(&node), node.graph_faults()), (vec!["file=disk".to_owned()], vec![]));
    assert_eq!(read(&ctx, &backend).unwrap(), 7);
    assert_eq!(node.limits().request_alignment, 512);
    let other = BackendOptions::new("other").open(&ctx, disk.clone());
    assert!(other.is_err(), "the child is still used");
    drop(backend);
    let reads = Permissions::CONSISTENT_READ;
    let backend = BackendOptions::new("reader").permissions(reads, Permissions::all());
    let backend = backend.open(&ctx, node.clone()).unwrap();
    let seen = lengths.clone();
    backend.set_length_listener(move |_, length| seen.borrow_mut().push(length));
    detach(&ctx, &node, "file").unwrap();
    // Those above are told of the new length.
    ctx.run_until(|| *lengths.borrow() == [0]);
    assert_eq!(node.limits().request_alignment, 1);
    assert!(read(&ctx, &backend).is_err());
}

/// The graph holds no edge of a driver that was never in a node.
#[test]
fn a_slot_without_a_node_uses_its_child_and_lets_it_go() {
    let disk = Tagged::new(1).node("disk");
    let slot = ChildSlot::new("backing", ChildRole::COW, Some(disk.clone()));
    let empty = ChildSlot::new("backing", ChildRole::COW, None);
    assert!(empty.get().is_none() && empty.node().is_none());
    assert_eq!(slot.get().unwrap().length(), 4096);
    assert_eq!(slot.get().unwrap().info().to_string(), "backing");
    drop((slot, empty));
    let child = Child::new("file", ChildRole::FILTER, disk.clone());
    drop(child);
    assert_eq!((Arc::strong_count(&disk), disk.graph_faults()), (1, vec![]));
}
