use std::sync::Arc;
use std::sync::atomic::Ordering;

use coblk_aio::{AioContext, IoVector, IoVectorMut};
use tempfile::NamedTempFile;

use crate::drivers::{File, Null, Raw};
use crate::graph::life::tests::{Keeper, Log, keep};
use crate::{BackendOptions, BlockBackend, BlockNode, WriteFlags};

fn null() -> Arc<BlockNode> {
    BlockNode::new("null", Null::new(1 << 20).read_zeroes(true))
}

fn raw(name: &str, below: &Arc<BlockNode>) -> Arc<BlockNode> {
    BlockNode::new(name, Raw::new(Arc::clone(below)))
}

fn set(ctx: &AioContext, node: &Arc<BlockNode>, active: bool) {
    ctx.run(|co| node.co_set_active(co, active)).unwrap();
}

#[track_caller]
fn refused(ctx: &AioContext, node: &Arc<BlockNode>, active: bool, why: &str) {
    let error = ctx.run(|co| node.co_set_active(co, active)).unwrap_err().to_string();
    assert!(error.contains(why), "{error}");
    assert_eq!(node.is_active(), !active, "something has changed");
}

#[track_caller]
fn errno_of_all_requests(ctx: &AioContext, backend: &BlockBackend, errno: i32) {
    let mut byte = [0];
    let results = [
        backend.preadv(ctx, 0, &mut IoVectorMut::from(&mut byte[..])),
        backend.pwritev(ctx, 0, &IoVector::from(&[1][..]), WriteFlags::empty()),
        backend.flush(ctx),
        backend.pwrite_zeroes(ctx, 0, 1, crate::ZeroFlags::empty()),
        backend.pdiscard(ctx, 0, 1),
        backend.block_status(ctx, 0, 1).map(|_| ()),
        backend.truncate(ctx, 512),
        backend.truncate(ctx, 1 << 21),
    ];
    for (index, result) in results.into_iter().enumerate() {
        assert_eq!(result.unwrap_err().raw_os_error(), Some(errno), "request {index}");
    }
    assert_eq!(backend.in_flight(), 0);
}

/// Two open files of an image exclude each other as two processes do.
#[test]
fn an_image_is_handed_over_and_taken_back() {
    let ctx = AioContext::for_test().unwrap();
    let image = NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let open = |name| BlockNode::new(name, File::options().open(image.path()).unwrap());
    let [first, second] = ["first", "second"].map(open);
    let top = raw("top", &first);
    let device = BackendOptions::new("device").allow_inactive(true);
    let mine = device.open(&ctx, Arc::clone(&top)).unwrap();
    let other = BackendOptions::new("other");
    assert!(other.open(&ctx, Arc::clone(&second)).is_err(), "the image is not locked");
    mine.pwritev(&ctx, 0, &IoVector::from(&[1][..]), WriteFlags::empty()).unwrap();
    set(&ctx, &top, false);
    assert!(!top.is_active() && !first.is_active());
    errno_of_all_requests(&ctx, &mine, libc::EPERM);
    let theirs = other.open(&ctx, Arc::clone(&second)).unwrap();
    theirs.pwritev(&ctx, 0, &IoVector::from(&[2][..]), WriteFlags::empty()).unwrap();
    theirs.truncate(&ctx, 2 << 20).unwrap();
    refused(&ctx, &top, true, "lock on image");
    errno_of_all_requests(&ctx, &mine, libc::EPERM);
    assert!(!first.is_active());
    drop(theirs);
    set(&ctx, &top, true);
    assert!(top.is_active() && first.is_active());
    assert_eq!(mine.length().unwrap(), 2 << 20, "the length is an old one");
    let mut byte = [0];
    mine.preadv(&ctx, 0, &mut IoVectorMut::from(&mut byte[..])).unwrap();
    assert_eq!(byte, [2]);
    assert!(other.open(&ctx, second).is_err(), "the image is not locked again");
}

#[test]
fn what_needs_an_active_node_keeps_it_active_and_is_not_added_to_another() {
    let ctx = AioContext::for_test().unwrap();
    let low = null();
    let top = raw("top", &low);
    refused(&ctx, &low, false, "node 'null' cannot be inactive: its parent, node 'top', is active");
    let writer = BackendOptions::new("writer");
    let backend = writer.open(&ctx, Arc::clone(&top)).unwrap();
    refused(&ctx, &top, false, "node 'top' cannot be inactive: backend 'writer' writes to it");
    drop(backend);
    let reader = BackendOptions::new("reader").read_only(true).share_rw(true);
    let reading = reader.open(&ctx, Arc::clone(&top)).unwrap();
    set(&ctx, &top, false);
    // As it is already.
    set(&ctx, &top, false);
    let late = writer.open(&ctx, Arc::clone(&top)).err().unwrap().to_string();
    assert_eq!(late, "backend 'writer' needs node 'top' to be active, and it is inactive");
    let above = BlockNode::try_new("above", Raw::new(Arc::clone(&low))).err().unwrap().to_string();
    assert_eq!(above, "node 'above' needs node 'null' to be active, and it is inactive");
    let other = null();
    let over = raw("over", &other);
    let turned = other.replace(&ctx, &low).unwrap_err().to_string();
    assert!(turned.starts_with("node 'over' needs node 'null'"), "{turned}");
    let allowed = writer.clone().allow_inactive(true).open(&ctx, Arc::clone(&top)).unwrap();
    set(&ctx, &top, true);
    allowed.pwritev(&ctx, 0, &IoVector::from(&[1][..]), WriteFlags::empty()).unwrap();
    drop((reading, over));
}

#[test]
fn users_that_exclude_each_other_do_not_wake_a_node() {
    let ctx = AioContext::for_test().unwrap();
    let node = null();
    set(&ctx, &node, false);
    let [first, second] = ["first", "second"].map(|name| {
        let device = BackendOptions::new(name).allow_inactive(true);
        device.open(&ctx, Arc::clone(&node)).unwrap()
    });
    refused(&ctx, &node, true, "write permission on node 'null'");
    drop(second);
    set(&ctx, &node, true);
    first.pwritev(&ctx, 0, &IoVector::from(&[1][..]), WriteFlags::empty()).unwrap();
}

#[test]
fn children_follow_unless_they_have_another_active_parent() {
    let ctx = AioContext::for_test().unwrap();
    let low = null();
    let [left, right] = ["left", "right"].map(|name| raw(name, &low));
    set(&ctx, &left, false);
    assert!(!left.is_active() && low.is_active());
    set(&ctx, &right, false);
    assert!(!right.is_active() && !low.is_active());
    // A parent of an active node may be inactive, a child of one may not.
    set(&ctx, &low, true);
    assert!(low.is_active() && !left.is_active() && !right.is_active());
    set(&ctx, &low, false);
    set(&ctx, &left, true);
    assert!(left.is_active() && low.is_active() && !right.is_active());
}

#[test]
fn what_is_kept_is_written_first_and_an_error_leaves_all_as_it_was() {
    let (ctx, log) = (AioContext::for_test().unwrap(), Log::default());
    let (low, errno) = Keeper::failing("low", &log, null());
    let high = Keeper::node("high", &log, Arc::clone(&low));
    keep(&ctx, &high, 4);
    errno.store(libc::EIO, Ordering::SeqCst);
    let error = ctx.run(|co| high.co_set_active(co, false)).unwrap_err().to_string();
    assert!(error.starts_with("node 'high' cannot be made inactive: "), "{error}");
    assert!(high.is_active() && low.is_active());
    log.expect(&["high writes 4", "high flushes", "low fails"]);
    set(&ctx, &high, false);
    log.expect(&[
        "high writes 0",
        "high flushes",
        "low writes 4",
        "low flushes",
        "high writes 0",
        "low writes 0",
    ]);
    errno.store(libc::EIO, Ordering::SeqCst);
    let error = ctx.run(|co| high.co_set_active(co, true)).unwrap_err().to_string();
    assert!(error.starts_with("node 'low' cannot be made active: "), "{error}");
    assert!(!high.is_active() && !low.is_active());
    log.expect(&["low is stale"]);
    set(&ctx, &high, true);
    log.expect(&["low reads anew", "high reads anew"]);
}

#[test]
fn a_request_that_waits_for_a_drain_is_refused_when_the_node_is_handed_over() {
    let ctx = AioContext::for_test().unwrap();
    let node = null();
    let device = BackendOptions::new("device").allow_inactive(true);
    let backend = device.open(&ctx, Arc::clone(&node)).unwrap();
    let section = node.drain(&ctx);
    let (waits, result) = (backend.clone(), std::rc::Rc::new(std::cell::Cell::new(None)));
    let seen = std::rc::Rc::clone(&result);
    ctx.spawn("request", move |co| seen.set(Some(waits.co_flush(co))));
    while ctx.try_poll() {}
    assert!(result.take().is_none());
    set(&ctx, &node, false);
    while ctx.try_poll() {}
    let error = result.take().expect("answered").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    // A gate that opens for the one reason stays shut for the other.
    drop(section);
    errno_of_all_requests(&ctx, &backend, libc::EPERM);
    let section = node.drain(&ctx);
    set(&ctx, &node, true);
    let waits = backend.clone();
    let seen = std::rc::Rc::clone(&result);
    ctx.spawn("request", move |co| seen.set(Some(waits.co_flush(co))));
    while ctx.try_poll() {}
    assert!(result.take().is_none(), "a request comes through in a drained section");
    drop(section);
    while ctx.try_poll() {}
    result.take().expect("answered").unwrap();
}

#[test]
fn nothing_is_written_at_the_end_of_an_inactive_node() {
    let (ctx, log) = (AioContext::for_test().unwrap(), Log::default());
    let node = Keeper::node("node", &log, null());
    set(&ctx, &node, false);
    log.expect(&["node writes 0", "node flushes", "node writes 0"]);
    ctx.run(|co| node.co_close(co)).unwrap();
    log.expect(&[]);
}

#[test]
fn a_node_may_be_born_inactive() {
    let ctx = AioContext::for_test().unwrap();
    let image = NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let file = || File::options().open(image.path()).unwrap();
    let owner = BlockNode::new("owner", file());
    let owns = BackendOptions::new("owns").allow_inactive(true).open(&ctx, owner.clone()).unwrap();
    let low = BlockNode::try_new_inactive("low", file()).unwrap();
    let top = BlockNode::try_new_inactive("top", Raw::new(low.clone())).unwrap();
    assert!(!low.is_active() && !top.is_active());
    let device = BackendOptions::new("device").allow_inactive(true);
    let mine = device.open(&ctx, top.clone()).unwrap();
    errno_of_all_requests(&ctx, &mine, libc::EPERM);
    refused(&ctx, &top, true, "lock on image");
    owns.truncate(&ctx, 3 << 20).unwrap();
    set(&ctx, &owner, false);
    set(&ctx, &top, true);
    assert_eq!(mine.length().unwrap(), 3 << 20, "the length is an old one");
    mine.pwritev(&ctx, 0, &IoVector::from(&[1][..]), WriteFlags::empty()).unwrap();
    refused(&ctx, &owner, true, "lock on image");
}

/// The other process may have been killed, and its clients ask for the flush here.
#[test]
fn the_first_flush_after_a_node_comes_back_reaches_the_driver() {
    let (ctx, log) = (AioContext::for_test().unwrap(), Log::default());
    let node = Keeper::node("node", &log, null());
    let backend = BackendOptions::new("device").allow_inactive(true).open(&ctx, node.clone());
    let backend = backend.unwrap();
    backend.flush(&ctx).unwrap();
    log.expect(&["node writes 0", "node flushes"]);
    set(&ctx, &node, false);
    set(&ctx, &node, true);
    log.expect(&["node writes 0", "node reads anew"]);
    backend.flush(&ctx).unwrap();
    log.expect(&["node writes 0", "node flushes"]);
    backend.flush(&ctx).unwrap();
    log.expect(&[]);
}

#[test]
fn a_parent_that_another_thread_is_about_to_end_is_no_user() {
    let log = Log::default();
    let child = BlockNode::new("child", Null::new(1 << 20));
    let parent = Keeper::node("parent", &log, Arc::clone(&child));
    let gone = Arc::downgrade(&parent);
    assert!(crate::graph::lock().has_open_users(child.id()));
    let mut graph = crate::graph::lock();
    let ends = std::thread::spawn(move || drop(parent));
    // It waits for the lock with its last handle gone.
    while gone.strong_count() > 0 {
        std::thread::yield_now();
    }
    assert!(!graph.has_open_users(child.id()));
    drop(graph);
    ends.join().unwrap();
}
