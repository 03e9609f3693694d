//! Users of nodes that are neither nodes nor backends.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use coblk_aio::{AioContext, Co, CoWaker, IoThread, IoVector};
use coblk_block::drivers::{Null, Raw};
use coblk_block::options::NodeOptions;
use coblk_block::{
    BackendOptions, BlockNode, Blockdevs, NodeUse, NodeUser, Operation, Parent, Permissions,
    WriteFlags,
};

const READ: Permissions = Permissions::CONSISTENT_READ;
const WRITE: Permissions = Permissions::WRITE;
const ALL: Permissions = Permissions::all();

/// A job that is at work, or rests.
#[derive(Default)]
struct Job {
    at_work: AtomicBool,
    quiet: AtomicBool,
    resting: Mutex<Vec<CoWaker>>,
}

impl Job {
    fn at_work() -> Arc<Job> {
        let job = Arc::new(Job::default());
        job.at_work.store(true, Ordering::SeqCst);
        job
    }

    fn is_quiet(&self) -> bool {
        self.quiet.load(Ordering::SeqCst)
    }

    fn rest(&self) {
        self.at_work.store(false, Ordering::SeqCst);
        let resting = std::mem::take(&mut *self.resting.lock().unwrap());
        resting.into_iter().for_each(CoWaker::wake);
    }
}

impl NodeUser for Job {
    fn name(&self) -> String {
        "job 'copy'".to_owned()
    }

    fn drained_begin(&self) {
        assert!(!self.quiet.swap(true, Ordering::SeqCst), "begun twice");
    }

    fn drained_end(&self) {
        assert!(self.quiet.swap(false, Ordering::SeqCst), "ended twice");
    }

    fn co_rest(&self, co: &Co<'_>) {
        assert!(self.is_quiet());
        if self.at_work.load(Ordering::SeqCst) {
            co.suspend_for("a job", |waker| self.resting.lock().unwrap().push(waker));
        }
    }
}

fn nodes() -> (Arc<BlockNode>, Arc<BlockNode>) {
    let low = BlockNode::new("low", Null::new(1 << 20).read_zeroes(true));
    (Arc::clone(&low), BlockNode::new("top", Raw::new(low)))
}

fn begin(job: &Arc<Job>, node: &Arc<BlockNode>) -> NodeUse {
    NodeUse::new(Arc::clone(job) as Arc<dyn NodeUser>, node, Permissions::empty(), ALL).unwrap()
}

fn settle(ctx: &AioContext) {
    while ctx.try_poll() {}
}

#[test]
fn a_drain_waits_until_users_rest_also_those_above() {
    let ctx = AioContext::for_test().unwrap();
    let (low, top) = nodes();
    for drained in [&low, &top] {
        let job = Job::at_work();
        let _use = begin(&job, &top);
        let (node, section) = (Arc::clone(drained), Rc::new(Cell::new(None)));
        let seen = Rc::clone(&section);
        ctx.spawn("drain", move |co| seen.set(Some(node.co_drain(co))));
        settle(&ctx);
        assert!(job.is_quiet() && section.take().is_none(), "the drain does not wait");
        job.rest();
        settle(&ctx);
        let section = section.take().expect("drained");
        let nested = top.drain(&ctx);
        drop(section);
        assert!(job.is_quiet());
        drop(nested);
        assert!(!job.is_quiet());
    }
}

#[test]
fn a_drain_from_another_context_waits_and_one_with_a_limit_gives_up() {
    let ctx = AioContext::for_test().unwrap();
    let (low, top) = nodes();
    let job = Job::at_work();
    let _use = begin(&job, &top);
    let thread = IoThread::new("other").unwrap();
    let node = Arc::clone(&low);
    let drained = thread.handle().spawn("drain", move |co| drop(node.co_drain(co)));
    while job.resting.lock().unwrap().is_empty() {
        std::thread::yield_now();
    }
    let limit = Duration::from_millis(1);
    assert!(ctx.run(|co| low.co_drain_within(co, limit).is_err()));
    assert!(job.is_quiet(), "the other drain is over");
    job.rest();
    drained.wait().unwrap();
    assert!(!job.is_quiet());
    assert!(ctx.run(|co| low.co_drain_within(co, Duration::from_secs(60)).is_ok()));
}

#[test]
fn a_drain_whose_time_is_over_waits_for_no_user() {
    let ctx = AioContext::for_test().unwrap();
    let (low, top) = nodes();
    let job = Job::at_work();
    let _use = begin(&job, &top);
    let is_over = Rc::new(Cell::new(None));
    let seen = Rc::clone(&is_over);
    ctx.spawn("drain", move |co| {
        seen.set(Some(low.co_drain_within(co, Duration::ZERO).is_err()));
    });
    let begun = Instant::now();
    while is_over.get().is_none() && begun.elapsed() < Duration::from_secs(60) {
        ctx.try_poll();
    }
    assert_eq!(is_over.get(), Some(true));
    assert!(!job.is_quiet());
    // What the drain began goes on, and must end before the context does.
    job.rest();
    settle(&ctx);
}

#[test]
fn a_user_comes_to_a_node_as_drains_have_left_it() {
    let ctx = AioContext::for_test().unwrap();
    let (low, top) = nodes();
    let (job, late) = (Arc::new(Job::default()), Arc::new(Job::default()));
    let section = low.drain(&ctx);
    let first = begin(&job, &top);
    let gone = begin(&late, &top);
    assert!(job.is_quiet() && late.is_quiet());
    drop(gone);
    drop(section);
    assert!(!job.is_quiet() && late.is_quiet(), "what has gone is told nothing");
    assert_eq!(top.parents(), [Parent::User { name: "job 'copy'".to_owned() }]);
    ctx.run(|co| first.co_end(co));
    assert_eq!(top.parents(), []);
}

#[test]
fn a_user_has_permissions() {
    let ctx = AioContext::for_test().unwrap();
    let (low, top) = nodes();
    let job: Arc<dyn NodeUser> = Arc::new(Job::default());
    let alone = NodeUse::new(Arc::clone(&job), &top, READ, ALL - WRITE).unwrap();
    let writer = BackendOptions::new("drive");
    let refused = writer.open(&ctx, Arc::clone(&low)).err().unwrap().to_string();
    assert!(refused.contains("write permission on node 'low', which node 'top'"), "{refused}");
    let refused = writer.open(&ctx, Arc::clone(&top)).err().unwrap().to_string();
    assert!(refused.ends_with("which job 'copy' does not share"), "{refused}");
    ctx.run(|co| alone.co_set_permissions(co, READ, ALL)).unwrap();
    let drive = writer.open(&ctx, Arc::clone(&top)).unwrap();
    let refused = ctx.run(|co| alone.co_set_permissions(co, READ | WRITE, ALL)).unwrap_err();
    assert!(refused.to_string().starts_with("job 'copy' needs write"), "{refused}");
    drop(drive);
    ctx.run(|co| alone.co_set_permissions(co, READ | WRITE, READ)).unwrap();
    assert!(writer.open(&ctx, Arc::clone(&top)).is_err());
    drop(alone);
    writer.open(&ctx, top).unwrap();
}

#[test]
fn a_backend_has_the_permissions_that_it_is_opened_with() {
    let ctx = AioContext::for_test().unwrap();
    let (_, top) = nodes();
    let target = BackendOptions::new("target").permissions(WRITE, READ | WRITE);
    let target = target.open(&ctx, Arc::clone(&top)).unwrap();
    let source = BackendOptions::new("source").permissions(READ, ALL - Permissions::RESIZE);
    let source = source.open(&ctx, Arc::clone(&top)).unwrap();
    let write = |backend: &coblk_block::BlockBackend| {
        backend.pwritev(&ctx, 0, &IoVector::from(&[1][..]), WriteFlags::empty())
    };
    write(&target).unwrap();
    assert_eq!(write(&source).unwrap_err().raw_os_error(), Some(libc::EPERM));
    let resize = BackendOptions::new("resize").permissions(Permissions::RESIZE | WRITE, ALL);
    let refused = resize.open(&ctx, Arc::clone(&top)).err().unwrap().to_string();
    assert!(refused.contains("resize permission") && refused.contains("'target'"), "{refused}");
}

#[test]
fn a_user_blocks_operations_for_a_reason_and_stays_at_its_node() {
    let ctx = AioContext::for_test().unwrap();
    let blockdevs = Blockdevs::new(coblk_block::drivers());
    let options = |text: &str| NodeOptions::from_keyval(text).unwrap();
    blockdevs.open(&ctx, options("null-co,node-name=low,size=1048576")).unwrap();
    let top = blockdevs.open(&ctx, options("raw,node-name=top,file=low")).unwrap();
    let other = BlockNode::new("other", Null::new(1 << 20));
    let job = Arc::new(Job::default());
    let copies = begin(&job, &top);
    let operations: [(Operation, &dyn Fn() -> String); 6] = [
        (Operation::Replace, &|| top.replace(&ctx, &other).map_or_else(|e| e.to_string(), said)),
        (Operation::Replace, &|| top.remove(&ctx).map_or_else(|e| e.to_string(), said)),
        (Operation::Replace, &|| {
            let above = BlockNode::new("above", Raw::new(Arc::clone(&top)));
            top.insert_above(&ctx, &above).map_or_else(|e| e.to_string(), said)
        }),
        (Operation::Reopen, &|| {
            let reopened = blockdevs.reopen(&ctx, vec![options("raw,node-name=top,file=low")]);
            reopened.map_or_else(|e| e.to_string(), said)
        }),
        (Operation::Resize, &|| {
            blockdevs.resize(&ctx, "top", 1 << 20).map_or_else(|e| e.to_string(), said)
        }),
        (Operation::Inactivate, &|| {
            blockdevs.set_active(&ctx, Some(&["top"]), false).map_or_else(|e| e.to_string(), said)
        }),
    ];
    for (operation, perform) in operations {
        copies.block(operation, "it is being copied");
        assert_eq!(
            perform(),
            format!("node 'top' cannot be {operation}: job 'copy' blocks it: it is being copied")
        );
        copies.unblock(operation);
        let after = perform();
        assert!(!after.contains("blocks it"), "{after}");
        blockdevs.set_active(&ctx, None, true).unwrap();
    }
    assert_eq!(copies.node().name(), "top");
    assert_eq!(top.parents(), [Parent::User { name: "job 'copy'".to_owned() }]);
    assert_eq!(blockdevs.close(&ctx, "top").unwrap_err().to_string(), "node 'top' is in use");
    drop(copies);
    blockdevs.close(&ctx, "top").unwrap();
}

fn said(_: ()) -> String {
    "done".to_owned()
}
