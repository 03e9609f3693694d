use std::io;
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use coblk_aio::{AioContext, Co, IoVector, IoVectorMut};
use tracing::field::{Field, Visit};

use crate::drivers::{Null, Raw};
use crate::graph::life::co_close_if_unused;
use crate::{
    BackendOptions, BlockBackend, BlockDriver, BlockNode, Child, ChildList, ChildRole, EdgeId,
    GraphError, ListId, ReadFlags, WriteFlags,
};

/// What drivers were asked, in order.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn note(&self, name: &str, what: &str) {
        self.0.lock().unwrap().push(format!("{name} {what}"));
    }

    #[track_caller]
    pub(crate) fn expect(&self, what: &[&str]) {
        assert_eq!(std::mem::take(&mut *self.0.lock().unwrap()), what);
    }
}

/// A driver that keeps the byte that is written last, until it is told to write back.
pub(crate) struct Keeper {
    name: &'static str,
    log: Log,
    below: Child,
    kept: AtomicU8,
    /// What its next write back fails with.
    errno: Arc<AtomicI32>,
}

impl Keeper {
    pub(crate) fn node(name: &'static str, log: &Log, below: Arc<BlockNode>) -> Arc<BlockNode> {
        Self::failing(name, log, below).0
    }

    pub(crate) fn failing(
        name: &'static str,
        log: &Log,
        below: Arc<BlockNode>,
    ) -> (Arc<BlockNode>, Arc<AtomicI32>) {
        let errno = Arc::new(AtomicI32::new(0));
        let below = Child::new("file", ChildRole::IMAGE, below);
        let (log, kept) = (log.clone(), AtomicU8::new(0));
        let keeper = Keeper { name, log, below, kept, errno: Arc::clone(&errno) };
        (BlockNode::new(name, keeper), errno)
    }
}

impl BlockDriver for Keeper {
    fn format_name(&self) -> &'static str {
        "keeper"
    }

    fn length(&self) -> u64 {
        self.below.length()
    }

    fn co_preadv(
        &self,
        _: &Co<'_>,
        _: u64,
        target: &mut IoVectorMut<'_>,
        _: ReadFlags,
    ) -> io::Result<()> {
        target.fill_from(0, self.kept.load(Ordering::SeqCst));
        Ok(())
    }

    fn co_pwritev(
        &self,
        _: &Co<'_>,
        _: u64,
        source: &IoVector<'_>,
        _: WriteFlags,
    ) -> io::Result<()> {
        let mut byte = [0];
        source.copy_to(0, &mut byte);
        self.kept.store(byte[0], Ordering::SeqCst);
        Ok(())
    }

    fn co_write_back(&self, co: &Co<'_>) -> io::Result<()> {
        let errno = self.errno.swap(0, Ordering::SeqCst);
        if errno != 0 {
            self.log.note(self.name, "fails");
            return Err(io::Error::from_raw_os_error(errno));
        }
        let kept = self.kept.swap(0, Ordering::SeqCst);
        self.log.note(self.name, &format!("writes {kept}"));
        if kept == 0 {
            return Ok(());
        }
        self.below.co_pwritev(co, 0, &IoVector::from(&[kept][..]), WriteFlags::empty())
    }

    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        self.log.note(self.name, "flushes");
        self.below.co_flush(co)
    }

    fn co_activate(&self, _: &Co<'_>) -> io::Result<()> {
        let errno = self.errno.swap(0, Ordering::SeqCst);
        self.log.note(self.name, if errno == 0 { "reads anew" } else { "is stale" });
        if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(errno)) }
    }

    fn cancel_in_flight(&self) {
        self.log.note(self.name, "gives up");
    }

    fn needs_close(&self) -> bool {
        self.kept.load(Ordering::SeqCst) != 0
    }

    fn children(&self) -> Vec<EdgeId> {
        vec![self.below.id()]
    }
}

fn null() -> Arc<BlockNode> {
    BlockNode::new("null", Null::new(1 << 20))
}

/// Writes a byte through a backend that goes then.
pub(crate) fn keep(ctx: &AioContext, node: &Arc<BlockNode>, byte: u8) {
    let backend = BlockBackend::new(ctx, "writer", Arc::clone(node));
    backend.pwritev(ctx, 0, &IoVector::from(&[byte][..]), WriteFlags::empty()).unwrap();
}

#[test]
fn a_flush_writes_back_first() {
    let (ctx, log) = (AioContext::for_test().unwrap(), Log::default());
    let low = Keeper::node("low", &log, null());
    let (high, errno) = Keeper::failing("high", &log, Arc::clone(&low));
    keep(&ctx, &high, 7);
    let backend = BlockBackend::new(&ctx, "drive", high);
    backend.flush(&ctx).unwrap();
    log.expect(&["high writes 7", "high flushes", "low writes 7", "low flushes"]);
    backend.pwritev(&ctx, 0, &IoVector::from(&[8][..]), WriteFlags::empty()).unwrap();
    errno.store(libc::ENOSPC, Ordering::SeqCst);
    let error = backend.flush(&ctx).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    log.expect(&["high fails"]);
    backend.flush(&ctx).unwrap();
    log.expect(&["high writes 8", "high flushes", "low writes 8", "low flushes"]);
}

#[test]
fn a_closed_node_takes_no_users() {
    let (ctx, log) = (AioContext::for_test().unwrap(), Log::default());
    let node = Keeper::node("node", &log, null());
    let backend = BlockBackend::new(&ctx, "drive", Arc::clone(&node));
    let in_use = ctx.run(|co| node.co_close(co)).unwrap_err();
    assert_eq!(in_use.to_string(), "node 'node' is in use");
    drop(backend);
    ctx.run(|co| node.co_close(co)).unwrap();
    log.expect(&["node writes 0"]);
    ctx.run(|co| node.co_close(co)).unwrap();
    log.expect(&[]);
    let refused = BackendOptions::new("late").open(&ctx, Arc::clone(&node)).err().unwrap();
    assert_eq!(refused.to_string(), "node 'node' is closed");
    let above = BlockNode::try_new("above", Raw::new(Arc::clone(&node))).err().unwrap();
    assert_eq!(above.to_string(), "node 'node' is closed");
    let other = null();
    let _user = BlockBackend::new(&ctx, "user", Arc::clone(&other));
    let turned = other.replace(&ctx, &node).unwrap_err();
    assert!(matches!(turned, GraphError::Closed(_)), "{turned}");
    // One that asks for nothing gets nothing.
    let unasked = BlockBackend::new(&ctx, "unasked", node);
    let error = unasked.flush(&ctx).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ESHUTDOWN));
    assert_eq!(unasked.in_flight(), 0);
}

#[test]
fn a_close_that_fails_leaves_the_node_open() {
    let (ctx, log) = (AioContext::for_test().unwrap(), Log::default());
    let (node, errno) = Keeper::failing("node", &log, null());
    keep(&ctx, &node, 3);
    errno.store(libc::EIO, Ordering::SeqCst);
    let error = ctx.run(|co| node.co_close(co)).unwrap_err();
    assert!(error.to_string().starts_with("node 'node' cannot be closed: "), "{error}");
    let backend = BackendOptions::new("drive").open(&ctx, Arc::clone(&node)).unwrap();
    let mut byte = [0];
    backend.preadv(&ctx, 0, &mut IoVectorMut::from(&mut byte[..])).unwrap();
    assert_eq!(byte, [3], "what it kept is lost");
    drop(backend);
    ctx.run(|co| node.co_close(co)).unwrap();
    log.expect(&["node fails", "node writes 3"]);
}

#[test]
fn nodes_that_belong_to_their_users_are_closed_with_the_last_parents_first() {
    let (ctx, log) = (AioContext::for_test().unwrap(), Log::default());
    let low = Keeper::node("low", &log, null());
    let middle = Keeper::node("middle", &log, Arc::clone(&low));
    let shared = Keeper::node("shared", &log, Arc::clone(&middle));
    let [first, second] = ["first", "second"].map(|it| Keeper::node(it, &log, shared.clone()));
    for node in [&low, &shared] {
        node.life.set_belongs_to_users(true);
    }
    ctx.run(|co| first.co_close(co)).unwrap();
    log.expect(&["first writes 0"]);
    ctx.run(|co| second.co_close(co)).unwrap();
    // Below a node that another owner has, all stays open.
    log.expect(&["second writes 0", "shared writes 0"]);
    ctx.run(|co| middle.co_close(co)).unwrap();
    log.expect(&["middle writes 0", "low writes 0"]);
}

#[test]
fn a_node_that_falls_out_of_a_chain_is_closed_when_the_drains_are_over() {
    let (ctx, log) = (AioContext::for_test().unwrap(), Log::default());
    let low = null();
    let filter = Keeper::node("filter", &log, Arc::clone(&low));
    filter.life.set_belongs_to_users(true);
    let backend = BackendOptions::new("drive").open(&ctx, Arc::clone(&filter)).unwrap();
    backend.pwritev(&ctx, 0, &IoVector::from(&[5][..]), WriteFlags::empty()).unwrap();
    filter.remove(&ctx).unwrap();
    assert!(filter.life.is_closed() && Arc::ptr_eq(&backend.node().unwrap(), &low));
    log.expect(&["filter writes 5", "filter flushes", "filter writes 0"]);
    // As is one whose last user is a backend.
    let last = Keeper::node("last", &log, low);
    last.life.set_belongs_to_users(true);
    let device = BackendOptions::new("device").share_rw(true).open_empty(&ctx);
    device.insert_medium(Arc::clone(&last)).unwrap_err();
    drop(backend);
    device.insert_medium(Arc::clone(&last)).unwrap();
    device.remove_medium(&ctx).unwrap();
    log.expect(&["last writes 0"]);
    assert!(last.life.is_closed());
}

#[test]
fn a_node_is_closed_after_its_last_backend_was_dropped() {
    let (ctx, log) = (AioContext::for_test().unwrap(), Log::default());
    let [own, owned] = ["own", "owned"].map(|name| Keeper::node(name, &log, null()));
    own.life.set_belongs_to_users(true);
    keep(&ctx, &own, 4);
    keep(&ctx, &owned, 5);
    while ctx.try_poll() {}
    log.expect(&["own writes 4"]);
    assert!(own.life.is_closed() && !owned.life.is_closed());
    // One that has a user again by then is not.
    let again = Keeper::node("again", &log, null());
    again.life.set_belongs_to_users(true);
    keep(&ctx, &again, 6);
    let _backend = BlockBackend::new(&ctx, "next", Arc::clone(&again));
    while ctx.try_poll() {}
    assert!(!again.life.is_closed());
    ctx.run(|co| owned.co_close(co)).unwrap();
    log.expect(&["owned writes 5"]);
}

#[test]
fn a_backend_that_is_closed_closes_the_node_that_it_was_the_last_to_use() {
    let (ctx, log) = (AioContext::for_test().unwrap(), Log::default());
    let (node, errno) = Keeper::failing("node", &log, null());
    node.life.set_belongs_to_users(true);
    let open = |share| {
        let options = BackendOptions::new("drive").share_rw(share);
        options.open(&ctx, Arc::clone(&node)).unwrap()
    };
    let (first, last) = (open(true), open(true));
    ctx.run(|co| first.co_close(co)).unwrap();
    errno.store(libc::EIO, Ordering::SeqCst);
    let error = ctx.run(|co| last.co_close(co)).unwrap_err().to_string();
    assert!(error.starts_with("node 'node' cannot be closed: "), "{error}");
    log.expect(&["node fails"]);
    assert!(!node.life.is_closed());
    // What it held was given back all the same.
    let again = open(false);
    ctx.run(|co| again.co_close(co)).unwrap();
    log.expect(&["node writes 0"]);
    assert!(node.life.is_closed());
}

#[test]
fn a_child_that_is_removed_from_a_list_is_closed() {
    let (ctx, log) = (AioContext::for_test().unwrap(), Log::default());
    let [kept, fallen] = ["kept", "fallen"].map(|name| Keeper::node(name, &log, null()));
    fallen.life.set_belongs_to_users(true);
    let children = vec![Arc::clone(&kept), Arc::clone(&fallen)];
    let list = BlockNode::new("list", Listing(ChildList::new("c", ChildRole::DATA, children)));
    ctx.run(|co| list.co_remove_child(co, "c.0")).unwrap();
    ctx.run(|co| list.co_remove_child(co, "c.1")).unwrap();
    log.expect(&[
        "kept writes 0",
        "kept flushes",
        "fallen writes 0",
        "fallen flushes",
        "fallen writes 0",
    ]);
    assert!(fallen.life.is_closed() && !kept.life.is_closed());
}

/// A driver with a list that it does not use.
struct Listing(ChildList);

impl BlockDriver for Listing {
    fn format_name(&self) -> &'static str {
        "listing"
    }

    fn length(&self) -> u64 {
        0
    }

    fn child_list(&self) -> Option<ListId> {
        Some(self.0.id())
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
fn a_close_waits_for_a_drain_below_and_a_drain_for_it() {
    let (ctx, log) = (AioContext::for_test().unwrap(), Log::default());
    let low = null();
    let node = Keeper::node("node", &log, Arc::clone(&low));
    let section = low.drain(&ctx);
    let closed = Arc::clone(&node);
    ctx.spawn("close", move |co| closed.co_close(co).unwrap());
    while ctx.try_poll() {}
    log.expect(&[]);
    drop(section);
    while ctx.try_poll() {}
    log.expect(&["node writes 0"]);
    drop(low.drain(&ctx));
}

/// Of a driver that writes to its child when it is closed.
#[test]
fn a_child_is_not_closed_before_its_parent_has_been() {
    let (ctx, log) = (AioContext::for_test().unwrap(), Log::default());
    let low = null();
    let child = Keeper::node("child", &log, Arc::clone(&low));
    child.life.set_belongs_to_users(true);
    let (parent, errno) = Keeper::failing("parent", &log, Arc::clone(&child));
    keep(&ctx, &parent, 6);
    for fails in [true, false] {
        errno.store(if fails { libc::EIO } else { 0 }, Ordering::SeqCst);
        let section = low.drain(&ctx);
        let closed = Arc::clone(&parent);
        ctx.spawn("close", move |co| assert_eq!(closed.co_close(co).is_err(), fails));
        while ctx.try_poll() {}
        assert!(parent.life.is_closed(), "the last writes wait for the drain");
        // A backend on the child comes and goes meanwhile.
        drop(BlockBackend::new(&ctx, "passing", Arc::clone(&child)));
        let own = Arc::clone(&child);
        ctx.spawn("close child", move |co| {
            let in_use = own.co_close(co).unwrap_err();
            assert!(matches!(in_use, GraphError::InUse(_)), "{in_use}");
        });
        while ctx.try_poll() {}
        assert!(!child.life.is_closed(), "closed below a driver that writes still");
        drop(section);
        while ctx.try_poll() {}
        assert_eq!([&parent, &child].map(|it| it.life.is_closed()), [!fails; 2]);
    }
    log.expect(&["parent fails", "parent writes 6", "child writes 6"]);
}

#[test]
fn what_waits_is_given_up_down_the_chain_each_node_once() {
    let log = Log::default();
    let low = Keeper::node("low", &log, null());
    let [left, right] = ["left", "right"].map(|name| Keeper::node(name, &log, Arc::clone(&low)));
    let [file, image] = ["file", "backing"].map(|name| {
        let node = if name == "file" { &left } else { &right };
        Child::new(name, ChildRole::IMAGE, Arc::clone(node))
    });
    let top = BlockNode::new("top", Both(file, image));
    top.cancel_in_flight();
    log.expect(&["left gives up", "right gives up", "low gives up"]);
    right.cancel_in_flight();
    log.expect(&["right gives up", "low gives up"]);
}

/// A driver on two nodes.
struct Both(Child, Child);

impl BlockDriver for Both {
    fn format_name(&self) -> &'static str {
        "both"
    }

    fn length(&self) -> u64 {
        self.0.length()
    }

    fn co_preadv(
        &self,
        co: &Co<'_>,
        at: u64,
        target: &mut IoVectorMut<'_>,
        flags: ReadFlags,
    ) -> io::Result<()> {
        self.0.co_preadv(co, at, target, flags)
    }

    fn co_pwritev(
        &self,
        co: &Co<'_>,
        at: u64,
        source: &IoVector<'_>,
        flags: WriteFlags,
    ) -> io::Result<()> {
        self.1.co_pwritev(co, at, source, flags)
    }

    fn co_flush(&self, co: &Co<'_>) -> io::Result<()> {
        self.0.co_flush(co)
    }

    fn children(&self) -> Vec<EdgeId> {
        vec![self.0.id(), self.1.id()]
    }
}

/// Counts the errors that are logged, by the field `node`.
struct Errors(Arc<Mutex<Vec<String>>>);

impl tracing::Subscriber for Errors {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::ERROR
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        struct Node<'a>(&'a mut Vec<String>);
        impl Visit for Node<'_> {
            fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
                if field.name() == "node" {
                    self.0.push(format!("{value:?}").trim_matches('"').to_owned());
                }
            }
        }
        event.record(&mut Node(&mut self.0.lock().unwrap()));
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn only_a_drop_that_loses_something_is_an_error_in_the_log() {
    let (ctx, log) = (AioContext::for_test().unwrap(), Log::default());
    let errors = Arc::new(Mutex::new(Vec::new()));
    // With two subscribers, `tracing` asks both whether they want an event. With one it asks the thread
    // that the event comes from first, which may be another test's.
    let _second = tracing::Dispatch::new(Errors(Arc::default()));
    tracing::subscriber::with_default(Errors(Arc::clone(&errors)), || {
        let [clean, closed, unclosed] =
            ["clean", "closed", "unclosed"].map(|name| Keeper::node(name, &log, null()));
        keep(&ctx, &closed, 1);
        keep(&ctx, &unclosed, 2);
        ctx.run(|co| closed.co_close(co)).unwrap();
        drop((clean, closed, unclosed));
        // Nor is one that fails to be closed when it falls out silent.
        let (fallen, errno) = Keeper::failing("fallen", &log, null());
        fallen.life.set_belongs_to_users(true);
        errno.store(libc::EIO, Ordering::SeqCst);
        ctx.run(|co| co_close_if_unused(co, &fallen));
    });
    assert_eq!(*errors.lock().unwrap(), ["unclosed", "fallen"]);
}
